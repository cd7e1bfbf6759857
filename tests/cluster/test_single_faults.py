"""One fault in the life of a DPO and of a PPO job, at each write and each event, and for each kind of request.

Whatever happens, the life ends like the one without fault: no pod doubled, none orphaned, the same counters, the same
phase. `make faults` meets every fault, and goes on where it was stopped; without it a few rows of each kind stand for
all.
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
from tests.cluster.fault_journal import Journal, Lived, open_journal
from tests.cluster.fault_proxy import Strike
from tests.cluster.lives import DPO, PPO, Setting, Spoiled, Told, live
from tests.cluster.warm_operator import Warmth
from tests.rig.cluster import Rig

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(0 if os.environ.get("ALIGNMENT_FAULTS") else 2400)]
COURSES = {"dpo": DPO, "ppo": PPO}
EACH = int(os.environ.get("ALIGNMENT_FAULTS", "0"))
"""n: each n-th moment of a life, and every kind of request; 1 is all. 0: the rows of FEW."""
FEW = {
    "dpo": ("die 0.5", "lag 0.75", "lose 0.4", "drop 0.6", "pod 500", "status 409"),
    "ppo": ("die 0.6",),
}
"""What continuous integration meets: a fault of each kind at such a part of a life, two kinds of request."""
SIDE_BY_SIDE = int(os.environ.get("ALIGNMENT_FAULTS_SIDE_BY_SIDE", "6"))
WRITES = "POST|PUT|PATCH|DELETE"
MENDED = ("services", "networkpolicies")
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
STRIKES = ("die", "lag", "lose", "drop")
REQUESTS = "requests"
_numbers = count(1)
Row = tuple[str, Callable[[], Strike | Spoiled]]


@dataclass
class Lives:
    """Where the lives are lived, and the ones without fault: told once for all tests, they say how many moments there
    are."""

    setting: Setting
    folder: Path
    faultless: dict[str, Told] = field(default_factory=dict)

    def without_fault(self, course: str) -> Told:
        if course not in self.faultless:
            self.faultless[course] = self.live(course, f"{course}-faultless", None)
        return self.faultless[course]

    def live(self, course: str, namespace: str, fault: Strike | Spoiled | None) -> Told:
        like = None if fault is None else self.without_fault(course).summary
        return live(self.setting, namespace, self.folder / namespace, COURSES[course], fault, like)


@pytest.fixture(scope="module")
def lives(cluster: Rig, tmp_path_factory: pytest.TempPathFactory) -> Lives:
    return Lives(Setting(cluster, Warmth()), tmp_path_factory.mktemp("lives"))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    """Continuous integration starts anew each time."""
    return open_journal() if EACH else Journal(tmp_path / "journal.jsonl")


def every_row(what: str, told: Told) -> list[Row]:
    """One kind of strike at each EACH-th moment, or every kind of request with every answer."""
    if what == REQUESTS:
        return [spoiled(kind, answer) for kind in KINDS for answer in ANSWERS]
    return [strike(what, number) for number in range(1, moments(what, told) + 1, EACH)]


def few_rows(course: str, told: Told) -> list[Row]:
    """The rows of FEW."""
    pairs = [name.split() for name in FEW[course]]
    return [
        strike(first, round(moments(first, told) * float(second))) if first in STRIKES else spoiled(first, second)
        for first, second in pairs
    ]


def moments(what: str, told: Told) -> int:
    """How many there are in a life without fault."""
    return told.events if what == "drop" else len(told.writes)


def strike(what: str, number: int) -> Row:
    return f"{what} {number}", partial(Strike, what, number)  # type: ignore[arg-type]


def spoiled(kind: str, answer: str) -> Row:
    return f"{kind} {answer}", partial(Spoiled, WRITES, KINDS[kind], ANSWERS[answer])


def hold(lives: Lives, course: str, rows: list[Row], journal: Journal) -> None:
    """Live each row that the journal lacks, some side by side, and compare; says every row that ended otherwise.

    A life has a write or an event more or less than another: for the last of many rows their moment may not come.
    """
    like = lives.without_fault(course).summary

    def one(row: Row) -> None:
        name, fault = row
        told = lives.live(course, f"{course}-{next(_numbers)}-{name.replace(' ', '-')}", fault())
        lived = Lived(f"{course} {name}", told.seconds, tuple(told.summary.differences(like)), told.struck)
        journal.add(lived)
        print(lived, flush=True)

    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    try:
        list(pool.map(one, [row for row in rows if f"{course} {row[0]}" not in journal.lives]))
    finally:
        pool.shutdown(cancel_futures=True)  # who interrupts it does not wait for the lives that have not begun
        print(journal.table(), flush=True)
    lived = [journal.lives[f"{course} {name}"] for name, _ in rows]
    assert [str(each) for each in lived if each.differences] == [], f"of {len(rows)} lives"
    assert sum(not each.struck for each in lived) <= len(rows) // 10


@pytest.mark.parametrize("course", COURSES)
def test_a_life_without_fault_doubles_nothing_and_leaves_what_the_user_owns(course: str, lives: Lives) -> None:
    told = lives.without_fault(course)
    print(f"{course}: {len(told.writes)} writes, {told.events} events, {told.seconds:.0f} s")
    assert told.summary.status["phase"] == "Complete"
    assert set(told.summary.made.values()) == {1}
    assert not told.summary.doubled
    assert [write for write in told.writes if write.method == "PATCH" and write.kind in MENDED] == [], (
        "what nobody changed"
    )


@pytest.mark.parametrize("course", COURSES)
@pytest.mark.parametrize("what", (*STRIKES, REQUESTS) if EACH else ("few",))
def test_a_life_with_one_fault_ends_as_the_one_without(what: str, course: str, lives: Lives, journal: Journal) -> None:
    told = lives.without_fault(course)
    hold(lives, course, every_row(what, told) if EACH else few_rows(course, told), journal)
