"""Starts, hands out and ends one cluster."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.rig import control_plane, debian, images
from tests.rig.control_plane import ADMIN, Credentials, Layout
from tests.rig.node import DEFAULT_NODES, Node, NodeSpec
from tests.rig.paths import REPOSITORY, RigUnavailable
from tests.rig.sandbox import Daemon, Sandbox, host_command
from tests.rig.slots import CGROUP_ROOT, Slot, cgroup_hierarchies, is_cgroup_v2
from tests.rig.toolchain import ALL_SETS, CONTROL_PLANE_SETS, HELM, KUBERNETES, ensure_built

READY_SECONDS = 300  # for what takes seconds here
DISK_SIZE = "64G"  # sparse: it takes what is written
# Bridged frames skip iptables: with br_netfilter the first packet to a service is lost while its translated target's
# hardware address is unknown. kube-proxy's rules see what is routed, and all service traffic is (masqueradeAll).
FORWARD = """
echo 1 > /proc/sys/net/ipv4/ip_forward
bridged=/proc/sys/net/bridge/bridge-nf-call-iptables
if [ -e $bridged ]; then echo 0 > $bridged; fi
"""
# The kubelet has paths below /var/lib that no flag moves. Inside, /var/lib is an overlay: what it writes stays there.
OWN_VAR_LIB = """
mkdir -p /run/work "$1/disk/var-lib/upper" "$1/disk/var-lib/scratch"
mount --rbind "$1" /run/work
layers=lowerdir=/var/lib,upperdir=$1/disk/var-lib/upper,workdir=$1/disk/var-lib/scratch
mount -t overlay overlay -o "$layers" /var/lib
mount --rbind /run/work "$1"
umount --recursive --lazy /run/work
mkdir -p /var/lib/kubelet
"""


def prepare(control_plane_only: bool = False) -> None:
    """Everything that is made once and kept: packages, binaries, images. Raises RigUnavailable."""
    if os.geteuid() != 0:
        raise RigUnavailable("the rig makes namespaces, links and mounts: run as root")
    debian.ensure_packages(debian.CONTROL_PLANE_PACKAGES if control_plane_only else debian.NODE_PACKAGES)
    for binaries in CONTROL_PLANE_SETS if control_plane_only else ALL_SETS:
        ensure_built(binaries)
    if not control_plane_only:
        images.busybox_image()
        images.base_image()


@dataclass
class Rig:
    """A running cluster. Use it as a context manager, or call `stop`."""

    slot: Slot
    guardian: subprocess.Popen[str]
    sandbox: Sandbox
    credentials: Credentials = field(default_factory=Credentials)
    nodes: dict[str, Node] = field(default_factory=dict)
    components: dict[str, Daemon] = field(default_factory=dict)

    @classmethod
    def start(cls, nodes: Sequence[NodeSpec] = DEFAULT_NODES) -> Rig:
        """A cluster whose nodes are Ready. Without nodes: etcd, API server and controller-manager alone."""
        prepare(control_plane_only=not nodes)
        rig = cls.enter_slot()
        try:
            rig._build_machine()
            rig._start_components(nodes)
        except BaseException:
            rig.stop()
            raise
        return rig

    @classmethod
    def enter_slot(cls) -> Rig:
        """Have a guardian make the namespaces; nothing runs in them yet."""
        guardian = subprocess.Popen(
            [sys.executable, "-m", "tests.rig.guardian"],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert guardian.stdout is not None
        answer = guardian.stdout.readline()
        if not answer:
            guardian.communicate()
            raise RuntimeError(f"the rig's guardian ended with {guardian.returncode}; its complaint stands above")
        made = json.loads(answer)
        return cls(Slot(made["slot"]), guardian, Sandbox(made["init"], [Path(group) for group in made["cgroups"]]))

    @property
    def layout(self) -> Layout:
        return Layout(self.slot)

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig; it works on the machine itself."""
        return self.layout.kubeconfig(ADMIN)

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 300) -> str:
        """Run kubectl as administrator; returns stdout. Raises CalledProcessError, with stderr, when it fails."""
        command = [str(KUBERNETES.folder / "kubectl"), f"--cache-dir={self.slot.work / 'kubectl'}", *arguments]
        return self._client(command, stdin, timeout)

    def helm(self, *arguments: str, timeout: float = 600) -> str:
        """Run helm as administrator; returns stdout. Raises CalledProcessError, with stderr, when it fails."""
        return self._client([str(HELM.folder / "helm"), *arguments], None, timeout)

    def get(self, *arguments: str) -> dict[str, Any]:
        """`kubectl get ... -o json`, read."""
        found: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json"))
        return found

    def ask(self, path: str, timeout: float) -> HTTPResponse:
        """GET a path of the API as administrator; seconds of silence until TimeoutError."""
        request = urllib.request.Request(f"{self.layout.api_address}{path}")
        request.add_header("Authorization", f"Bearer {self.credentials.token(ADMIN)}")
        context = ssl.create_default_context(cafile=str(self.layout.ca))
        answer: HTTPResponse = urllib.request.urlopen(request, context=context, timeout=timeout)
        return answer

    def apply(self, *objects: Mapping[str, Any]) -> None:
        """`kubectl apply` of some manifests."""
        listing = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", "-f", "-", stdin=json.dumps(listing))

    def log(self, component: str) -> str:
        """What a component wrote: `apiserver`, `coredns`, `spot-0-kubelet`, ..."""
        return self.layout.log(component).read_text(errors="replace")

    def node(self, name: str) -> Node:
        return self.nodes[name]

    def import_image(self, archive: Path) -> None:
        """Give every node the image of a docker-archive tar; pods use it with `imagePullPolicy: Never`."""
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda node: node.import_image(archive), self.nodes.values()))
        for node in self.nodes.values():
            if archive not in node.images:
                node.images.append(archive)

    def build_image(self, target: str, name: str, build_args: Mapping[str, str] | None = None) -> None:
        """Build a target of the repository's Dockerfile (cached by content) and import it under `name`."""
        self.import_image(images.build_archive(target, name, build_args))

    def kill_container(self, pod: str, namespace: str = "default", container: str | None = None) -> None:
        """SIGKILL the main process of a pod's container (its first, if not named), as the OOM killer would."""
        found = self.get("pod", pod, "-n", namespace)
        statuses = found["status"]["containerStatuses"]
        status = next(s for s in statuses if container in (None, s["name"]))
        self.node(found["spec"]["nodeName"]).kill_container(status["containerID"].removeprefix("containerd://"))

    def shared_volume(self, name: str, namespace: str = "default", mode: str = "ReadWriteMany") -> Path:
        """A folder of this machine as a bound claim `name` of that access mode on every node; returns the folder.

        Any user may write there (hostPath volumes ignore fsGroup).
        """
        folder = self.slot.work / "volumes" / namespace / name
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        shape = {"accessModes": [mode], "storageClassName": ""}
        volume = f"{namespace}-{name}"
        spec = shape | {"capacity": {"storage": "100Gi"}, "hostPath": {"path": str(folder)}}
        claim = shape | {"volumeName": volume, "resources": {"requests": {"storage": "100Gi"}}}
        self.apply(
            {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume}, "spec": spec},
            {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": {"name": name, "namespace": namespace},
                "spec": claim,
            },
        )
        self.kubectl("wait", "-n", namespace, f"pvc/{name}", "--for=jsonpath={.status.phase}=Bound", "--timeout=240s")
        return folder

    def stop(self) -> None:
        """End the cluster and remove every trace; returns when that is done."""
        assert self.guardian.stdin is not None
        assert self.guardian.stdout is not None
        self.guardian.stdin.close()
        code = self.guardian.wait(timeout=300)
        self.guardian.stdout.close()
        self.sandbox.reap()
        if code:
            raise RuntimeError(f"the rig's guardian ended with {code}: it may have left {self.slot.work}")

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _node_daemons(self) -> list[Daemon]:
        return [daemon for node in self.nodes.values() for daemon in (node.kubelet, node.containerd) if daemon]

    def _client(self, command: list[str], stdin: str | None, timeout: float) -> str:
        scratch = str(self.slot.work / "helm")
        homes = dict.fromkeys(("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"), scratch)
        env = {**os.environ, "KUBECONFIG": str(self.kubeconfig), **homes}
        done = subprocess.run(command, input=stdin, env=env, text=True, capture_output=True, timeout=timeout)
        if done.returncode:
            failed = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
            failed.add_note(done.stderr)
            raise failed
        return done.stdout

    def _build_machine(self) -> None:
        """Inside the namespaces: this rig's cgroups as if they were the machine's, a /run, the bridge."""
        run = self.sandbox.run
        run("mount", "-t", "tmpfs", "tmpfs", "/run")
        self._show_own_cgroups()
        run("ip", "link", "set", "lo", "up")
        # A fixed hardware address: a bridge otherwise takes its lowest port's, and everybody's ARP entry for the
        # gateway goes stale whenever a pod comes or goes.
        run("ip", "link", "add", "rig0", "address", "02:00:0a:58:00:01", "type", "bridge")
        run("ip", "address", "add", f"{self.slot.gateway}/16", "dev", "rig0")
        run("ip", "link", "set", "uplink", "master", "rig0", "up")
        run("ip", "link", "set", "rig0", "up")
        run("sh", "-c", FORWARD)

    def _show_own_cgroups(self) -> None:
        """Replace the machine's cgroup mounts: cAdvisor and the shims take the first that they find."""
        trees = cgroup_hierarchies()
        run = self.sandbox.run
        run("umount", "--recursive", "--lazy", str(CGROUP_ROOT))
        if is_cgroup_v2():
            run("mount", "-t", "cgroup2", "cgroup2", str(CGROUP_ROOT))
            return
        run("mount", "-t", "tmpfs", "tmpfs", str(CGROUP_ROOT))
        for tree in trees:
            run("mkdir", str(tree))
            option = "none,name=systemd" if tree.name == "systemd" else tree.name
            run("mount", "-t", "cgroup", "-o", option, tree.name, str(tree))

    def _mount_disk(self) -> None:
        """One sparse file as the nodes' disk: removing it takes no time, where 30,000 files take half a minute."""
        disk = self.slot.work / "disk.ext4"
        host_command("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", "-E", "nodiscard", str(disk), DISK_SIZE)
        self.layout.disk.mkdir()
        self.sandbox.run("mount", "-o", "loop,noatime", str(disk), str(self.layout.disk))
        self.sandbox.run("sh", "-euc", OWN_VAR_LIB, "sh", str(self.slot.work))

    def _start_components(self, nodes: Sequence[NodeSpec]) -> None:
        layout = self.layout
        if nodes:
            self._mount_disk()
        self._write_credentials([node.name for node in nodes])
        self._spawn("etcd", control_plane.etcd(layout))
        self._spawn("apiserver", control_plane.apiserver(layout))
        with ThreadPoolExecutor() as pool:
            preset = [images.busybox_image(), images.base_image()] if nodes else []
            for index, spec in enumerate(nodes):
                self.nodes[spec.name] = Node(spec, index, layout, self.sandbox, list(preset))
            booting = [pool.submit(node.boot) for node in self.nodes.values()]
            self._await_api()
            self._spawn("controller-manager", control_plane.controller_manager(layout))
            if nodes:
                self._start_services(nodes[0].name)
            for boot in booting:
                boot.result()
        for node in self.nodes.values():
            node.start_kubelet()
        self._await_cluster()

    def _start_services(self, first_node: str) -> None:
        layout = self.layout
        self._spawn("scheduler", control_plane.scheduler(layout))
        proxy_config = self._write("kube-proxy.json", control_plane.proxy_config(layout, first_node))
        self._spawn("kube-proxy", control_plane.proxy(layout, proxy_config))
        corefile = self.slot.work / "Corefile"
        corefile.write_text(control_plane.corefile(layout))
        self._spawn("coredns", control_plane.coredns(layout, corefile))
        self.apply(*control_plane.storage_objects())
        layout.dynamic_volumes.mkdir()
        storage = self._write("local-path.json", control_plane.storage_config(layout))
        helper = self._write("helper-pod.json", control_plane.helper_pod())
        self._spawn("volumes", control_plane.volume_provisioner(layout, storage, helper))

    def _write_credentials(self, nodes: list[str]) -> None:
        layout = self.layout
        for folder in (layout.certificates, self.kubeconfig.parent):
            folder.mkdir(mode=0o700)
        host_command(*control_plane.certificate_request(layout))
        key = host_command("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout")
        layout.service_account_key.write_text(key)
        layout.tokens.write_text(self.credentials.as_csv(nodes))
        for user in [ADMIN, *(f"system:node:{node}" for node in nodes)]:
            config = control_plane.kubeconfig(layout, self.credentials.token(user))
            layout.kubeconfig(user).write_text(json.dumps(config, indent=1))

    def _spawn(self, name: str, command: list[str]) -> None:
        self.components[name] = self.sandbox.spawn(name, command, self.layout.log(name))

    def _write(self, name: str, content: dict[str, Any]) -> Path:
        file = self.slot.work / name
        file.write_text(json.dumps(content, indent=1))
        return file

    def _await_api(self) -> None:
        self._await("the API server's /readyz", self._api_ready)

    def _api_ready(self) -> bool:
        if not self.layout.ca.exists():
            return False
        try:
            with self.ask("/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ssl.SSLError, TimeoutError, ConnectionError):
            return False

    def _dns_ready(self) -> bool:
        try:
            with urllib.request.urlopen(control_plane.dns_readiness(self.layout), timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False

    def _await_cluster(self) -> None:
        def accounts_made() -> bool:
            return bool(self.get("serviceaccounts", "-n", "default")["items"])

        self._await("the default service account", accounts_made)
        if self.nodes:
            self._await("CoreDNS", self._dns_ready)
            self.await_ready(*self.nodes)

    def await_ready(self, *nodes: str) -> None:
        """Until these nodes are Ready and schedulable (the taint of their start is gone)."""

        def all_ready() -> bool:
            found = {item["metadata"]["name"]: item for item in self.get("nodes")["items"]}
            return all(name in found and _is_ready(found[name]) for name in nodes)

        self._await(f"nodes {', '.join(nodes)} to be Ready", all_ready)

    def _await(self, what: str, holds: Callable[[], bool]) -> None:
        """Until it holds, a component dies, or far longer has passed than a slow machine takes."""
        deadline = time.monotonic() + READY_SECONDS
        while not holds():
            dead = [d for d in [*self.components.values(), *self._node_daemons()] if not d.alive]
            if dead or time.monotonic() > deadline:
                tails = "\n".join(f"--- {d.name} ({d.log.name})\n{d.tail()}" for d in dead or self.components.values())
                raise RuntimeError(f"waited for {what}; {len(dead)} components died\n{tails}")
            time.sleep(0.2)


def _is_ready(node: Mapping[str, Any]) -> bool:
    conditions = {c["type"]: c["status"] for c in node.get("status", {}).get("conditions", [])}
    starting = [t for t in node["spec"].get("taints", []) if t["key"].startswith("node.kubernetes.io/")]
    return conditions.get("Ready") == "True" and not starting
