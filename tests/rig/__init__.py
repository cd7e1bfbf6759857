"""A real Kubernetes on one machine, for tests and for people: no registry, no cloud, no fake.

    with Rig.start() as rig:                        # etcd to kube-proxy, CoreDNS, three nodes: some 15 s when warm
        rig.kubectl("get", "nodes")                 # -> stdout; CalledProcessError carries stderr
        rig.apply({"apiVersion": "v1", "kind": "Pod", ...})
        rig.get("pod", "policy-0")["status"]        # -> dict

Nodes: `ondemand-0`, `spot-0`, `spot-1`, labelled `alignment.run/pool=onDemand|spot`; spot nodes carry the taint
`alignment.run/spot=true:NoSchedule`. Each is a kubelet with a containerd of its own, in its own PID and mount
namespace. `Rig.start(nodes=[NodeSpec("a", "spot")])` makes others; `Rig.start(nodes=())` only etcd, API server and
controller-manager (4 s). The gate GenericWorkload (gang scheduling, scheduling.k8s.io/v1beta1) is on.

What a test may do
  rig.kubeconfig                                    an administrator's, valid on this machine and in child processes
  rig.helm("install", ...)                          helm 3, with its caches inside the rig
  rig.node("spot-0").lose()                         power cut: kubelet, containerd and containers gone at once
  rig.node("spot-0").kill_kubelet()                 silence, containers run on: zombies behind a partition
  rig.node("spot-0").start()                        boots it again, or only its kubelet; then rig.await_ready("spot-0")
  rig.kill_container("pod", namespace, container)   SIGKILL to the container's main process, on the host's side
  rig.shared_volume("data", namespace)              a folder here, and a bound ReadWriteMany claim on every node
  rig.build_image("operator", "localhost/alignment-operator:test")   a target of our Dockerfile, into every node
  rig.import_image(tar)                             a docker-archive tar, into every node
  rig.log("spot-0-kubelet")                         what a component wrote
  trainer_pod_template(), platform_values()         pods of `BASE` that see this checkout and its virtual environment
  install_operator(rig)                             the operator's image and chart, with those values
  make_example_claims(rig, namespace)               what examples/dpo.yaml reads: the model and the data, in claims

Claims without a class get a folder from the default StorageClass `rig` (any access mode), those of the class
`rig-node` one that stays on a node (ReadWriteOnce). Pods reach each other, the services and this machine
(`rig.slot.host_address`), and nothing beyond. Pods, services and the API server are reachable from this machine by
address. NetworkPolicies are stored and not enforced (the bridge plugin has none).
Images: `BASE` (Debian bookworm with Python 3.11, any user) and what was imported; use `imagePullPolicy: Never`.
A lost node is Unknown after about 10 s. Every node reports the whole machine's CPUs and memory.

Fixtures (tests/rig/fixtures.py): `rig` and `control_plane`, one each per session. Without root or Go they skip and
say why; with CI=true that is a failure. What is built once lies in `$ALIGNMENT_RIG_CACHE`, else below the user's
cache folder; `python -m tests.rig build` fills it, `up` runs a cluster in the foreground, `clean` removes what a
rig killed together with its guardian left. See `guardian` for how nothing is left otherwise.
"""

from tests.rig.cluster import Rig, prepare
from tests.rig.images import BASE
from tests.rig.node import DEFAULT_NODES, NodeSpec
from tests.rig.paths import RigUnavailable
from tests.rig.product import (
    EXAMPLE,
    image_values,
    install_chart,
    install_operator,
    make_example_claims,
    platform_values,
    trainer_pod_template,
)

__all__ = [
    "BASE",
    "DEFAULT_NODES",
    "EXAMPLE",
    "NodeSpec",
    "Rig",
    "RigUnavailable",
    "image_values",
    "install_chart",
    "install_operator",
    "make_example_claims",
    "platform_values",
    "prepare",
    "trainer_pod_template",
]
