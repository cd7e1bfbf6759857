"""A job's whole life on a control plane without nodes, from its creation to the last object that is tidied away.

What the kubelet says of each pod is data, so that a life under a fault can be compared with the one without.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.fault_proxy import FaultProxy, Strike, Write, fault_proxy
from tests.cluster.operating import CLAIM, FAILED, PLATFORM, PREPARED, SCORED, TRAINED, Manifest, Operator, Place
from tests.cluster.warm_operator import WarmOperator, Warmth
from tests.rig.cluster import Rig
from tests.rig.control_plane import ADMIN

LIFE_SECONDS = 600.0
"""A life without fault takes about 20 where nothing else runs: what has not ended by then never will."""
SETTLE_SECONDS = 120.0
"""For what a finished job still tidies away."""
LOST = "lost"
"""Instead of an outcome: the pod vanishes with its node, once the operator has seen it. One that nobody has seen is
made again under its name, as if it had never been."""
LEFT_BY_ITSELF = "not renewed for"
"""What an operator says last that could not renew its Lease."""
LEFT = ("pods", "services", "configmaps", "secrets", "persistentvolumeclaims")
LEFT_ELSEWHERE = {"networkpolicies": "networking.k8s.io/v1", "podgroups": "scheduling.k8s.io/v1beta1"}
Slot = tuple[str, int]
"""Role and life. Every role of these jobs has one pod at a time."""


@dataclass(frozen=True)
class End:
    """How one pod ends, once these others are ready."""

    outcome: Manifest | str
    beside: tuple[Slot, ...] = ()


@dataclass(frozen=True)
class Course:
    """A job, and all that happens to its pods. What is not named here is ready as soon as its gates are open."""

    name: str
    spec: Mapping[str, Any]
    ends: Mapping[Slot, End]
    gang: str = ""


DPO = Course(
    "dpo",
    {},
    {
        ("reference", 1): End(LOST, (("prepare", 1),)),
        ("prepare", 1): End(PREPARED, (("reference", 2),)),
        ("policy", 1): End(LOST),
        ("policy", 2): End(FAILED),
        ("policy", 3): End(TRAINED),
        ("evaluator", 1): End(SCORED),
    },
)
_SERVERS = (("reference", 1), ("reward", 1), ("rollout", 1))
PPO = Course(
    "ppo",
    {"algorithm": {"ppo": {"rewards": [{"train": {"preferences": {"source": "pvc://inputs/judged.jsonl"}}}]}}},
    {
        ("prepare", 1): End(PREPARED),
        ("policy", 1): End(TRAINED | {"evaluation": SCORED["evaluation"]}),
        ("reward", 1): End(LOST, (("actor", 2), ("critic", 2))),
        ("critic", 2): End(LOST, (("actor", 2), ("reward", 2))),
        ("actor", 3): End(TRAINED, (("critic", 3), ("reward", 2))),
        ("evaluator", 1): End(SCORED),
    },
    gang="gang: podGroup\n",
)


@dataclass(frozen=True)
class Summary:
    """What must be the same, whatever happened on the way."""

    status: Mapping[str, Any]
    """Phase, attempt, roles with their counters, conditions with their reasons."""
    made: Mapping[str, int]
    """How often each pod, by role and life, was made."""
    doubled: frozenset[str]
    """Roles of which two pods were there at one time, neither at its end."""
    left: frozenset[str]
    """Objects that outlive the job's end."""

    def differences(self, other: Summary) -> list[str]:
        """In words, field by field."""
        pairs = (
            (name, _flat(getattr(self, name)), _flat(getattr(other, name)))
            for name in ("status", "made", "doubled", "left")
        )
        return [f"{name}: {sorted(here ^ there)}" for name, here, there in pairs if here != there]


@dataclass
class Kubelet:
    """Plays the kubelet of one namespace: it says of each pod, once, that it runs, and later how it ended."""

    api: Api
    course: Course
    doubled: set[str] = field(default_factory=set)
    _ready: set[str] = field(default_factory=set)
    _ended: set[str] = field(default_factory=set)

    def look(self, status: Manifest) -> None:
        """Do what is due. status: the job's."""
        seen = {record.get("uid") for record in status.get("instances", ())}
        pods = {_slot(pod): pod for pod in self.api.items("pods")}
        alive = Counter(role for (role, _), pod in pods.items() if self._lives(pod))
        self.doubled |= {role for role, number in alive.items() if number > 1}
        ready = {slot for slot, pod in pods.items() if self._lives(pod) and _uid(pod) in self._ready}
        for slot, pod in pods.items():
            end = self.course.ends.get(slot)
            if not self._lives(pod) or pod["spec"].get("schedulingGates"):
                continue
            if slot not in ready:
                self._say(
                    pod, {"phase": "Running", "conditions": [_READY], "containerStatuses": [_container("running", {})]}
                )
                self._ready.add(_uid(pod))
            elif end is not None and ready.issuperset(end.beside) and (end.outcome != LOST or _uid(pod) in seen):
                self._end(pod, end.outcome)

    def _lives(self, pod: Manifest) -> bool:
        return _uid(pod) not in self._ended and "deletionTimestamp" not in pod["metadata"]

    def _end(self, pod: Manifest, outcome: Manifest | str) -> None:
        self._ended.add(_uid(pod))
        if isinstance(outcome, str):
            self.api.ask("DELETE", f"pods/{pod['metadata']['name']}", {"gracePeriodSeconds": 0})
            return
        code = int(outcome["result"] != "succeeded")
        ended = _container("terminated", {"exitCode": code, "message": json.dumps(outcome)})
        self._say(pod, {"phase": "Failed" if code else "Succeeded", "containerStatuses": [ended]})

    def _say(self, pod: Manifest, status: Manifest) -> None:
        self.api.ask("PATCH", f"pods/{pod['metadata']['name']}/status", {"status": status})


@dataclass
class Api:
    """The apiserver itself, without the proxy, in one namespace: quicker than a process of kubectl for each look."""

    rig: Rig
    namespace: str
    _line: http.client.HTTPSConnection | None = None

    def ask(self, method: str, path: str, body: Manifest | None = None, group: str = "") -> Manifest:
        """Of the core group unless another is named. What is gone already is fine."""
        prefix = f"/apis/{group}" if group else "/api/v1"
        headers = {
            "Authorization": f"Bearer {self.rig.credentials.token(ADMIN)}",
            "Content-Type": "application/strategic-merge-patch+json" if method == "PATCH" else "application/json",
        }
        text = None if body is None else json.dumps(body)
        line = self._connected()
        line.request(method, f"{prefix}/namespaces/{self.namespace}/{path}", text, headers)
        with line.getresponse() as answer:
            found: Manifest = json.loads(answer.read())
            assert answer.status < 300 or answer.status in (404, 409), found
        return found

    def items(self, collection: str, group: str = "") -> list[Manifest]:
        found: list[Manifest] = self.ask("GET", collection, group=group)["items"]
        return found

    def _connected(self) -> http.client.HTTPSConnection:
        if self._line is None:
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            address = self.rig.layout.api_address.removeprefix("https://")
            self._line = http.client.HTTPSConnection(address, timeout=60, context=context)
        return self._line

    def close(self) -> None:
        if self._line is not None:
            self._line.close()


@dataclass(frozen=True)
class Spoiled:
    """Each second request of a kind is spoiled, for the whole life of a job."""

    method: str
    path: str
    what: Mapping[str, Any]


@dataclass(frozen=True)
class Told:
    """A life that has ended, and what passed the proxy in it."""

    summary: Summary
    writes: tuple[Write, ...]
    events: int
    seconds: float
    struck: bool


@dataclass(frozen=True)
class Setting:
    """Where lives are lived, and by whose operators."""

    rig: Rig
    warmth: Warmth


def live(
    setting: Setting, namespace: str, folder: Path, course: Course, fault: Strike | Spoiled | None, like: Summary | None
) -> Told:
    """One job from its creation to its end under one fault; with `like`, it may take a while to look the same."""
    rig = setting.rig
    rig.kubectl("create", "namespace", namespace)
    folder.mkdir()
    (folder / "platform.yaml").write_text(PLATFORM + course.gang)
    place, api = Place(rig, namespace), Api(rig, namespace)
    with fault_proxy(rig) as proxy:
        operator = WarmOperator(setting.warmth, place, folder, proxy.kubeconfig(folder))
        if isinstance(fault, Spoiled):
            proxy.fault(fault.method, fault.path, every=2, **fault.what)
        else:
            proxy.strike = fault
        operator.start()
        try:
            return _lived(place, api, proxy, operator, course, like)
        finally:
            api.close()
            if operator.is_running():
                operator.kill()
            rig.kubectl("delete", "namespace", namespace, "--wait=false")


def _lived(place: Place, api: Api, proxy: FaultProxy, operator: Operator, course: Course, like: Summary | None) -> Told:
    began, kubelet = time.monotonic(), Kubelet(api, course)
    place.create(CLAIM)
    place.create_job(course.name, **course.spec)
    ended_at, last = None, None
    while True:
        _succeed(api, proxy, operator)
        now = time.monotonic()
        job = api.items("alignmentjobs", "alignment.run/v1alpha1")[0]
        kubelet.look(job.get("status", {}))
        if ended_at is None and job.get("status", {}).get("phase") in ("Complete", "Failed"):
            ended_at = now
        summary = None if ended_at is None else _summary(api, proxy, kubelet, job)
        settled = summary is not None and (
            summary == like if like is not None else summary == last and not _to_go(summary)
        )
        if settled or now - began > LIFE_SECONDS or (ended_at is not None and now - ended_at > SETTLE_SECONDS):
            break
        last = summary
        time.sleep(0.2 if ended_at is None else 1.0)
    found = summary or _summary(api, proxy, kubelet, job)
    struck = proxy.strike is None or proxy.strike.struck.is_set()
    return Told(found, tuple(proxy.writes), proxy.events, now - began, struck)


def _succeed(api: Api, proxy: FaultProxy, operator: Operator) -> None:
    """An operator that was struck dead is killed and followed by another one. Its Lease would expire in 15 s; that it
    does is another test's matter. One that has left by itself, on a machine that stood still for longer than its Lease
    is good, is started again, as a Deployment does."""
    strike = proxy.strike
    if strike is not None and strike.what in ("die", "lag") and strike.struck.is_set() and proxy.silent:
        operator.kill()
        for lease in api.items("leases", "coordination.k8s.io/v1"):
            api.ask("DELETE", f"leases/{lease['metadata']['name']}", group="coordination.k8s.io/v1")
        proxy.revive()
    elif operator.is_running():
        return
    else:
        assert LEFT_BY_ITSELF in operator.log.read_text(), "the operator ended, and not for want of its Lease"
    operator.start()


def _summary(api: Api, proxy: FaultProxy, kubelet: Kubelet, job: Manifest) -> Summary:
    status = job.get("status", {})
    roles = {
        f"{role['name']}.{field}": role.get(field)
        for role in status.get("roles", ())
        for field in ("failures", "disruptions")
    }
    conditions = {
        f"conditions.{condition['type']}": (condition["status"], condition["reason"])
        for condition in status.get("conditions", ())
    }
    stages = {f"stages.{stage['name']}": "finishedAt" in stage for stage in status.get("stages", ())}
    whole = {name: status.get(name) for name in ("phase", "attempt", "stage")}
    made = Counter(
        write.name.rpartition("-")[0]
        for write in proxy.writes
        if (write.method, write.kind, write.code) == ("POST", "pods", 201)
    )
    left = [(kind, item) for kind in LEFT for item in api.items(kind)]
    left += [(kind, item) for kind, group in LEFT_ELSEWHERE.items() for item in api.items(kind, group)]
    names = frozenset(f"{kind}/{item['metadata']['name'].rpartition('-')[0]}" for kind, item in left)
    return Summary(whole | roles | conditions | stages, made, frozenset(kubelet.doubled), names)


def _to_go(summary: Summary) -> bool:
    return any(name.startswith(("services/", "networkpolicies/", "podgroups/")) for name in summary.left)


def _flat(part: Mapping[str, Any] | frozenset[str]) -> set[str]:
    return {f"{key}={value}" for key, value in part.items()} if isinstance(part, Mapping) else set(part)


def _slot(pod: Manifest) -> Slot:
    labels = pod["metadata"]["labels"]
    return labels["alignment.run/role"], int(labels["alignment.run/life"])


def _uid(pod: Manifest) -> str:
    return str(pod["metadata"]["uid"])


def _container(state: str, what: Manifest) -> Manifest:
    return {
        "name": "trainer",
        "state": {state: what},
        "image": "trainer:test",
        "imageID": "",
        "ready": True,
        "restartCount": 0,
    }


_READY = {"type": "Ready", "status": "True"}
