"""A node: a kubelet and a containerd of its own, in PID and mount namespaces of their own.

Losing a node for good is therefore one SIGKILL to the namespace's first process: the kernel takes kubelet,
containerd, shims and containers in one go, as a power cut would, and the node's mounts with them.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig.control_plane import DNS_DOMAIN, Layout
from tests.rig.images import PAUSE
from tests.rig.sandbox import Daemon, Sandbox
from tests.rig.toolchain import CONTAINERD, KUBERNETES

POOL_LABEL = "alignment.run/pool"
SPOT_TAINT = {"key": "alignment.run/spot", "value": "true", "effect": "NoSchedule"}
CNI_PLUGINS = "/usr/lib/cni"
SOCKET = "/run/containerd/containerd.sock"  # each node has a /run of its own
# The kubelet sets these kernel-wide settings where it finds others. It is shown files that already hold what it
# wants, so the machine keeps its own.
KERNEL_SETTINGS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


@dataclass(frozen=True)
class NodeSpec:
    """What a test asks for: a name and a pool (`onDemand`, `spot`, or one that no trainer asks for).

    unsafe_sysctls: what pods may set there beyond the safe ones; a pod that asks for more is turned away on arrival.
    """

    name: str
    pool: str
    unsafe_sysctls: tuple[str, ...] = ()

    @property
    def taints(self) -> list[dict[str, str]]:
        return [SPOT_TAINT] if self.pool == "spot" else []


DEFAULT_NODES = (NodeSpec("ondemand-0", "onDemand"), NodeSpec("spot-0", "spot"), NodeSpec("spot-1", "spot"))


@dataclass
class Node:
    """One node's processes. Its disk (images, the kubelet's folder) outlives them, as a machine's does."""

    spec: NodeSpec
    index: int
    layout: Layout
    rig: Sandbox
    images: list[Path]
    sandbox: Sandbox | None = None
    containerd: Daemon | None = None
    kubelet: Daemon | None = None
    imported: set[Path] = field(default_factory=set)

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def settings(self) -> Path:
        """Configuration files, written from outside."""
        return self.layout.slot.work / "nodes" / self.name

    @property
    def disk(self) -> Path:
        """containerd's and the kubelet's data, on the rig's own disk: only processes inside see it."""
        return self.layout.disk / self.name

    def start(self) -> None:
        """Boot the node, or only its kubelet where that alone was killed. Ready a few seconds later."""
        self.boot()
        self.start_kubelet()

    def boot(self) -> None:
        """containerd with its images; the API server need not answer yet."""
        if self.sandbox is None or not self.sandbox.alive:
            self.sandbox = Sandbox.unshare("--mount", "--pid", "--uts", cgroups=self.rig.cgroups, inside=self.rig)
            self._prepare_disk(self.sandbox)
            self._mount(self.sandbox)
            self._start_containerd(self.sandbox)
        for archive in self.images:
            self.import_image(archive)

    def start_kubelet(self) -> None:
        if self.sandbox is None:
            raise RuntimeError(f"{self.name} has not booted")
        if self.kubelet is None or not self.kubelet.alive:
            config = self._write("kubelet.json", kubelet_config(self))
            self.kubelet = self.sandbox.spawn("kubelet", kubelet_command(self, config), self._log("kubelet"))

    def lose(self) -> None:
        """The machine is gone: kubelet, containerd and every container, at once and without a goodbye."""
        if self.sandbox is not None:
            self.sandbox.end()

    def kill_kubelet(self) -> None:
        """The node goes silent while its containers run on: zombies behind a partition."""
        if self.kubelet is None:
            raise RuntimeError(f"{self.name} has no kubelet to kill: start it first")
        self.kubelet.kill()

    def import_image(self, archive: Path) -> None:
        if self.sandbox is None or archive in self.imported:
            return
        self.ctr("images", "import", str(archive), timeout=600)
        self.imported.add(archive)

    def ctr(self, *arguments: str, timeout: float = 120) -> str:
        """containerd's own client, in Kubernetes' namespace. Returns its stdout."""
        if self.sandbox is None:
            raise RuntimeError(f"{self.name} has not booted")
        return self.sandbox.run(str(CONTAINERD.folder / "ctr"), "-n", "k8s.io", *arguments, timeout=timeout)

    def kill_container(self, container_id: str) -> None:
        """SIGKILL to a container's main process, on the host's side."""
        if self.sandbox is None:
            raise RuntimeError(f"{self.name} has not booted")
        tasks = (line.split() for line in self.ctr("tasks", "list").splitlines()[1:])
        pids = {name: pid for name, pid, *_ in tasks}
        self.sandbox.run("sh", "-c", f"kill -KILL {pids[container_id]}")  # built in: no package of its own

    def _prepare_disk(self, sandbox: Sandbox) -> None:
        folders = ("containerd", "kubelet", "log/pods", "flexvolume", "cni")
        sandbox.run("rm", "-rf", str(self.disk / "cni"))  # addresses of pods that died with the node's last life
        sandbox.run("mkdir", "-p", *(str(self.disk / folder) for folder in folders))
        for folder in ("cni.d", "sysctl"):
            (self.settings / folder).mkdir(parents=True, exist_ok=True)
        self._write("cni.d/10-rig.conflist", cni_config(self))

    def _mount(self, sandbox: Sandbox) -> None:
        """A /run, a /var/log, a /var/lib/kubelet and kernel settings of the node's own."""
        sandbox.run("mount", "-t", "tmpfs", "tmpfs", "/run")
        sandbox.run("mount", "--bind", str(self.disk / "log"), "/var/log")
        sandbox.run("mount", "--bind", str(self.disk / "kubelet"), "/var/lib/kubelet")
        sandbox.run("hostname", self.name)
        for setting, value in KERNEL_SETTINGS.items():
            shown = self.settings / "sysctl" / setting.replace("/", ".")
            shown.write_text(f"{value}\n")
            sandbox.run("mount", "--bind", str(shown), f"/proc/sys/{setting}")

    def _start_containerd(self, sandbox: Sandbox) -> None:
        config = self.settings / "containerd.toml"
        config.write_text(containerd_config(self))
        path = f"{CONTAINERD.folder}:/usr/local/sbin:/usr/sbin:/sbin:{os.environ.get('PATH', '')}"
        command = [str(CONTAINERD.folder / "containerd"), f"--config={config}"]
        self.containerd = sandbox.spawn("containerd", command, self._log("containerd"), {"PATH": path})
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ctr("version")
                return
            except RuntimeError as silent:
                if time.monotonic() > deadline or not self.containerd.alive:
                    tail = self.containerd.tail()
                    raise RuntimeError(f"{self.name}: containerd does not answer:\n{tail}") from silent
            time.sleep(0.1)

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        file = self.settings / name
        file.write_text(json.dumps(content, indent=1))
        return file

    def _log(self, name: str) -> Path:
        return self.layout.log(f"{self.name}-{name}")


def containerd_config(node: Node) -> str:
    snapshotters = [f"io.containerd.snapshotter.v1.{name}" for name in ("btrfs", "devmapper", "erofs", "zfs")]
    disabled = ", ".join(f'"{name}"' for name in ["io.containerd.nri.v1.nri", *snapshotters])
    return f"""version = 3
root = "{node.disk / "containerd"}"
disabled_plugins = [{disabled}]

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["{CNI_PLUGINS}"]
conf_dir = "{node.settings / "cni.d"}"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
"""


def cni_config(node: Node) -> dict[str, Any]:
    """One bridge for all nodes, with a range of addresses for each, so that pods reach each other directly."""
    first, last = node.layout.slot.pod_range(node.index)
    subnet = {"subnet": node.layout.slot.pod_network, "rangeStart": first, "rangeEnd": last}
    subnet["gateway"] = node.layout.slot.gateway
    bridge = {
        "type": "bridge",
        "bridge": "rig0",
        "isGateway": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(node.disk / "cni"),
            "ranges": [[subnet]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    return {
        "cniVersion": "1.0.0",
        "name": "rig",
        "plugins": [bridge, {"type": "portmap", "capabilities": {"portMappings": True}}],
    }


def kubelet_config(node: Node) -> dict[str, Any]:
    """Each node has ports of its own (they share a network), and a heartbeat that a lost node misses in seconds."""
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": node.layout.slot.gateway,
        "port": 10250 + 10 * node.index,
        "healthzPort": 10248 + 10 * node.index,
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "clusterDNS": [node.layout.slot.gateway],
        "clusterDomain": DNS_DOMAIN,
        "resolvConf": "",
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "registerWithTaints": node.spec.taints,
        "nodeLeaseDurationSeconds": 6,
        "nodeStatusUpdateFrequency": "3s",
        "volumePluginDir": str(node.disk / "flexvolume"),
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupsPerQOS": False,
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "makeIPTablesUtilChains": False,
        "protectKernelDefaults": True,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "shutdownGracePeriod": "0s",
        "maxPods": 200,
        "allowedUnsafeSysctls": list(node.spec.unsafe_sysctls),
        "registryPullQPS": 0,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
    }


def kubelet_command(node: Node, config: Path) -> list[str]:
    return [
        str(KUBERNETES.folder / "kubelet"),
        f"--config={config}",
        f"--kubeconfig={node.layout.kubeconfig(f'system:node:{node.name}')}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.layout.slot.gateway}",
        f"--node-labels={POOL_LABEL}={node.spec.pool}",
    ]
