"""A manifest is read as the apiserver would, and every mistake is told at once with its line."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment_api.contract.platform import Platform
from alignment_api.rules.check import why_not_stored
from alignment_api.yaml.manifest import InvalidManifest, read_contract, read_manifest
from alignment_api.yaml.scalars import core_meaning, disagreement, kubectl_meaning
from alignment_api.yaml.text import dump_yaml
from alignment_api.yaml.tree import parse_yaml

SHORTEST = """\
apiVersion: alignment.run/v1alpha1
kind: AlignmentJob
metadata: {name: helpful-dpo}
spec:
  model: {source: hf://mistralai/Mistral-7B-Instruct-v0.3}
  data: {source: hf://HuggingFaceH4/ultrafeedback_binarized, split: train_prefs}
  algorithm: {dpo: {beta: 0.1}}
"""


def refused(text: str) -> list[str]:
    with pytest.raises(InvalidManifest) as error:
        read_manifest(text)
    return [str(problem) for problem in error.value.problems]


def test_the_shortest_job_is_seven_lines() -> None:
    job = read_manifest(SHORTEST)
    assert job.metadata.name == "helpful-dpo"
    assert job.spec.algorithm.name == "dpo"
    assert job.spec.training.batch_size == 64


def test_json_is_a_manifest_too() -> None:
    value = {
        "apiVersion": "alignment.run/v1alpha1",
        "kind": "AlignmentJob",
        "metadata": {"name": "a"},
        "spec": {
            "model": {"source": "hf://a/b"},
            "data": {"source": "hf://a/b"},
            "algorithm": {"dpo": {}},
            "training": {"learningRate": 5e-7},
        },
    }
    assert read_manifest(json.dumps(value)).spec.training.learning_rate == 5e-7


def test_every_mistake_is_told_at_once_with_its_line() -> None:
    text = (
        SHORTEST
        + "  training:\n    batchsize: 64\n    epochs: 0\n  credentials:\n    - secretName: a\n    - secret: b\n"
    )
    assert refused(text) == [
        "job.yaml:9: spec.training.batchsize: unknown field. Did you mean `batchSize` (sequences (pairs for pair "
        "losses) per optimizer step, over the whole job, whatever its GPUs and micro-batches)?",
        "job.yaml:10: spec.training.epochs: found `0` (a whole number); write a number of at least 1 "
        "(passes over the training rows or prompts)",
        "job.yaml:13: spec.credentials[1].secret: unknown field. Did you mean `secretName` (its keys become "
        "environment variables (HF_TOKEN, AWS_ACCESS_KEY_ID, ...) of the job's pods)?",
        "job.yaml:13: spec.credentials[1].secretName: is missing (its keys become environment variables "
        "(HF_TOKEN, AWS_ACCESS_KEY_ID, ...) of the job's pods)",
    ]


@pytest.mark.parametrize(
    ("written", "meant"), [("5e-7", 5e-7), ("1e-6", 1e-6), ("5.0e-7", 5e-7), (".5", 0.5), ("1", 1.0), ("+1", 1.0)]
)
def test_a_learning_rate_may_be_written_so(written: str, meant: float) -> None:
    assert read_manifest(SHORTEST + f"  training: {{learningRate: {written}}}\n").spec.training.learning_rate == meant


@pytest.mark.parametrize(("written", "meant"), [("1e3", 1000), ("0x10", 16), ("0o17", 15), ("100.0", 100)])
def test_a_whole_number_is_what_kubectl_sends(written: str, meant: int) -> None:
    """Go writes the float 1e3 as 1000, which the apiserver takes for an integer."""
    assert read_manifest(SHORTEST + f"  training: {{maxSteps: {written}}}\n").spec.training.max_steps == meant


def test_snake_case_is_not_a_manifest_though_code_uses_it() -> None:
    (problem,) = refused(SHORTEST + "  training: {max_length: 512}\n")
    assert "Did you mean `maxLength`" in problem


def test_an_alias_means_its_anchor_and_is_blamed_where_it_stands() -> None:
    text = SHORTEST + "  roles:\n    policy: &size {cpu: 4, memory: 16Gi}\n    evaluator: *size\n"
    assert read_manifest(text).spec.roles.evaluator.memory == "16Gi"
    broken = text.replace("16Gi", "16GB")
    assert [problem.split(": ")[0:2] for problem in refused(broken)] == [
        ["job.yaml:9", "spec.roles.evaluator.memory"],
        ["job.yaml:9", "spec.roles.policy.memory"],
    ]


def test_aliases_that_unfold_without_bound_are_refused() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40))
    assert refused(bomb) == ["job.yaml:1: aliases unfold to too many values; write them out"]


def test_a_status_copied_from_a_cluster_is_left_out() -> None:
    assert read_manifest(SHORTEST + "status: {phase: Nonsense}\n").status.phase == "Pending"


def test_a_null_is_an_absent_field() -> None:
    assert read_manifest(SHORTEST + "  checkpoint: {resumeFrom: null}\n").spec.checkpoint.resume_from is None


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_is_refused(text: str) -> None:
    assert refused(text) == ["job.yaml:1: is empty; write an AlignmentJob"]


def test_a_platform_is_read_as_strictly() -> None:
    assert read_contract(Platform, "image: a\n", "p.yaml").image == "a"
    with pytest.raises(InvalidManifest, match=r"p.yaml:1: imag: unknown field. Did you mean `image`"):
        read_contract(Platform, "imag: a\n", "p.yaml")


def test_an_object_from_the_apiserver_is_described_without_lines() -> None:
    value: dict[str, Any] = json.loads(read_manifest(SHORTEST).model_dump_json(by_alias=True))
    value["spec"]["algorithm"] = {}
    value["spec"]["training"]["epochs"] = 0
    assert why_not_stored(value) == (
        "spec.training.epochs: found `0` (a whole number); write a number of at least 1 (passes over the training rows "
        "or prompts)",
        "spec.algorithm: found none; exactly one algorithm must be given: write for example `dpo: {beta: 0.1}`",
    )


TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"], whitelist_characters="\n"), max_size=30)
WORDS = st.sampled_from(
    ["yes", "017", "1_000", "~", "", "5e-7", "on", "- a", "a: b", "# c", "*x", "&x", "!x", "=", "<<"]
)
FLOATS = st.floats(allow_nan=False).filter(lambda number: not 2**63 <= abs(number) < 1e21)
"""Those between are whole numbers to kubectl, and fit no 64 bits: they are refused."""
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | FLOATS | TEXTS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS | WORDS, inner, max_size=3),
    max_leaves=10,
).filter(lambda value: isinstance(value, dict) and value)


@given(VALUES.filter(lambda value: "inf" not in repr(value)))
def test_what_we_write_we_read_without_a_complaint(value: Any) -> None:
    (document,), marks = parse_yaml(dump_yaml(value))
    assert marks == []
    assert document.plain() == value


@given(st.from_regex(r"[-+]?[0-9._xobeE]{1,8}", fullmatch=True))
def test_readings_that_agree_agree_in_type_too(text: str) -> None:
    if disagreement(text) is None:
        assert core_meaning(text) == kubectl_meaning(text)
        assert type(core_meaning(text)) is type(kubectl_meaning(text))


def test_every_example_validates() -> None:
    examples = Path(__file__).parents[3] / "examples"
    for file in examples.glob("*.yaml"):
        if "kind: AlignmentJob" in file.read_text():
            assert read_manifest(file.read_text(), file.name)
