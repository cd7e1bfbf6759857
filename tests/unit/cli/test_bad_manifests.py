"""Every bad manifest is refused by the gate that it names, with the field or the row, what was found and the fix."""

import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.corpus import FOLDER, GATES, Expectation, expectations
from typer.testing import CliRunner

from alignment_api.contract.platform import Platform
from alignment_api.yaml.manifest import read_manifest
from alignment_cli.main import app
from alignment_operator.plan.make_plan import make_plan
from alignment_operator.plan.types import Observed, VolumeView

VOLUMES = {
    "models": VolumeView(("ReadWriteMany",)),
    "data": VolumeView(("ReadWriteMany",)),
    "single-node": VolumeView(("ReadWriteOnce",)),
}
PIN = {"uid": "9a0c1c52-7d6a-4e3e-8a53-5d1f1f8f0a11", "namespace": "default"}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    shutil.copytree(FOLDER, folder)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


def test_the_corpus_has_at_least_thirty_manifests_and_each_names_a_gate() -> None:
    named = {expectation.file for expectation in expectations()}
    assert named == set(FOLDER.glob("*.yaml"))
    assert len(named) >= 34
    assert {expectation.gate for expectation in expectations()} == set(GATES)


@pytest.mark.parametrize("expectation", expectations("validate"), ids=str)
def test_validate_refuses(expectation: Expectation, corpus: Path) -> None:
    result = CliRunner().invoke(app, ["validate", str(corpus / expectation.file.name)])
    assert result.exit_code == 1
    assert re.search(expectation.pattern, result.stderr), result.stderr
    problems = [line for line in result.stderr.splitlines() if "mend these rows" not in line]
    assert len(problems) == 1, "a manifest with one mistake gives one complaint"


@pytest.mark.parametrize("expectation", expectations("condition"), ids=str)
def test_a_condition_refuses_and_nothing_is_created(expectation: Expectation) -> None:
    job = read_manifest(expectation.file.read_text(), expectation.file.name)
    job = job.model_copy(update={"metadata": job.metadata.model_copy(update=PIN)})
    plan = make_plan(Observed(job, Platform(), volumes=VOLUMES), datetime(2026, 1, 1, tzinfo=UTC))
    (admitted,) = [condition for condition in plan.status.conditions if condition.type == "Admitted"]
    assert admitted.status == "False"
    assert re.search(expectation.pattern, admitted.message), admitted.message
    assert plan.create == ()
    assert plan.support is None


@pytest.mark.parametrize("gate", ["condition", "prepare"])
def test_what_a_later_gate_refuses_is_a_valid_manifest(gate: str, corpus: Path) -> None:
    for expectation in expectations(gate):
        assert read_manifest(expectation.file.read_text(), expectation.file.name)
