"""Faults of nodes, pods and the namespace on a real cluster (tests/rig), and what each costs a small DPO job.

python -m benchmarks.recovery [--only NAME ...]

One job for each fault, which meets it between its second and its third checkpoint. Seconds, steps and pods are measured
from outside and asserted nowhere. What must hold, or the exit status is 1: every job completes, no life has two pods,
no attempt seals a checkpoint after a newer claim. The last line is one JSON object: {name: measured}. Needs root, Go
and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.recovery_timeline import TRAINEE, Timeline
from tests.e2e.jobs import NAMESPACE, SIZES, Jobs, Life, dpo_job, make_claims, repeating
from tests.rig import BASE, NodeSpec, Rig, install_chart, platform_values, prepare
from tests.rig.node import POOL_LABEL
from tests.rig.product import NAMESPACE as OPERATOR_NAMESPACE
from tests.rig.product import OPERATOR_IMAGE

ROWS, STEPS, CHECKPOINT_EVERY, BATCH = 400, 500, 50, 64
"""A step of 64 pairs takes some 0.2 s."""
LONG = 1200
"""Steps of a job whose old attempt must outlive its successor's start."""
FAULT_AT = CHECKPOINT_EVERY * 2 + CHECKPOINT_EVERY // 2
QUOTA_SECONDS = 30
"""For how long the namespace stays full."""
MAINTENANCE = "maintenance"
SYSCTL = "net.core.somaxconn"
GOOD, BAD = "ondemand-0", "ondemand-1"
NODES = (
    NodeSpec("system-0", "system"),  # the operator's, which no fault meets
    NodeSpec(GOOD, "onDemand", unsafe_sysctls=(SYSCTL,)),
    NodeSpec(BAD, "onDemand"),
    NodeSpec("spot-0", "spot", unsafe_sysctls=(SYSCTL,)),
    NodeSpec("spot-1", "spot", unsafe_sysctls=(SYSCTL,)),
)
ON_SPOT = {TRAINEE: {"placement": "spot"}}
STAYS = "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True: time.sleep(60)"
SIDECAR = {
    "name": "sidecar",
    "image": BASE,
    "imagePullPolicy": "Never",
    "command": ["python", "-c", STAYS],
    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
}
Notes = dict[str, Any]


@dataclass(frozen=True)
class Moment:
    """When the clock starts, and whose successor stops it."""

    at: float
    life: Life


@dataclass(frozen=True)
class Running:
    """A job that runs, and what is known of it."""

    jobs: Jobs
    name: str
    timeline: Timeline

    @property
    def rig(self) -> Rig:
        return self.jobs.rig

    def trains(self, step: int = FAULT_AT) -> Life:
        """Its trainee, once it has done so many steps and a checkpoint is known."""

        def does(status: dict[str, Any]) -> bool:
            life = self.timeline.trainee()
            return status.get("checkpoint") is not None and life is not None and self.timeline.step(life) >= step

        self.jobs.wait(self.name, f"step {step}", does)
        life = self.timeline.trainee()
        assert life is not None
        return life

    def reference(self) -> Life:
        """Its server, once it runs."""

        def runs(_: dict[str, Any]) -> bool:
            pods = self.jobs.pods(self.name)
            running = {pod["metadata"]["uid"] for pod in pods if pod["status"].get("phase") == "Running"}
            return any(life.uid in running for life in self.timeline.of("reference"))

        self.jobs.wait(self.name, "a running reference", runs)
        return self.timeline.of("reference")[-1]

    def refusal(self) -> dict[str, Any] | None:
        """Why objects are refused; None where none is."""
        conditions = self.jobs.status(self.name).get("conditions", ())
        return next((c for c in conditions if c["type"] == "ObjectsCreated" and c["status"] == "False"), None)


@dataclass(frozen=True)
class Scenario:
    """A fault and the job that meets it."""

    fault: str
    meet: Callable[[Running, Notes], Moment]
    roles: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """On top of the roles' sizes."""
    steps: int = STEPS
    template: Mapping[str, Any] = field(default_factory=dict)
    """On top of both pools' podTemplate: lists grow, other keys are replaced."""
    before: Callable[[Rig], object] = lambda rig: None
    look: Callable[[Running, Moment, Notes], list[str]] = lambda running, moment, notes: []
    """What is noted besides, and what it shows to be wrong."""


def lose_the_server(running: Running, notes: Notes) -> Moment:
    life = running.reference()
    at = time.time()
    running.rig.node(life.node).lose()
    return Moment(at, life)


def lose(running: Running, notes: Notes) -> Moment:
    life, at = running.trains(), time.time()
    running.rig.node(life.node).lose()
    return Moment(at, life)


def drain(running: Running, notes: Notes) -> Moment:
    life, at = running.trains(), time.time()
    running.rig.kubectl("drain", life.node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s")
    return Moment(at, life)


def taint(running: Running, notes: Notes) -> Moment:
    life, at = running.trains(), time.time()
    running.rig.kubectl("taint", "node", life.node, f"{MAINTENANCE}=now:NoExecute")
    return Moment(at, life)


def cut_off(running: Running, notes: Notes) -> Moment:
    life, at = running.trains(), time.time()
    running.rig.node(life.node).kill_kubelet()
    return Moment(at, life)


def kill_beside_the_sidecar(running: Running, notes: Notes) -> Moment:
    life, at = running.trains(), time.time()
    running.rig.kill_container(life.name, NAMESPACE, "trainer")
    return Moment(at, life)


def fill_the_quota(running: Running, notes: Notes) -> Moment:
    """No pod more than there are, then the trainee dies; the clock starts when there is room again."""
    life, rig = running.trains(), running.rig
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": NAMESPACE}}
    rig.apply(quota | {"spec": {"hard": {"pods": "0"}}})
    rig.kubectl("wait", "-n", NAMESPACE, "resourcequota/full", "--for=jsonpath={.status.hard.pods}=0")
    rig.kill_container(life.name, NAMESPACE, "trainer")
    killed = time.time()
    running.jobs.wait(running.name, "a refusal", lambda status: running.refusal() is not None)
    refusal = running.refusal() or {}
    notes |= {"secondsToTheRefusal": round(time.time() - killed), "reason": refusal.get("reason")}
    time.sleep(QUOTA_SECONDS)
    rig.kubectl("delete", "resourcequota", "full", "-n", NAMESPACE)
    return Moment(time.time(), life)


def turn_away(running: Running, notes: Notes) -> Moment:
    """Its node is drained, and the only other one turns the next attempt away; the clock starts then."""
    rig, timeline = running.rig, running.timeline
    running.trains()
    rig.kubectl("uncordon", BAD)
    rig.kubectl("drain", GOOD, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=240s")

    def rejected() -> list[Life]:
        return [later for later in timeline.of(TRAINEE) if later.node == BAD and later.uid in timeline.reasons]

    running.jobs.wait(running.name, f"a pod that {BAD} turns away", lambda status: bool(rejected()))
    turned = rejected()[0]
    notes["reason"] = timeline.reasons[turned.uid]
    rig.kubectl("uncordon", GOOD)
    return Moment(time.time(), turned)


def was_fenced(running: Running, moment: Moment, notes: Notes) -> list[str]:
    """The old attempt stepped on after the newer claim, and ended by itself, without a trace in storage."""
    timeline, node = running.timeline, running.rig.node(moment.life.node)
    claim = timeline.claim_of(timeline.successor(moment.life).life)
    late = [(at, step) for at, step in timeline.steps[moment.life.uid] if at > claim.at]
    if not late or late[-1][1] <= timeline.last_step_before(claim.at):
        return ["the old trainer had ended before the newer claim: nothing was fenced; give the job more steps"]
    notes["oldTrainerSteppedOnFor"] = {
        "seconds": round(late[-1][0] - claim.at),
        "steps": late[-1][1] - timeline.last_step_before(claim.at),
    }
    assert node.sandbox is not None
    pattern = f"/var/log/pods/{NAMESPACE}_{moment.life.name}_*/trainer/*.log"
    log = node.sandbox.run("sh", "-c", f"cat {pattern}")
    return [] if "FencedError" in log else [f"the old trainer did not end as fenced: {log[-600:]}"]


def stayed(running: Running, moment: Moment, notes: Notes) -> list[str]:
    """How long each stage's successor waited for the pod whose sidecar stays, and how long that held its node."""
    timeline = running.timeline
    for former, later in (("prepare", TRAINEE), (TRAINEE, "evaluator")):
        ended, begun = timeline.ended[timeline.of(former)[-1].uid], timeline.created[timeline.of(later)[0].uid]
        notes[f"secondsFrom{former.capitalize()}To{later.capitalize()}"] = round(begun - ended)
    notes["secondsItsNodeWasHeld"] = round(timeline.seen[moment.life.uid] - timeline.ended[moment.life.uid])
    return []


SCENARIOS: Mapping[str, Scenario] = {
    "server-lost": Scenario("spot node lost with its reference server", lose_the_server),
    "lost": Scenario("spot node lost with the trainee", lose, ON_SPOT),
    "drained": Scenario("spot node drained under the trainee", drain, ON_SPOT),
    "tainted": Scenario("spot node tainted (NoExecute) under the trainee", taint, ON_SPOT),
    "cut-off": Scenario("on-demand node cut off, its trainer alive", cut_off, steps=LONG, look=was_fenced),
    "quota": Scenario("trainee killed while the quota is full; from when there is room", fill_the_quota),
    "sidecar": Scenario(
        "trainee killed beside a sidecar that stays",
        kill_beside_the_sidecar,
        template={"containers": [SIDECAR]},
        look=stayed,
    ),
    "rejected": Scenario(
        "the next attempt turned away by its node; from then on",
        turn_away,
        template={"securityContext": {"sysctls": [{"name": SYSCTL, "value": "1024"}]}},
        before=lambda rig: rig.kubectl("cordon", BAD),
    ),
}


def install(rig: Rig, template: Mapping[str, Any]) -> None:
    """The operator on its own node, with pools whose pods have that besides."""
    values = platform_values() | {"nodeSelector": {POOL_LABEL: "system"}}
    for pool in ("onDemand", "spot"):
        spec = values["platform"]["pools"][pool]["podTemplate"]["spec"]
        grown = {key: [*spec.get(key, ()), *more] if isinstance(more, list) else more for key, more in template.items()}
        values["platform"]["pools"][pool]["podTemplate"] = {"spec": spec | grown}
    install_chart(rig, "alignment", OPERATOR_NAMESPACE, values)
    rig.kubectl("rollout", "restart", "deployment", "-n", OPERATOR_NAMESPACE)  # reads the platform at once
    rig.kubectl("rollout", "status", "deployment", "-n", OPERATOR_NAMESPACE, "--timeout=240s")


def the_job(name: str, scenario: Scenario) -> dict[str, Any]:
    job = dpo_job(name)
    for role, more in scenario.roles.items():
        job["spec"]["roles"][role] = SIZES | dict(more)
    job["spec"]["training"] |= {"batchSize": BATCH, "maxSteps": scenario.steps, "learningRate": 1e-4}
    job["spec"]["checkpoint"] = {"everySteps": CHECKPOINT_EVERY}
    return job


@contextmanager
def nodes_given_back(rig: Rig) -> Iterator[None]:
    """Whatever became of them meanwhile."""
    try:
        yield
    finally:
        for node in rig.nodes.values():
            node.start()
        for node in rig.get("nodes")["items"]:
            if any(taint["key"] == MAINTENANCE for taint in node["spec"].get("taints", ())):
                rig.kubectl("taint", "node", node["metadata"]["name"], f"{MAINTENANCE}-")
        rig.kubectl("uncordon", *rig.nodes)
        rig.await_ready(*rig.nodes)


def run(jobs: Jobs, work: Path, name: str, scenario: Scenario) -> dict[str, Any]:
    """One job, from its start to its end; what was measured, with `problems`."""
    timeline, notes = Timeline(storage=work / name), {}
    running = Running(jobs, name, timeline)
    measured: dict[str, Any] = {"fault": scenario.fault, "problems": []}
    with nodes_given_back(jobs.rig):
        try:
            scenario.before(jobs.rig)
            with jobs.watching(name, timeline), repeating(lambda: look_at(jobs.pods(name), timeline)):
                jobs.apply(the_job(name, scenario))
                moment = scenario.meet(running, notes)
                status = jobs.wait_complete(name)
            measured |= measure(timeline, moment, status)
            measured["problems"] += wrong(timeline) + scenario.look(running, moment, notes)
        except (AssertionError, StopIteration, subprocess.CalledProcessError) as failure:
            measured["problems"].append(f"{type(failure).__name__}: {failure}")
        jobs.delete(name)
    jobs.await_gone(name, "pods", keep=0)
    return measured | {"notes": notes}


def look_at(pods: list[dict[str, Any]], timeline: Timeline) -> None:
    """Some three times a second."""
    timeline.look(pods)
    time.sleep(0.3)


def measure(timeline: Timeline, moment: Moment, status: dict[str, Any]) -> dict[str, Any]:
    new = timeline.successor(moment.life)
    seconds = {"created": timeline.created[new.uid] - moment.at, "ready": timeline.ready[new.uid] - moment.at}
    lost = None
    if new.role == TRAINEE:
        claim = timeline.claim_of(new.life)
        lost = max(0, timeline.last_step_before(claim.at) - claim.step)
        seconds["trains"] = next(at for at, step in timeline.steps[new.uid] if step > claim.step) - moment.at
    counted = {role["name"]: [role["failures"], role["disruptions"]] for role in status["roles"]}
    return {
        "seconds": {what: max(0, round(value)) for what, value in seconds.items()},
        "stepsLost": lost,
        "restarted": timeline.restarted(),
        "failuresAndDisruptions": {role: counts for role, counts in counted.items() if any(counts)},
        "attempts": status["attempt"],
    }


def wrong(timeline: Timeline) -> list[str]:
    doubled, late = timeline.doubled(), timeline.sealed_late()
    return [f"doubled: {life}" for life in doubled] + [f"sealed after a newer claim: {each}" for each in late]


def row(measured: Mapping[str, Any]) -> str:
    if "seconds" not in measured:
        return f"| {measured['fault']} | not measured: {measured['problems'][0].splitlines()[0]} | | | | |"
    seconds = measured["seconds"]
    restarted = ", ".join(f"{role} {count}" for role, count in measured["restarted"].items())
    lost = "-" if measured["stepsLost"] is None else measured["stepsLost"]
    times = f"{seconds['created']} | {seconds['ready']} | {seconds.get('trains', '-')}"
    return f"| {measured['fault']} | {times} | {lost} | {restarted} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    names = parser.parse_args().only
    found: dict[str, dict[str, Any]] = {}
    prepare()
    with Rig.start(NODES) as rig:
        rig.build_image("operator", ":".join(OPERATOR_IMAGE))
        rig.kubectl("create", "namespace", NAMESPACE)
        work, jobs, installed = make_claims(rig, ROWS), Jobs(rig), None
        for name in names:
            scenario = SCENARIOS[name]
            if installed != scenario.template:
                install(rig, scenario.template)
                installed = scenario.template
            found[name] = run(jobs, work, name, scenario)
            print(json.dumps({name: found[name]}, indent=1), file=sys.stderr, flush=True)
    print("| fault | replacement made (s) | ready (s) | trains again (s) | steps lost | pods restarted |")
    print("|---|---|---|---|---|---|")
    for measured in found.values():
        print(row(measured))
    print(json.dumps(found))
    sys.exit(any(measured["problems"] for measured in found.values()))


if __name__ == "__main__":
    main()
