"""Whatever happens to pods, in whatever order, some things never do. `make soak` tells a hundred times as many."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.unit.operator.small_cluster import GRACE, SmallCluster, make_job, ppo_spec

from alignment_api.contract.roles import ROLES
from alignment_api.contract.status import CheckpointStatus
from alignment_api.rules.mutability import SCALABLE
from alignment_operator.plan.terminations import GIVEN_UP_AFTER
from alignment_operator.plan.types import Instance, Plan

BUDGETS = {"failures": 10_000, "disruptions": 10_000}
SOAK = "ALIGNMENT_SOAK_HISTORIES"
"""Environment variable: how many histories to tell, by pytest's `--hypothesis-seed`, else other ones each time. A
failure prints its `reproduce_failure`."""
WRITES_A_CHANGE = 3
"""What one thing that happens may cost in writes of the status: counted, its pod gone, the next life's UID known."""


class Histories(RuleBasedStateMachine):
    """An operator that may crash anywhere, over pods to which anything may happen."""

    def __init__(self) -> None:
        super().__init__()
        self.cluster = SmallCluster()
        self.highest: dict[tuple[str, int], int] = {}
        self.lags = False
        self.troubled: set[tuple[str, int, int]] = set()
        """Lives (role, index, life) that something happened to."""
        self.done: set[int] = set()
        """Lives of gangs that ended well."""
        self.passed = False
        """Whether the step that goes on is the operator's own."""
        self.changes = 1
        """Steps of others: the job, its pods, the clock; its creation included."""
        self.writes = 0
        """Of the status."""
        self.looked: tuple[object, ...] = ()
        """The world of the last plan that was lost: the same again would be planned the same."""
        self.completed: tuple[object, ...] = ()
        """The world in which nothing was left of a complete job."""

    @initialize(
        replicas=st.integers(1, 2),
        servers=st.integers(0, 3),
        online=st.booleans(),
        deadline=st.sampled_from([300, 10_000_000]),
    )
    def begin(self, replicas: int, servers: int, online: bool, deadline: int) -> None:
        patient = {"budgets": BUDGETS, "readyDeadlineSeconds": deadline}
        roles = {"policy": {"replicas": replicas}, "reference": {"replicas": servers}}
        if online:
            roles |= {"actor": {"replicas": replicas}, "rollout": {"replicas": servers}}
        self.cluster = SmallCluster(make_job(patient | (ppo_spec(**roles) if online else {"roles": roles})))

    # The operator.

    @rule()
    def reconciles(self) -> None:
        plan = self.cluster.plan()
        self.record(plan)
        again = self.cluster.plan()
        assert again.status == plan.status
        assert (again.create, again.delete, again.release) == (plan.create, plan.delete, plan.release)
        self.apply(plan, len(plan.create) + len(plan.delete))

    @rule()
    def settles_when_nothing_happens(self) -> None:
        self.reconciles()
        self.reconciles()  # sees that what was deleted has gone, and makes the next life of a gang
        self.reconciles()  # sees the UIDs of what was made
        before = self.cluster.status
        plan = self.cluster.plan()
        assert plan.status == before
        assert self.lags or plan.create == ()
        assert (plan.delete, plan.release) == ((), ())

    @rule(done=st.integers(0, 3))
    def crashes_while_applying(self, done: int) -> None:
        plan = self.cluster.plan()
        self.record(plan)
        self.apply(plan, done)

    @precondition(lambda self: self.looked != self.cluster.look())
    @rule()
    def crashes_before_recording(self) -> None:
        self.looked = self.cluster.look()
        self.cluster.plan()

    def record(self, plan: Plan) -> None:
        before = self.cluster.status
        self.passed = True
        self.writes += plan.status != before
        self.cluster.record(plan)
        for old, new in zip(before.roles, plan.status.roles, strict=False):
            assert new.failures + new.disruptions >= old.failures + old.disruptions
        for line in plan.status.instances:
            assert line.life >= self.highest.get((line.role, line.index), 0)
            self.highest[line.role, line.index] = line.life
        for line in plan.status.instances:
            if line.end == "removed":
                self.troubled.add((line.role, line.index, line.life))
            if line.end == "succeeded" and ROLES[line.role].trainable:
                self.done.add(line.life)

    def apply(self, plan: Plan, upto: int) -> None:
        for instance in plan.create[:upto]:
            (self.assert_fenced if ROLES[instance.role].writes else self.assert_alone)(instance)
            self.cluster.create(instance)
            if self.lags and instance.gang == 1:  # an API that shows half a gang is left to the fence in storage
                self.cluster.unseen.add(instance.name)
        for name in plan.release:
            self.cluster.change(name, gated=False)
        for removal in plan.delete:
            assert self.cluster.pods[removal.name].gone_by is None  # asked once
        for removal in plan.delete[: max(upto - len(plan.create), 0)]:
            self.cluster.delete(removal.name)

    def assert_fenced(self, instance: Instance) -> None:
        if ROLES[instance.role].trainable:
            assert instance.pool == "onDemand"
        for pod in self.cluster.pods.values():
            same = pod.role == instance.role or (ROLES[pod.role].trainable and ROLES[instance.role].trainable)
            if same and pod.life != instance.life and not pod.ended:
                assert pod.gone_by is not None
                if pod.node_lost:
                    assert ROLES[pod.role].trainable or pod.gone_by <= self.cluster.now
                else:
                    assert pod.gone_by + GIVEN_UP_AFTER <= self.cluster.now

    def assert_alone(self, server: Instance) -> None:
        """No other server of its slot goes on: each has ended, is lost with its node, or has been told to go."""
        for pod in self.cluster.pods.values():
            if (pod.role, pod.index) == (server.role, server.index) and pod.life != server.life:
                assert pod.ended or pod.node_lost or pod.gone_by is not None

    @rule(lags=st.booleans())
    def the_mirror_lags_or_catches_up(self, lags: bool) -> None:
        self.lags = lags
        self.cluster.unseen.clear()

    # Pods.

    def choose(self, data: st.DataObject, *phases: str) -> str | None:
        names = sorted(name for name, pod in self.cluster.pods.items() if pod.phase in phases)
        return data.draw(st.sampled_from(names)) if names else None

    def trouble(self, name: str) -> None:
        pod = self.cluster.pods[name]
        self.troubled.add((pod.role, pod.index, pod.life))

    @rule()
    def pods_start(self) -> None:
        for name, pod in list(self.cluster.pods.items()):
            if pod.phase == "Pending" and not pod.gated and pod.gone_by is None:
                self.cluster.start(name)

    @rule(data=st.data())
    def a_lead_succeeds(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running")
        if name is not None and self.cluster.leads(self.cluster.pods[name]):
            self.cluster.succeed(name)

    @rule(data=st.data())
    def a_pod_fails(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running")
        if name is not None:
            self.trouble(name)
            self.cluster.fail(name)

    @rule(data=st.data(), reason=st.sampled_from(["RanksLost", "PhaseStalled", "DistStoreError"]))
    def a_pod_complains_of_others(self, data: st.DataObject, reason: str) -> None:
        name = self.choose(data, "Running")
        if name is not None:
            self.trouble(name)
            self.cluster.fail(name, reason=reason)

    @rule(data=st.data())
    def a_pod_runs_out_of_memory_beside_a_container_that_runs_on(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running")
        if name is not None:
            self.trouble(name)
            self.cluster.change(name, phase="Failed", ready=False, exit_code=137, reason="OOMKilled", lingers=True)

    @rule(data=st.data(), node=st.sampled_from(["gpu-1", "gpu-2"]))
    def a_node_turns_a_pod_away(self, data: st.DataObject, node: str) -> None:
        name = self.choose(data, "Pending")
        if name is not None and not self.cluster.pods[name].gated:
            self.trouble(name)
            self.cluster.reject(name, node)

    @rule(data=st.data())
    def a_pod_does_not_die(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running")
        if name is not None and self.cluster.pods[name].gone_by is not None:
            self.cluster.undying.add(name)

    @rule(step=st.integers(1, 30))
    def a_checkpoint_is_saved(self, step: int) -> None:
        for name, pod in self.cluster.pods.items():
            if pod.ready and ROLES[pod.role].trainable:
                self.cluster.poll(name, checkpoint=CheckpointStatus(step=step, verified_at=self.cluster.now))

    @rule(data=st.data())
    def a_pod_is_evicted(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running", "Pending")
        if name is not None:
            self.trouble(name)
            self.cluster.evict(name)

    @rule(data=st.data())
    def a_terminating_pod_ends(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running")
        if name is not None and self.cluster.pods[name].gone_by is not None:
            self.cluster.end_evicted(name)

    @rule(data=st.data())
    def a_node_is_lost(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running")
        if name is not None:
            self.trouble(name)
            self.cluster.lose_node(name)

    @rule(data=st.data())
    def the_control_plane_gives_a_lost_pod_up(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running")
        if name is not None:
            self.give_up_if_lost(name)

    def give_up_if_lost(self, name: str) -> None:
        pod = self.cluster.pods[name]
        if pod.node_lost and pod.gone_by is None and not pod.ended:
            self.cluster.change(name, gone_by=self.cluster.now + GRACE, disrupted=True)

    @rule(data=st.data())
    def a_pod_vanishes(self, data: st.DataObject) -> None:
        name = self.choose(data, "Running", "Pending", "Failed")
        if name is not None:
            self.trouble(name)
            self.cluster.vanish(name)

    # Time and the user.

    @rule(seconds=st.sampled_from([1, 10, 60, 400]))
    def time_passes(self, seconds: int) -> None:
        self.cluster.wait(seconds)

    @rule(suspend=st.booleans())
    def the_user_suspends_or_resumes(self, suspend: bool) -> None:
        self.cluster.respec(suspend=suspend)

    @rule(role=st.sampled_from(SCALABLE), replicas=st.integers(0, 3))
    def the_user_scales_servers(self, role: str, replicas: int) -> None:
        self.cluster.scale(role, replicas)

    # What never happens.

    @invariant()
    def the_status_is_written_for_what_happened_alone(self) -> None:
        self.changes += not self.passed
        self.passed = False
        assert self.writes <= WRITES_A_CHANGE * self.changes

    @invariant()
    def no_end_is_counted_twice(self) -> None:
        for role in self.cluster.status.roles:
            lives = {(index, life) for name, index, life in self.troubled if name == role.name}
            assert role.failures + role.disruptions <= len(lives)
        gangs = {life for role, _, life in self.troubled if ROLES[role].trainable}
        counts = [role for role in self.cluster.status.roles if ROLES[role.name].trainable]
        assert sum(role.failures + role.disruptions for role in counts) <= len(gangs)

    @invariant()
    def the_gang_restarts_only_for_its_own_losses(self) -> None:
        lost = {life for role, _, life in self.troubled if ROLES[role].trainable}
        assert set(range(1, self.cluster.status.attempt)) <= lost | self.done

    @invariant()
    def nothing_is_left_of_a_complete_job(self) -> None:
        if self.cluster.status.phase == "Complete" and self.completed != self.cluster.look():
            self.completed = self.cluster.look()
            plan = self.cluster.plan()
            assert plan.create == ()
            assert plan.support is None
            going = {removal.name for removal in plan.delete}
            assert all(name in going or pod.gone_by is not None for name, pod in self.cluster.pods.items())

    @invariant()
    def what_waits_says_so(self) -> None:
        """Every slot that is wanted is ready, ends soon, or has a reason in the status."""
        status, conditions = self.cluster.status, {c.type: c for c in self.cluster.status.conditions}
        if status.phase in ("Pending", "Running") and status.started_at is not None:
            roles = conditions["RolesReady"]
            assert roles.status == "True" or (roles.reason and roles.message) or status.ready == "0/0"

    @precondition(lambda self: self.cluster.status.phase != "Complete")
    @invariant()
    def a_job_within_its_budgets_fails_only_for_what_never_got_ready(self) -> None:
        if self.cluster.status.phase == "Failed":
            failed = self.cluster.condition("Failed")
            assert failed is not None
            assert failed.reason == "NotReadyInTime"
            assert self.cluster.job.spec.ready_deadline_seconds == 300

    def teardown(self) -> None:
        """Once nothing goes wrong any more, the job completes; and one that has failed is left alone."""
        if self.cluster.status.phase == "Failed":
            plan = self.cluster.reconcile()
            assert (plan.create, plan.support, plan.next_look) == ((), None, None)
            return
        self.cluster.respec(ready_deadline_seconds=10_000_000)
        self.cluster.respec(suspend=False)
        self.cluster.unseen.clear()
        self.cluster.undying.clear()
        for role in SCALABLE:
            self.cluster.scale(role, 1)  # without a server nothing is sampled
        for _ in range(60):
            if self.cluster.status.phase == "Complete":
                break
            for name in self.cluster.pods:
                self.give_up_if_lost(name)
            self.cluster.reconcile()
            self.cluster.wait(400)
            self.cluster.do_well()
        self.cluster.reconcile()
        assert self.cluster.status.phase == "Complete", self.cluster.status


Histories.TestCase.settings = settings(
    max_examples=int(os.environ.get(SOAK, "1000")),
    stateful_step_count=40,
    derandomize=SOAK not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    print_blob=True,
    database=None,
)
TestHistories = Histories.TestCase
