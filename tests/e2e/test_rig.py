"""The rig is a real Kubernetes: what the other e2e tests lean on, shown once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.rig import BASE, Rig, trainer_pod_template

pytestmark = pytest.mark.e2e

SERVER = ["python", "-m", "http.server", "8000", "--directory", "/tmp"]
NAMESPACE = "rig-check"


def pod(name: str, pool: str, command: list[str], **spec: Any) -> dict[str, Any]:
    """A pod as the operator makes them: non-root, read-only root, seccomp, no capabilities."""
    security = {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    locked = {"readOnlyRootFilesystem": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    container = {
        "name": "trainer",
        "image": BASE,
        "imagePullPolicy": "Never",
        "command": command,
        "securityContext": locked,
        "env": [{"name": "HOME", "value": "/tmp"}, {"name": "TMPDIR", "value": "/tmp"}],
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    seconds = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 2}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": "peers"}},
        "spec": {
            "hostname": name,
            "subdomain": "peers",
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 1,
            "nodeSelector": {"alignment.run/pool": pool},
            "tolerations": [
                {"key": "alignment.run/spot", "operator": "Exists"},
                {"key": "node.kubernetes.io/unreachable", **seconds},
            ],
            "securityContext": security,
            "containers": [container],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
            **spec,
        },
    }


def until(holds: Callable[[], Any], seconds: float = 300) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"{holds} did not hold within {seconds} s"
        time.sleep(0.2)
    return answer


@pytest.fixture
def place(rig: Rig) -> Iterator[Rig]:
    """The rig with a namespace of the test's own and a headless service `peers`."""
    service = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {"app": "peers"}}
    rig.kubectl("create", "namespace", NAMESPACE)
    rig.apply(
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "peers", "namespace": NAMESPACE}, "spec": service}
    )
    yield rig
    rig.kubectl("delete", "namespace", NAMESPACE, "--wait", "--timeout=240s")


def run(rig: Rig, *pods: dict[str, Any], condition: str = "condition=Ready") -> None:
    names = [f"pod/{p['metadata']['name']}" for p in pods]
    rig.apply(*pods)
    rig.kubectl("wait", "-n", NAMESPACE, *names, f"--for={condition}", "--timeout=240s")


def inside(rig: Rig, name: str, script: str) -> str:
    return rig.kubectl("exec", "-n", NAMESPACE, name, "--", "python", "-c", script).strip()


def test_pods_of_both_pools_reach_each_other_by_headless_name(place: Rig) -> None:
    run(place, pod("a", "onDemand", SERVER), pod("b", "spot", SERVER))
    fetch = """
import socket, time, urllib.request
for _ in range(50):  # a name appears when the endpoints do, a moment after the pod is ready
    try:
        socket.gethostbyname("{0}.peers")
        break
    except OSError:
        time.sleep(0.2)
print(urllib.request.urlopen("http://{0}.peers:8000/", timeout=5).status)
"""
    assert inside(place, "a", fetch.format("b")) == "200"
    assert inside(place, "b", fetch.format("a")) == "200"
    nodes = {name: place.get("pod", name, "-n", NAMESPACE)["spec"]["nodeName"] for name in ("a", "b")}
    assert nodes["a"] == "ondemand-0"
    assert nodes["b"].startswith("spot-")
    assert "GET /" in place.kubectl("logs", "-n", NAMESPACE, "b")
    through_the_api = f"/api/v1/namespaces/{NAMESPACE}/pods/b:8000/proxy/"
    assert "Directory listing" in place.kubectl("get", "--raw", through_the_api)


def test_a_pod_is_not_root_and_cannot_write_its_root(place: Rig) -> None:
    run(place, pod("a", "spot", SERVER))
    facts = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(os.getuid(), os.access("/", os.W_OK), status["Seccomp"])
"""
    assert inside(place, "a", facts).split() == ["65532", "False", "2"]  # 2: a seccomp filter is in force


def test_a_spot_node_takes_only_pods_that_tolerate_it(place: Rig) -> None:
    refused = pod("a", "spot", SERVER, tolerations=[])
    place.apply(refused)

    def verdict() -> str:
        conditions = place.get("pod", "a", "-n", NAMESPACE)["status"].get("conditions", [])
        return next((c["message"] for c in conditions if c["type"] == "PodScheduled"), "")

    assert "untolerated taint" in until(verdict)


def test_a_default_claim_is_shared_between_nodes(place: Rig) -> None:
    claim = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    metadata = {"name": "data", "namespace": NAMESPACE}
    place.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim})
    folder = place.shared_volume("seen-from-here", NAMESPACE)
    claims = {"tmp": "data", "here": "seen-from-here"}
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": claim}} for name, claim in claims.items()]
    pods = [pod("a", "onDemand", SERVER, volumes=volumes), pod("b", "spot", SERVER, volumes=volumes)]
    for each in pods:
        each["spec"]["containers"][0]["volumeMounts"].append({"name": "here", "mountPath": "/here"})
    run(place, *pods)
    inside(place, "a", "open('/tmp/x', 'w').write('from a'); open('/here/x', 'w').write('for the test')")
    assert inside(place, "b", "print(open('/tmp/x').read())") == "from a"
    assert (folder / "x").read_text() == "for the test"


def test_the_trainer_imports_its_stack_from_the_checkout(place: Rig) -> None:
    import torch

    script = """
import json, torch, alignment_api, alignment_trainer
print(json.dumps([torch.__version__, torch.ones(3).sum().item()]))
"""
    trainer = pod("a", "onDemand", ["python", "-c", script])
    patch = trainer_pod_template()["spec"]
    (container,) = trainer["spec"]["containers"]
    (addition,) = patch["containers"]
    for key in ("env", "volumeMounts"):
        container[key] += addition[key]
    trainer["spec"]["volumes"] += patch["volumes"]
    run(place, trainer, condition="jsonpath={.status.phase}=Succeeded")
    assert json.loads(place.kubectl("logs", "-n", NAMESPACE, "a")) == [torch.__version__, 3.0]


def test_a_killed_container_ends_with_137_and_its_neighbour_runs_on(place: Rig) -> None:
    run(place, pod("a", "onDemand", SERVER), pod("b", "onDemand", SERVER))
    place.kill_container("a", NAMESPACE)
    place.kubectl("wait", "-n", NAMESPACE, "pod/a", "--for=jsonpath={.status.phase}=Failed", "--timeout=240s")
    (status,) = place.get("pod", "a", "-n", NAMESPACE)["status"]["containerStatuses"]
    assert status["state"]["terminated"]["exitCode"] == 137
    assert inside(place, "b", "print('alive')") == "alive"


def test_losing_a_spot_node_marks_it_and_evicts_its_pods(place: Rig) -> None:
    run(place, pod("a", "spot", SERVER, nodeName="spot-1"), pod("b", "spot", SERVER, nodeName="spot-0"))
    address = place.get("pod", "a", "-n", NAMESPACE)["status"]["podIP"]
    place.node("spot-1").lose()
    try:
        assert not _answers(address)  # its containers died with it

        def evicted() -> bool:
            return "deletionTimestamp" in place.get("pod", "a", "-n", NAMESPACE)["metadata"]

        until(evicted)
        taints = {taint["key"] for taint in place.get("node", "spot-1")["spec"]["taints"]}
        assert "node.kubernetes.io/unreachable" in taints
        assert "deletionTimestamp" not in place.get("pod", "b", "-n", NAMESPACE)["metadata"]
    finally:
        place.node("spot-1").start()
        place.await_ready("spot-1")
    run(place, pod("c", "spot", SERVER, nodeName="spot-1"))


def test_killing_a_kubelet_leaves_zombies_that_still_serve(place: Rig) -> None:
    run(place, pod("a", "spot", SERVER, nodeName="spot-0"))
    address = place.get("pod", "a", "-n", NAMESPACE)["status"]["podIP"]
    place.node("spot-0").kill_kubelet()
    try:

        def unknown() -> bool:
            conditions = place.get("node", "spot-0")["status"]["conditions"]
            return any(c["type"] == "Ready" and c["status"] == "Unknown" for c in conditions)

        until(unknown)
        assert _answers(address)
    finally:
        place.node("spot-0").start()
        place.await_ready("spot-0")


def _answers(address: str) -> bool:
    script = f"import socket; socket.create_connection(('{address}', 8000), timeout=2)"
    return subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
