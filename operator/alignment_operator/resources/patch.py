"""Strategic merge of a pod template over a pod."""

from __future__ import annotations

from typing import Any

from alignment_operator.resources.metadata import Manifest

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "imagePullSecrets": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "hostAliases": "ip",
    "topologySpreadConstraints": "topologyKey",
}
"""Lists whose entries merge by a key, as in the Kubernetes API's own strategic merge. Other lists are replaced."""

ADDED = {
    "tolerations",
    "requiredDuringSchedulingIgnoredDuringExecution",
    "preferredDuringSchedulingIgnoredDuringExecution",
}
"""Lists to which a patch adds: who tolerates one more taint, or asks for one more neighbour, gives up none."""

REPLACED_WHOLE = {"volumes", "env"}
"""Lists whose entries are unions (a volume is a claim or a folder, a variable a value or a reference)."""


def merge(base: Manifest, patch: Manifest) -> Manifest:
    """`base` under `patch`: mappings merge, null removes, named lists merge by name. Neither argument is changed."""
    merged = dict(base)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge_value(key, merged.get(key), value)
    return merged


def _merge_value(key: str, base: Any, patch: Any) -> Any:
    if isinstance(patch, dict):
        return merge(base if isinstance(base, dict) else {}, patch)
    if isinstance(patch, list | tuple) and key in MERGE_KEYS:
        return _merge_named(key, base or [], patch)
    if isinstance(patch, list | tuple) and key in ADDED:
        return [*(base or []), *(entry for entry in patch if entry not in (base or []))]
    return list(patch) if isinstance(patch, tuple) else patch


def _merge_named(key: str, base: list[Manifest], patch: list[Manifest] | tuple[Manifest, ...]) -> list[Manifest]:
    by = MERGE_KEYS[key]
    merged = {entry[by]: entry for entry in base}
    for entry in patch:
        under = {} if key in REPLACED_WHOLE else merged.get(entry[by], {})
        merged[entry[by]] = merge(under, entry)
    return list(merged.values())
