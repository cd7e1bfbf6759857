"""The pod of one role instance."""

from __future__ import annotations

from decimal import ROUND_UP, Decimal

from alignment_api.contract.context import ADDRESS_VARIABLE, CONTEXT_VARIABLE
from alignment_api.contract.job import AlignmentJob
from alignment_api.contract.platform import Platform, Pool
from alignment_api.contract.quantity import quantity_value
from alignment_api.contract.roles import PORT, ROLES
from alignment_api.contract.status import ImagePin
from alignment_operator import names
from alignment_operator.places import Mount, mounts
from alignment_operator.plan.image_pins import pinned_image
from alignment_operator.plan.types import Instance
from alignment_operator.resources.context import build_context
from alignment_operator.resources.metadata import Manifest, build_metadata
from alignment_operator.resources.objects import is_grouped
from alignment_operator.resources.patch import merge

USER = 65532
"""`nonroot` of the distroless images."""
FROZEN_TOLERATION_SECONDS = 5
"""A frozen pod is cheap to replace: it leaves an unreachable node at once, not after the default 300 s."""
TRAINABLE_TOLERATION_SECONDS = 30
"""A restart costs the steps since the last checkpoint: a network hiccup of a minute is sat out, since the control plane
itself takes 40 to 50 s to call a node unreachable. Then the next attempt starts: within 100 s of a node's death."""
SCRAPED = {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORT), "prometheus.io/path": "/metrics"}
"""What the usual scrape configuration of Prometheus looks for."""
STAYS = {"karpenter.sh/do-not-disrupt": "true", "cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
"""A trainee is not moved to save a node: its restart costs the whole gang the steps since the last checkpoint."""
SHARED_MEMORY_PART = 4
"""/dev/shm may take a quarter of the pod's memory, besides weights on their way; it counts against the pod's limit."""


def build_pod(job: AlignmentJob, instance: Instance, platform: Platform) -> Manifest:
    """The pod of one role instance, under the role's podTemplate and then the pool's, which has the last word.

    Same input, same pod; nothing is read, nothing is sent. What a role's template may hold is the platform's policy to
    say (`alignment_api/policy_rules.py`); what no template changes, `_protect` and `_seal`.
    """
    pool = platform.pools.named(instance.pool)
    labels = names.instance_labels(job, instance.role, instance.index, instance.life, instance.stage)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": build_metadata(job, instance.name, labels) | {"annotations": _annotations(instance)},
        "spec": _spec(job, instance, platform, pool),
    }
    role_template = getattr(job.spec.roles, instance.role).pod_template or {}
    patched = merge(_protect(merge(pod, role_template), pod), pool.pod_template)
    return _pin(_keep_away(_seal(patched, pod), instance.avoid), job.status.images)


def _annotations(instance: Instance) -> dict[str, str]:
    return SCRAPED | (STAYS if ROLES[instance.role].trainable else {})


def _spec(job: AlignmentJob, instance: Instance, platform: Platform, pool: Pool) -> Manifest:
    spec: Manifest = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": pool.notice_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "nodeSelector": dict(pool.node_selector),
        "tolerations": [*map(dict, pool.tolerations), *_node_tolerations(instance.role)],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(job, instance, platform, pool)],
        "volumes": _volumes(job, instance, platform),
    }
    if instance.beside:
        spec["affinity"] = {"podAffinity": _beside(job, instance)}
    if instance.gated:
        spec["schedulingGates"] = [{"name": names.READY_GATE}]
    if is_grouped(platform, instance.gang):
        spec["schedulingGroup"] = {"podGroupName": names.pod_group_name(job, instance.life)}
    if instance.replicas > 1 and ROLES[instance.role].trainable:
        spec |= {"hostname": instance.name, "subdomain": names.gang_name(job, instance.role)}
    return spec


def _container(job: AlignmentJob, instance: Instance, platform: Platform, pool: Pool) -> Manifest:
    container: Manifest = {
        "name": names.CONTAINER,
        "image": job.spec.image or platform.image,
        "imagePullPolicy": platform.image_pull_policy,
        "command": ["python3", "-m", "alignment_trainer.main"],
        "env": [
            _context_variable(job, instance, platform),
            {"name": ADDRESS_VARIABLE, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "HOME", "value": "/tmp"},
            {"name": "TMPDIR", "value": "/tmp"},
        ],
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": {
            "httpGet": {"path": "/healthz", "port": "http"},
            "periodSeconds": 5,
            "timeoutSeconds": 2,
        },
        "resources": _resources(instance, pool),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePath": names.OUTCOME_FILE,
        "volumeMounts": _mounts(job, instance, platform),
    }
    if job.spec.credentials:
        container["envFrom"] = [{"secretRef": {"name": entry.secret_name}} for entry in job.spec.credentials]
    return container


def _context_variable(job: AlignmentJob, instance: Instance, platform: Platform) -> Manifest:
    context = build_context(job, instance, platform)
    return {"name": CONTEXT_VARIABLE, "value": context.model_dump_json()}


def _resources(instance: Instance, pool: Pool) -> Manifest:
    """Memory and disk are asked for as they are limited, so that no node is overcommitted. Spare CPU may be used where
    the pool does not limit it."""
    devices = {pool.gpu.resource: str(instance.gpus)} if pool.gpu is not None and instance.gpus else {}
    cpu = {"cpu": instance.cpu}
    disk = {"ephemeral-storage": instance.ephemeral_storage}
    return {
        "requests": cpu | {"memory": instance.memory} | disk | devices,
        "limits": (cpu if pool.limit_cpu else {}) | {"memory": instance.memory} | _disk_limit(instance) | devices,
    }


def _disk_limit(instance: Instance) -> Manifest:
    limit = instance.ephemeral_storage_limit
    return {} if limit is None else {"ephemeral-storage": limit}


def _mounts(job: AlignmentJob, instance: Instance, platform: Platform) -> list[Manifest]:
    return [
        {"name": "job", "mountPath": names.JOB_FOLDER, "readOnly": True},
        {"name": "token", "mountPath": names.TOKEN_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *(_mount(number, mount) for number, mount in enumerate(mounts(job, platform, instance.role, instance.stage))),
    ]


def _volumes(job: AlignmentJob, instance: Instance, platform: Platform) -> list[Manifest]:
    memory = quantity_value(instance.memory)
    wanted = memory / SHARED_MEMORY_PART + instance.scratch_gib * 1024**3
    shared = min(wanted, memory) / Decimal(1024**2)
    tmp = instance.ephemeral_storage_limit
    return [
        {"name": "job", "configMap": {"name": names.config_name(job, instance.attempt)}},
        {"name": "token", "secret": {"secretName": names.token_name(job), "defaultMode": 0o440}},
        {"name": "tmp", "emptyDir": {} if tmp is None else {"sizeLimit": tmp}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{shared.to_integral_value(ROUND_UP)}Mi"}},
        *(
            {"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": m.claim, "readOnly": m.read_only}}
            for number, m in enumerate(mounts(job, platform, instance.role, instance.stage))
        ),
    ]


def _mount(number: int, mount: Mount) -> Manifest:
    where = "/".join(part for part in (names.VOLUMES_FOLDER, mount.claim, mount.path) if part)
    part = {"subPath": mount.path} if mount.path else {}
    return {"name": f"claim-{number}", "mountPath": where, "readOnly": mount.read_only, **part}


def _beside(job: AlignmentJob, instance: Instance) -> Manifest:
    """On the node of the stage's other pods that share a volume which one node alone can mount. The first of them goes
    anywhere: a pod that matches its own term may be scheduled where no other does."""
    labels = {names.UID_LABEL: job.metadata.uid, names.STAGE_LABEL: instance.stage}
    among = {"key": names.ROLE_LABEL, "operator": "In", "values": list(instance.beside)}
    term = {
        "labelSelector": {"matchLabels": labels, "matchExpressions": [among]},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"requiredDuringSchedulingIgnoredDuringExecution": [term]}


def _node_tolerations(role: str) -> list[Manifest]:
    seconds = TRAINABLE_TOLERATION_SECONDS if ROLES[role].trainable else FROZEN_TOLERATION_SECONDS
    return [
        {
            "key": f"node.kubernetes.io/{state}",
            "operator": "Exists",
            "effect": "NoExecute",
            "tolerationSeconds": seconds,
        }
        for state in ("not-ready", "unreachable")
    ]


def _keep_away(pod: Manifest, nodes: tuple[str, ...]) -> Manifest:
    """The pod, bound to be scheduled to other nodes, in every alternative that its affinity allows."""
    if not nodes:
        return pod
    # One requirement for each node: the API takes a single value in a field selector.
    others = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    affinity = pod["spec"].get("affinity") or {}
    node_affinity = affinity.get("nodeAffinity") or {}
    required = node_affinity.get("requiredDuringSchedulingIgnoredDuringExecution") or {"nodeSelectorTerms": [{}]}
    terms = [{**term, "matchFields": [*term.get("matchFields", ()), *others]} for term in required["nodeSelectorTerms"]]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    affinity = affinity | {"nodeAffinity": node_affinity | required}
    annotations = pod["metadata"]["annotations"] | {names.AVOIDED_NODES: ",".join(nodes)}
    metadata = pod["metadata"] | {"annotations": annotations}
    return pod | {"metadata": metadata, "spec": pod["spec"] | {"affinity": affinity}}


def _pin(pod: Manifest, pins: tuple[ImagePin, ...]) -> Manifest:
    """The pod, with what the job has already run of the image that it names. What may never be pulled stays as named: a
    node that had it loaded may not know it by its digest."""
    trainer = _trainer(pod)
    pinned = pinned_image(pins, trainer["image"]) if trainer["imagePullPolicy"] != "Never" else None
    if pinned is None:
        return pod
    containers = [c | {"image": pinned} if c is trainer else c for c in pod["spec"]["containers"]]
    return pod | {"spec": pod["spec"] | {"containers": containers}}


def _protect(patched: Manifest, built: Manifest) -> Manifest:
    """`patched` by a role's template, with the mounts that make the process what it is, and our annotations, as built.

    /tmp and /dev/shm may be other volumes than ours: a job may want more room there.
    """
    ours = {v["name"]: v for v in built["spec"]["volumes"] if v["name"] not in _REPLACEABLE}
    volumes = {v["name"]: v for v in patched["spec"]["volumes"]} | ours
    mounts = {m["mountPath"]: m for m in _trainer(patched)["volumeMounts"]}
    mounts |= {m["mountPath"]: m for m in _trainer(built)["volumeMounts"] if m["name"] in ours}
    trainer = _trainer(patched) | {"volumeMounts": list(mounts.values())}
    containers = [trainer if c["name"] == names.CONTAINER else c for c in patched["spec"]["containers"]]
    annotations = patched["metadata"]["annotations"] | built["metadata"]["annotations"]
    return patched | {
        "metadata": patched["metadata"] | {"annotations": annotations},
        "spec": patched["spec"] | {"volumes": list(volumes.values()), "containers": containers},
    }


_REPLACEABLE = ("tmp", "shm")


def _trainer(pod: Manifest) -> Manifest:
    return next(container for container in pod["spec"]["containers"] if container["name"] == names.CONTAINER)


def _seal(patched: Manifest, built: Manifest) -> Manifest:
    """`patched`, with what no podTemplate may change as it was built.

    That is the pod's identity (kind, name, our labels, owner, host, gate, gang), the pool it belongs to (the pool's
    node selector; a named node would go round the scheduler and the gate), that it is never restarted in place, and
    how its process learns who it is and tells how it ended.
    """
    spec = {key: value for key, value in patched["spec"].items() if key not in ("nodeName", *_SEALED)}
    spec |= {key: built["spec"][key] for key in _SEALED if key in built["spec"]}
    spec["nodeSelector"] = patched["spec"].get("nodeSelector", {}) | built["spec"]["nodeSelector"]
    spec["containers"] = [_seal_container(container, built) for container in patched["spec"]["containers"]]
    own = built["metadata"]
    theirs = patched["metadata"]
    metadata = own | {"labels": theirs["labels"] | own["labels"], "annotations": theirs["annotations"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


_SEALED = ("restartPolicy", "schedulingGates", "schedulingGroup", "hostname", "subdomain")


def _seal_container(container: Manifest, built: Manifest) -> Manifest:
    if container["name"] != names.CONTAINER:
        return container
    own = [entry for entry in _trainer(built)["env"] if entry["name"] in (CONTEXT_VARIABLE, ADDRESS_VARIABLE)]
    return merge(container, {"terminationMessagePath": names.OUTCOME_FILE, "env": own})
