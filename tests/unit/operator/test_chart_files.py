import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from ruamel.yaml import YAML

from alignment_api.contract.platform import Platform, PlatformStorage
from alignment_api.contract.policy import Policy
from alignment_api.yaml.manifest import read_contract
from alignment_trainer.process.metrics import Metrics

ROOT = Path(__file__).parents[3]
CHART = ROOT / "charts" / "alignment-operator"
DASHBOARDS = ["dpo.json", "online.json", "sft-kto.json"]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    specification = importlib.util.spec_from_file_location("generate_chart", ROOT / "charts" / "generate.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


def test_generated_files_are_those_of_the_code(generate: ModuleType) -> None:
    for path, text in generate.files().items():
        assert path.read_text() == text, f"{path.name} is stale: run `make crd`"


def test_the_chart_carries_the_very_crd() -> None:
    name = "alignmentjobs.alignment.run.yaml"
    assert (CHART / "files" / name).read_bytes() == (ROOT / "crds" / name).read_bytes()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_metric_of_a_dashboard_exists(name: str) -> None:
    exported = {family.name for family in Metrics("job", "policy").registry.collect()}
    panels = json.loads((CHART / "dashboards" / name).read_text())["panels"]
    shown = {
        name
        for panel in panels
        for target in panel["targets"]
        for name in re.findall(r"\balignment_\w+", target["expr"])
        if not name.startswith("alignment_operator_")
    }
    assert len(shown) > 10
    assert shown <= exported


def test_every_metric_of_the_trainer_is_on_a_dashboard() -> None:
    shown = "".join((CHART / "dashboards" / name).read_text() for name in DASHBOARDS)
    # The counter's rate is a gauge of its own, the share of likelier completions stands in the report.
    left_out = {"alignment_tokens", "alignment_likelier_chosen_ratio", "alignment_heldout_likelier_chosen_ratio"}
    exported = {family.name for family in Metrics("job", "policy").registry.collect()} - left_out
    assert {name for name in exported if f"{name}{{" not in shown} == set()


def test_the_chart_ships_every_dashboard() -> None:
    assert sorted(path.name for path in (CHART / "dashboards").iterdir()) == sorted(DASHBOARDS)
    assert '.Files.Glob "dashboards/*.json"' in (CHART / "templates" / "dashboard.yaml").read_text()


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_do_not_overlap(name: str) -> None:
    panels = json.loads((CHART / "dashboards" / name).read_text())["panels"]
    corners = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}
    assert len(corners) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in panels)


def test_the_values_hold_a_platform() -> None:
    values = YAML(typ="safe").load(CHART / "values.yaml")
    platform = read_contract(Platform, json.dumps(values["platform"]), "values.yaml")
    assert platform.pools.spot.notice_seconds == 30
    assert platform.policy == Policy()
    assert platform.storage == PlatformStorage()


def test_the_operator_needs_neither_torch_nor_the_trainer() -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'alignment_trainer'): sys.modules[name] = None\n"
        "import alignment_operator.main, alignment_operator.handlers\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "operator", capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
