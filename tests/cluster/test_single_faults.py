"""One fault in the life of a DPO and of a PPO job, at each write and each event, and for each kind of request.

Whatever happens, the life ends like the one without fault: no pod doubled, none orphaned, the same counters, the same
phase. `make faults` meets every fault; without it a few rows of each kind stand for all.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from tests.cluster.fault_proxy import Strike
from tests.cluster.lives import DPO, PPO, Spoiled, Told, live
from tests.rig.cluster import Rig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(0 if os.environ.get("ALIGNMENT_FAULTS") else 1200)]
COURSES = {"dpo": DPO, "ppo": PPO}
SHARE = os.environ.get("ALIGNMENT_FAULTS", "")
"""Empty: the rows of FEW. n: each n-th moment and every kind of request; 1 is all."""
FEW = {"dpo": {"die": 2, "lag": 1, "lose": 2, "drop": 1}, "ppo": {"die": 1}}
"""How many moments of each kind continuous integration meets, spread over a life."""
SIDE_BY_SIDE = int(os.environ.get("ALIGNMENT_FAULTS_SIDE_BY_SIDE", "4"))
WRITES = "POST|PUT|PATCH|DELETE"
SUPPORT = "/(configmaps|services|secrets|persistentvolumeclaims|networkpolicies|podgroups)"
KINDS = {
    "lease": "/leases",
    "event": "/events",
    "pod": "/pods",
    "status": "/alignmentjobs/.*/status",
    "support": SUPPORT,
}
ANSWERS: dict[str, dict[str, float]] = {
    "409": {"code": 409},
    "429": {"code": 429},
    "500": {"code": 500},
    "503": {"code": 503},
    "slow": {"delay": 2.0},
}
FEW_ANSWERS = (("pod", "500"), ("status", "409"), ("support", "slow"))
_numbers = count(1)
Row = tuple[str, Callable[[], Strike | Spoiled]]


@dataclass
class Lives:
    """Where the lives are lived, and the ones without fault: told once for all tests, they say how many moments there
    are."""

    rig: Rig
    folder: Path
    faultless: dict[str, Told] = field(default_factory=dict)

    def without_fault(self, course: str) -> Told:
        if course not in self.faultless:
            self.faultless[course] = self.live(course, f"{course}-faultless", None)
        return self.faultless[course]

    def live(self, course: str, namespace: str, fault: Strike | Spoiled | None) -> Told:
        like = None if fault is None else self.without_fault(course).summary
        return live(self.rig, namespace, self.folder / namespace, COURSES[course], fault, like)


@pytest.fixture(scope="module")
def lives(cluster: Rig, tmp_path_factory: pytest.TempPathFactory) -> Lives:
    return Lives(cluster, tmp_path_factory.mktemp("lives"))


def moments(course: str, what: str, number: int) -> list[int]:
    """Of 1 to `number`: each SHARE-th, or a few of them, none at the very ends."""
    if SHARE:
        return list(range(1, number + 1, int(SHARE)))
    few = FEW.get(course, {}).get(what, 0)
    return [number * place // (few + 1) for place in range(1, few + 1)]


def strikes(course: str, what: str, told: Told) -> list[Row]:
    number = told.events if what == "drop" else len(told.writes)
    return [(f"{what} {k}", partial(Strike, what, k)) for k in moments(course, what, number)]  # type: ignore[arg-type]


def spoils(course: str) -> list[Row]:
    wanted = [(kind, answer) for kind in KINDS for answer in ANSWERS] if SHARE else FEW_ANSWERS
    return [
        (f"{kind} {answer}", partial(Spoiled, WRITES, KINDS[kind], ANSWERS[answer]))
        for kind, answer in wanted
        if SHARE or course == "dpo"
    ]


def hold(lives: Lives, course: str, rows: list[Row]) -> None:
    """Live each row, some side by side, and compare; says every row that ended otherwise."""
    if not rows:
        pytest.skip("make faults has it")
    like = lives.without_fault(course).summary

    def one(row: Row) -> str | None:
        name, fault = row
        told = lives.live(course, f"{course}-{next(_numbers)}-{name.replace(' ', '-')}", fault())
        found = told.summary.differences(like) + ([] if told.struck else ["the fault never came"])
        line = f"{course} {name}: {told.seconds:.0f} s, {'; '.join(found) or 'the same'}"
        print(line, flush=True)
        return line if found else None

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        wrong = [line for line in pool.map(one, rows) if line is not None]
    assert wrong == [], f"{len(wrong)} of {len(rows)} lives ended otherwise"


@pytest.mark.parametrize("course", COURSES)
def test_a_life_without_fault_doubles_nothing_and_leaves_what_the_user_owns(course: str, lives: Lives) -> None:
    told = lives.without_fault(course)
    print(f"{course}: {len(told.writes)} writes, {told.events} events, {told.seconds:.0f} s", told.summary, sep="\n")
    assert told.summary.status["phase"] == "Complete"
    assert set(told.summary.made.values()) == {1}
    assert not told.summary.doubled


@pytest.mark.parametrize("what", ["die", "lag", "lose", "drop"])
@pytest.mark.parametrize("course", COURSES)
def test_a_life_with_one_fault_ends_as_the_one_without(what: str, course: str, lives: Lives) -> None:
    hold(lives, course, strikes(course, what, lives.without_fault(course)))


@pytest.mark.parametrize("course", COURSES)
def test_a_life_in_which_one_kind_of_request_goes_wrong_ends_as_the_one_without(course: str, lives: Lives) -> None:
    hold(lives, course, spoils(course))
