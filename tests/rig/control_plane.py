"""Command lines and configuration of the control plane: pure builders, one per component.

All of them run in the rig's network namespace, so they use the ports their documentation names.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rig.images import PAUSE
from tests.rig.slots import Slot
from tests.rig.toolchain import COREDNS, KUBERNETES, LOCAL_PATH

GATES = "--feature-gates=GenericWorkload=true"  # PodGroups (gang scheduling): off by default in 1.37
DNS_DOMAIN = "cluster.local"
ADMIN = "admin"
# A node that stops answering is Unknown after this long: seconds, where production waits 50.
NODE_GRACE_SECONDS = 8
DYNAMIC_STORAGE_CLASS = "rig"
NODE_STORAGE_CLASS = "rig-node"
"""Its volumes are ReadWriteOnce and stay on one node, as cloud disks and local ones do."""


@dataclass
class Credentials:
    """Static bearer tokens, one per user of this rig."""

    tokens: dict[str, str] = field(default_factory=dict)

    def token(self, user: str) -> str:
        return self.tokens.setdefault(user, secrets.token_hex(16))

    def as_csv(self, nodes: list[str]) -> str:
        """The API server's token file: token, user, uid, groups."""
        rows = [f'{self.token(ADMIN)},{ADMIN},{ADMIN},"system:masters"']
        users = [f"system:node:{node}" for node in nodes]
        rows += [f'{self.token(user)},{user},{user},"system:nodes"' for user in users]
        return "\n".join(rows) + "\n"


@dataclass(frozen=True)
class Layout:
    """Where the control plane's files lie below a slot's work folder."""

    slot: Slot

    @property
    def api_address(self) -> str:
        return f"https://{self.slot.gateway}:6443"

    @property
    def certificates(self) -> Path:
        return self.slot.work / "certificates"

    @property
    def ca(self) -> Path:
        """The API server's self-signed certificate: its own authority."""
        return self.certificates / "apiserver.crt"

    @property
    def key(self) -> Path:
        return self.certificates / "apiserver.key"

    @property
    def service_account_key(self) -> Path:
        return self.slot.work / "service-account.key"

    @property
    def tokens(self) -> Path:
        return self.slot.work / "tokens.csv"

    @property
    def disk(self) -> Path:
        """Where the nodes' disk is mounted, inside the rig."""
        return self.slot.work / "disk"

    @property
    def dynamic_volumes(self) -> Path:
        return self.slot.work / "dynamic-volumes"

    def kubeconfig(self, user: str) -> Path:
        return self.slot.work / "kubeconfig" / user.replace(":", "-")

    def log(self, name: str) -> Path:
        return self.slot.work / "logs" / f"{name}.log"


def kubeconfig(layout: Layout, token: str) -> dict[str, Any]:
    """A client's configuration (JSON is YAML)."""
    cluster = {"server": layout.api_address, "certificate-authority": str(layout.ca)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "rig", "cluster": cluster}],
        "users": [{"name": "user", "user": {"token": token}}],
        "contexts": [{"name": "rig", "context": {"cluster": "rig", "user": "user"}}],
        "current-context": "rig",
    }


def certificate_request(layout: Layout) -> list[str]:
    """openssl's command for a certificate that serves every name and address of the API server."""
    first_service = ".".join([*layout.slot.service_network.split(".")[:3], "1"])
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    names.append(f"kubernetes.default.svc.{DNS_DOMAIN}")
    subjects = [f"DNS:{name}" for name in names]
    subjects += [f"IP:{address}" for address in ("127.0.0.1", layout.slot.gateway, first_service)]
    return [
        *("openssl", "req", "-x509", "-nodes", "-days", "30", "-subj", "/CN=rig"),
        *("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-keyout", str(layout.key), "-out", str(layout.ca)),
        *("-addext", f"subjectAltName={','.join(subjects)}"),
        *("-addext", "keyUsage=critical,digitalSignature,keyCertSign"),
        *("-addext", "extendedKeyUsage=serverAuth"),
    ]


def etcd(layout: Layout) -> list[str]:
    data = layout.slot.work / "etcd"
    return [str(KUBERNETES.folder / "etcd"), f"--data-dir={data}", "--unsafe-no-fsync", "--log-level=warn"]


def apiserver(layout: Layout) -> list[str]:
    return [
        str(KUBERNETES.folder / "kube-apiserver"),
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=0.0.0.0",
        f"--advertise-address={layout.slot.gateway}",
        f"--tls-cert-file={layout.ca}",
        f"--tls-private-key-file={layout.key}",
        f"--token-auth-file={layout.tokens}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={layout.slot.service_network}",
        f"--service-account-issuer=https://kubernetes.default.svc.{DNS_DOMAIN}",
        f"--service-account-key-file={layout.service_account_key}",
        f"--service-account-signing-key-file={layout.service_account_key}",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
        "--runtime-config=scheduling.k8s.io/v1beta1=true",
        "--profiling=false",
        GATES,
    ]


def controller_manager(layout: Layout) -> list[str]:
    return [
        str(KUBERNETES.folder / "kube-controller-manager"),
        f"--kubeconfig={layout.kubeconfig(ADMIN)}",
        f"--root-ca-file={layout.ca}",
        f"--service-account-private-key-file={layout.service_account_key}",
        "--node-monitor-period=1s",
        f"--node-monitor-grace-period={NODE_GRACE_SECONDS}s",
        f"--flex-volume-plugin-dir={layout.slot.work / 'flexvolume'}",  # its default would be created on the host
        "--leader-elect=false",
        GATES,
    ]


def scheduler(layout: Layout) -> list[str]:
    binary = str(KUBERNETES.folder / "kube-scheduler")
    return [binary, f"--kubeconfig={layout.kubeconfig(ADMIN)}", "--leader-elect=false", GATES]


def proxy_config(layout: Layout, node: str) -> dict[str, Any]:
    """kube-proxy's, once for all nodes: they share the rig's network namespace.

    masqueradeAll: pods of one bridge answer each other directly; the source has to be the bridge for the answer to
    pass the translation back.
    """
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "bindAddress": layout.slot.gateway,
        "clientConnection": {"kubeconfig": str(layout.kubeconfig(ADMIN))},
        "clusterCIDR": layout.slot.pod_network,
        "hostnameOverride": node,
        "iptables": {"masqueradeAll": True, "minSyncPeriod": "0s"},
        "conntrack": {"maxPerCore": 0},
    }


def proxy(layout: Layout, config: Path) -> list[str]:
    return [str(KUBERNETES.folder / "kube-proxy"), f"--config={config}"]


def corefile(layout: Layout) -> str:
    """Cluster names only: a pod of the rig has no way out. TTL 0, so that a test sees a new pod at once."""
    return f"""{DNS_DOMAIN}:53 in-addr.arpa:53 {{
    bind {layout.slot.gateway}
    errors
    ready {layout.slot.gateway}:8181
    kubernetes {DNS_DOMAIN} in-addr.arpa {{
        kubeconfig {layout.kubeconfig(ADMIN)}
        ttl 0
    }}
}}
"""


def dns_readiness(layout: Layout) -> str:
    """CoreDNS answers 200 there once it has read the cluster's services."""
    return f"http://{layout.slot.gateway}:8181/ready"


def coredns(layout: Layout, config: Path) -> list[str]:
    return [str(COREDNS.folder / "coredns"), "-conf", str(config)]


def volume_provisioner(layout: Layout, config: Path, helper_pod: Path) -> list[str]:
    """rancher/local-path-provisioner behind both StorageClasses, as k3s and kind ship it.

    Preferred to a pool of ready-made volumes: claims of any size and access mode bind, and a deleted claim's data
    really goes.
    """
    return [
        str(LOCAL_PATH.folder / "local-path-provisioner"),
        "start",
        f"--config={config}",
        f"--helper-pod-file={helper_pod}",
        f"--helper-image={PAUSE}",
        f"--kubeconfig={layout.kubeconfig(ADMIN)}",
        "--namespace=kube-system",
        "--service-account-name=default",
    ]


def storage_config(layout: Layout) -> dict[str, Any]:
    """The provisioner's. `sharedFileSystemPath` makes every volume one folder seen by all nodes, so ReadWriteMany
    holds; a volume below `nodePathMap` is bound to its first pod's node."""
    folder = str(layout.dynamic_volumes)
    anywhere = {"node": "DEFAULT_PATH_FOR_NON_LISTED_NODES", "paths": [folder]}
    classes = {
        DYNAMIC_STORAGE_CLASS: {"sharedFileSystemPath": folder},
        NODE_STORAGE_CLASS: {"nodePathMap": [anywhere]},
    }
    return {"storageClassConfigs": classes}


def storage_objects() -> list[dict[str, Any]]:
    """The StorageClasses, and the scripts with which the provisioner's helper pods make and remove folders."""
    default = {"storageclass.kubernetes.io/is-default-class": "true"}
    scripts = {"setup": 'set -eu\nmkdir -m 0777 -p "$VOL_DIR"\n', "teardown": 'set -eu\nrm -rf "$VOL_DIR"\n'}
    return [
        _storage_class({"name": DYNAMIC_STORAGE_CLASS, "annotations": default}, "Immediate"),
        _storage_class({"name": NODE_STORAGE_CLASS}, "WaitForFirstConsumer"),
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "local-path-config", "namespace": "kube-system"},
            "data": scripts,
        },
    ]


def _storage_class(metadata: dict[str, Any], binding: str) -> dict[str, Any]:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": metadata,
        "provisioner": "rancher.io/local-path",
        "reclaimPolicy": "Delete",
        "volumeBindingMode": binding,
    }


def helper_pod() -> dict[str, Any]:
    """The provisioner fills in command and volumes."""
    container = {"name": "helper-pod", "image": PAUSE, "imagePullPolicy": "Never"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "helper-pod"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }
