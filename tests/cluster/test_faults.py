"""The operator behind a proxy that spoils requests of one kind: everything of other kinds goes on."""

import signal
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from tests.cluster.fault_proxy import FaultProxy, fault_proxy
from tests.cluster.operating import CLAIM, FAILED, Operator, Place, eventually, operating
from tests.rig.cluster import Rig

pytestmark = pytest.mark.cluster
_numbers = count(1)
LEASE = "/leases/"


@pytest.fixture
def place(cluster: Rig) -> Iterator[Place]:
    made = Place(cluster, f"faults-{next(_numbers)}")
    cluster.kubectl("create", "namespace", made.namespace)
    made.create(CLAIM)
    yield made
    cluster.kubectl("delete", "namespace", made.namespace, "--wait=false")


@pytest.fixture
def proxy(cluster: Rig) -> Iterator[FaultProxy]:
    with fault_proxy(cluster) as made:
        yield made


@pytest.fixture
def operator(place: Place, proxy: FaultProxy, tmp_path: Path) -> Iterator[Operator]:
    """An operator that meets the proxy's faults; it must still live when the test ends."""
    with operating(place, tmp_path, kubeconfig=proxy.kubeconfig(tmp_path)) as made:
        yield made
        assert made.is_running()


@pytest.mark.parametrize("code", [400, 409, 429, 500, 503])
def test_an_outage_of_events_holds_up_no_pod(code: int, place: Place, proxy: FaultProxy, operator: Operator) -> None:
    events = proxy.fault("POST", "/events", code=code)
    place.create_job()
    place.play_to_training()
    place.end("policy", FAILED)
    place.run("policy", life=2)
    eventually(lambda: place.role("policy")["ready"] == 1, "attempt 2 to be ready")
    assert place.role("policy")["failures"] == 1
    assert events.hits > 0
    assert [event for event in place.items("events") if event["involvedObject"]["kind"] == "AlignmentJob"] == []


def test_events_that_never_answer_hold_up_no_pod_and_no_end(
    place: Place, proxy: FaultProxy, operator: Operator
) -> None:
    proxy.fault("POST", "/events", delay=3600)
    place.create_job()
    place.play_to_training()
    eventually(lambda: place.role("policy")["ready"] == 1, "the policy to be ready")
    assert operator.kill(signal.SIGTERM) == 0
    operator.start()


def test_an_event_whose_answer_was_lost_is_there_once(place: Place, proxy: FaultProxy, operator: Operator) -> None:
    lost = proxy.fault("POST", "/events", loses_answer=True)
    place.create_job()
    eventually(lambda: lost.hits >= 3, "lost answers")
    lost.on = False
    place.play_to_training()
    eventually(lambda: "StageStarted" in {event["reason"] for event in place.items("events")}, "an Event")
    told = [
        (event["reason"], event["message"], event["involvedObject"]["resourceVersion"])
        for event in place.items("events")
    ]
    assert len(told) == len(set(told))


@pytest.mark.parametrize("what", [{"loses_answer": True}, {"code": 409}, {"code": 429}, {"code": 500}, {"code": 503}])
def test_a_leader_stays_one_through_renewals_that_go_wrong(
    what: dict[str, object], place: Place, proxy: FaultProxy, operator: Operator
) -> None:
    eventually(lambda: operator.metric("alignment_operator_leader") == 1, "it to lead")
    (lease,) = place.items("leases")
    for _ in range(3):
        fault = proxy.fault("PUT", LEASE, **what)
        eventually(lambda fault=fault: fault.hits >= 2, "two renewals to go wrong")  # type: ignore[misc]
        fault.on = False
        renewed = lease["spec"]["renewTime"]
        eventually(lambda renewed=renewed: place.items("leases")[0]["spec"]["renewTime"] != renewed, "a renewal")  # type: ignore[misc]
        (lease,) = place.items("leases")
    assert lease["spec"]["leaseTransitions"] == 0
    assert operator.metric("alignment_operator_leader") == 1


def test_a_loss_is_seen_though_every_watch_is_cut(place: Place, proxy: FaultProxy, operator: Operator) -> None:
    cuts = proxy.fault("GET", "/pods.*watch=true", cut_after=0.5)
    place.create_job()
    place.play_to_training()
    eventually(lambda: cuts.hits >= 5, "watches to be cut")
    place.end("policy", FAILED)
    place.run("policy", life=2)
    assert place.role("policy")["failures"] == 1


def test_an_operator_that_may_not_list_pods_is_alive_and_unready_and_plans_nothing(
    place: Place, proxy: FaultProxy, tmp_path: Path
) -> None:
    forbidden = proxy.fault("GET", r"^/api/v1/namespaces/[^/]+/pods(\?|$)", code=403)
    operator = Operator(place, tmp_path, kubeconfig=proxy.kubeconfig(tmp_path))
    operator.start()
    eventually(lambda: operator.metric("alignment_operator_leader") == 1, "it to lead")
    place.create_job()
    eventually(lambda: forbidden.hits >= 3, "refused lists")
    assert not operator.is_healthy()
    assert operator.is_alive()
    assert (place.status(), place.items("pods")) == ({}, [])
    forbidden.on = False
    place.pod("prepare")
    assert operator.is_healthy()
    assert operator.kill(signal.SIGTERM) == 0


def test_a_standby_that_may_not_read_the_lease_is_unready(place: Place, proxy: FaultProxy, tmp_path: Path) -> None:
    forbidden = proxy.fault("GET", LEASE, code=403)
    standby = Operator(place, tmp_path, kubeconfig=proxy.kubeconfig(tmp_path))
    standby.start()
    eventually(standby.is_alive, "it to answer")
    assert not standby.is_healthy()
    assert standby.kill(signal.SIGTERM) == 0, "also while it waits for the lease"
    standby.start()
    eventually(standby.is_alive, "it to answer again")
    forbidden.on = False
    eventually(standby.is_healthy, "it to be ready")
    assert standby.kill(signal.SIGTERM) == 0


def test_an_operator_that_comes_before_its_crd_serves_it_when_it_is_there(
    place: Place, proxy: FaultProxy, tmp_path: Path
) -> None:
    place.create_job()
    missing = [proxy.fault("GET", path, code=404) for path in ("^/apis$", "^/apis/alignment.run/")]
    with operating(place, tmp_path, kubeconfig=proxy.kubeconfig(tmp_path)) as operator:
        eventually(lambda: operator.metric("alignment_operator_leader") == 1, "it to lead")
        eventually(lambda: missing[0].hits >= 2, "it to look again")
        assert operator.is_alive()
        assert not operator.is_healthy()
        assert "apply crds/alignmentjobs.alignment.run.yaml" in operator.log.read_text()
        assert operator.kill(signal.SIGTERM) == 0
        assert place.items("leases")[0]["spec"]["holderIdentity"] == ""
        operator.start()
        eventually(lambda: operator.metric("alignment_operator_leader") == 1, "it to lead again")
        for fault in missing:
            fault.on = False
        place.pod("prepare")
        assert operator.is_healthy()


def test_pods_and_nodes_that_cannot_be_read_are_left_out_and_counted(place: Place, tmp_path: Path) -> None:
    for number, labels in enumerate(({"index": "", "life": "1"}, {"index": "0", "life": ""}, {"role": "mascot"})):
        ours = {"job": "dpo", "uid": "u", "role": "policy", "stage": "train", "life": "1", "index": "0"} | labels
        metadata = {"name": f"guest-{number}", "labels": {f"alignment.run/{key}": value for key, value in ours.items()}}
        spec = {"containers": [{"name": "c", "image": "i"}]}
        place.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    with operating(place, tmp_path) as operator:
        place.create_job()
        place.pod("prepare")
        eventually(lambda: operator.metric('alignment_operator_unreadable_objects{kind="Pod"}') == 3, "the count")
        uid = place.items("aj")[0]["metadata"]["uid"]
        place.kubectl("label", "pod", "guest-2", "--overwrite", f"alignment.run/uid={uid}")
        place.play_to_training()
        eventually(lambda: place.role("policy")["ready"] == 1, "the policy to be ready")
        place.kubectl("label", "pod", "guest-0", "--overwrite", "alignment.run/index=0")
        eventually(lambda: operator.metric('alignment_operator_unreadable_objects{kind="Pod"}') == 2, "one less")
    assert operator.log.read_text().count("object left out") == 3
