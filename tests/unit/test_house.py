"""The contracts of the house itself. Layers are import-linter's, style is ruff's: `make lint`."""

from __future__ import annotations

import ast
import filecmp
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from alignment_api.yaml.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
MANIFESTS = sorted(EXAMPLES.glob("*.yaml"))
ALGORITHMS = {"ppo.yaml": "ppo", "grpo.yaml": "grpo"}
# Taken apart, so that this file does not contain what it forbids.
INDEX_HOSTS = ["".join(parts) for parts in (("pypi", ".org"), ("pythonhosted", ".org"), ("proxy.golang", ".org"))]
MACHINE_PATHS = ["/".join(parts) for parts in (("", "work", "main"), ("", "work", "shared"), ("", "root", "."))]


def test_no_committed_file_names_a_package_index_or_a_path_of_the_machine_it_was_written_on() -> None:
    forbidden = re.compile("|".join(map(re.escape, INDEX_HOSTS + MACHINE_PATHS)))
    found = {
        f"{file.relative_to(ROOT)}: {match[0]}"
        for file in _committed_files()
        for match in forbidden.finditer(file.read_text(errors="ignore"))
    }
    assert found == set()


def test_nothing_that_is_left_out_is_installed_and_every_base_image_stands_by_its_digest() -> None:
    left_out = re.findall(r"^([a-z0-9-]+);", (ROOT / "requirements" / "left-out.txt").read_text(), re.MULTILINE)
    assert "websockets" in left_out
    for name in ("dev", "trainer", "run"):
        packages = re.findall(r"^([a-z0-9-]+)==", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE)
        assert "torch" in packages
        assert set(left_out).isdisjoint(packages), name
    bases = re.findall(r"^(?:ARG BASE=|FROM )(\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    outside = [base for base in bases if ":" in base]
    assert outside
    assert all(re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", base) for base in outside)


def test_the_operator_imports_where_torch_is_absent() -> None:
    """Its image has none: every module is imported under a finder that refuses what the trainer alone may need."""
    program = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "transformers", "safetensors", "numpy", "alignment_trainer"}:
            raise ImportError(f"{name} is not in the operator's image")
sys.meta_path.insert(0, Refuse())
imported = 0
for package in map(importlib.import_module, ("alignment_api", "alignment_operator")):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
        imported += 1
print(imported)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 40


def test_no_call_that_loads_a_model_may_run_code_of_its_folder() -> None:
    """Said aloud, since transformers asks on standard input where nobody says it."""
    program = sorted(path for folder in ("trainer", "examples", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
    calls = [(path, call) for path in program for call in _calls(path) if _loads_a_model(call)]
    silent = [f"{path.relative_to(ROOT)}:{call.lineno}" for path, call in calls if not _runs_no_code(call)]
    assert silent == [], "write trust_remote_code=False"
    assert len(calls) >= 8


@pytest.mark.parametrize(
    ("call", "allowed"),
    [
        ("AutoConfig.from_pretrained(folder)", False),
        ("AutoConfig.from_pretrained(folder, trust_remote_code=True)", False),
        ("AutoModel.from_config(config, trust_remote_code=given)", False),
        ("AsyncEngineArgs(model=folder)", False),
        ("type(network).from_pretrained(None, trust_remote_code=False)", True),
    ],
)
def test_what_may_run_code_of_a_folder_is_seen(tmp_path: Path, call: str, allowed: bool) -> None:
    (tmp_path / "program.py").write_text(call)
    (found,) = (each for each in _calls(tmp_path / "program.py") if _loads_a_model(each))
    assert _runs_no_code(found) == allowed


def test_the_folder_named_operator_does_not_shadow_the_standard_library() -> None:
    program = "import operator; print(operator.add(2, 3))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.stdout == "5\n", done.stderr


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_every_example_is_a_valid_job(manifest: Path) -> None:
    job = read_manifest(manifest.read_text(), manifest.name)
    assert job.spec.algorithm.name == ALGORITHMS.get(manifest.name, "dpo")


@pytest.mark.parametrize(
    ("generator", "folder"),
    [("generate_preferences.py", "quickstart"), ("generate_ppo.py", "ppo"), ("generate_grpo.py", "grpo")],
)
def test_the_data_of_the_examples_comes_from_its_generator(tmp_path: Path, generator: str, folder: str) -> None:
    for script in EXAMPLES.glob("generate_*.py"):
        shutil.copy(script, tmp_path)
    (tmp_path / folder).mkdir()
    for phrases in (EXAMPLES / folder).glob("*.yaml"):
        shutil.copy(phrases, tmp_path / folder)
    # Another hash seed than ours: the order of a set must not decide what is written.
    environment = os.environ | {"PYTHONHASHSEED": "4242"}
    subprocess.run([sys.executable, tmp_path / generator], check=True, timeout=300, env=environment)
    committed = sorted(path.name for path in (EXAMPLES / folder).glob("*.jsonl"))
    assert committed == sorted(path.name for path in (tmp_path / folder).glob("*.jsonl"))
    for name in committed:
        assert filecmp.cmp(tmp_path / folder / name, EXAMPLES / folder / name, shallow=False), name


def test_no_prompt_reply_or_phrase_of_the_quick_start_stands_on_both_sides() -> None:
    train, heldout = _rows("train"), _rows("heldout")
    assert (len(train), len(heldout)) == (96, 96)
    for field in ("prompt", "chosen", "rejected"):
        assert not {_template(row[field]) for row in train} & {_template(row[field]) for row in heldout}
    sentences = [{sentence for row in side for sentence in _sentences(row)} for side in (train, heldout)]
    assert not sentences[0] & sentences[1]


@pytest.mark.parametrize("side", ["train", "heldout"])
@pytest.mark.parametrize("measure", [lambda text: len(re.findall(r"\w+|[^\w\s]", text)), len], ids=["words", "letters"])
def test_length_does_not_tell_which_reply_of_the_quick_start_is_chosen(
    side: str, measure: Callable[[str], int]
) -> None:
    """The better of `longer is chosen` and `shorter is chosen` stays below what training must reach, by far."""
    differences = [measure(row["chosen"]) - measure(row["rejected"]) for row in _rows(side)]
    longer = sum(1.0 if difference > 0 else 0.5 if difference == 0 else 0.0 for difference in differences)
    assert max(longer, len(differences) - longer) / len(differences) < 0.63


def test_no_single_word_of_the_training_side_tells_the_held_out_side_apart() -> None:
    """The word whose presence separates chosen from rejected best in training is no use on held-out pairs."""
    train, heldout = _rows("train"), _rows("heldout")
    words = {word for row in train for field in ("chosen", "rejected") for word in _words(row[field])}
    learnt = {word: _accuracy(word, train) for word in words}
    best = sorted(words, key=lambda word: abs(learnt[word] - 0.5), reverse=True)[:20]
    for word in best:
        sign = 1 if learnt[word] > 0.5 else -1
        assert 0.5 + sign * (_accuracy(word, heldout) - 0.5) < 0.65, word


@pytest.mark.parametrize(("name", "count"), [("preferences", 96), ("preferences_heldout", 200)])
def test_asking_back_decides_every_preference_of_the_ppo_example_and_length_none(name: str, count: int) -> None:
    """The manifest's own pattern is the hidden rule; the longer reply is chosen exactly half of the time."""
    job = read_manifest((EXAMPLES / "ppo.yaml").read_text(), "ppo.yaml")
    rule = job.spec.algorithm.rewards[1].function
    assert rule is not None
    assert rule.regex is not None
    rows = _example("ppo", name)
    assert len(rows) == count
    for row in rows:
        assert re.search(rule.regex.pattern, row["chosen"])
        assert not re.search(rule.regex.pattern, row["rejected"])
    for measure in (len, lambda text: len(re.findall(r"\w+|[^\w\s]", text))):
        longer = [(d > 0) + 0.5 * (d == 0) for d in (measure(row["chosen"]) - measure(row["rejected"]) for row in rows)]
        assert 0.45 <= sum(longer) / len(rows) <= 0.55


def test_no_prompt_of_the_ppo_example_stands_in_two_files_and_no_reply_on_both_sides() -> None:
    files = {path.stem: _example("ppo", path.stem) for path in (EXAMPLES / "ppo").glob("*.jsonl")}
    prompts = [row["prompt"] for rows in files.values() for row in rows]
    assert len(prompts) == len(set(prompts)) == 96 + 200 + 200 + 40
    train, heldout = (
        {sentence for row in files[name] for sentence in _sentences(row)}
        for name in ("preferences", "preferences_heldout")
    )
    assert not train & heldout


def test_held_out_sums_of_the_grpo_example_are_new_in_any_order_and_all_answers_are_right() -> None:
    sides = []
    for name in ("train", "heldout"):
        rows = _example("grpo", name)
        numbers = [tuple(sorted(map(int, re.findall(r"\d+", row["prompt"])))) for row in rows]
        assert [sum(pair) for pair in numbers] == [row["answer"] for row in rows]
        sides.append(set(numbers))
    assert not sides[0] & sides[1]


def _calls(path: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def _loads_a_model(call: ast.Call) -> bool:
    """By transformers or vLLM. A generation config holds numbers alone, and would keep the word as one of its own."""
    name = ast.unparse(call.func)
    return name.endswith((".from_pretrained", ".from_config", "EngineArgs")) and not name.startswith("GenerationConfig")


def _runs_no_code(call: ast.Call) -> bool:
    said = {keyword.arg: keyword.value for keyword in call.keywords}.get("trust_remote_code")
    return isinstance(said, ast.Constant) and said.value is False


def _accuracy(word: str, rows: list[dict[str, str]]) -> float:
    """Of the rule that the reply with the word is the chosen one; 0.5 where both have it, or neither."""
    told = sum((word in _words(row["chosen"])) - (word in _words(row["rejected"])) for row in rows)
    return 0.5 + 0.5 * told / len(rows)


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+|[^\w\s]", text.lower()))


def _sentences(row: dict[str, str]) -> Iterator[str]:
    for reply in (row["chosen"], row["rejected"]):
        yield from re.split(r"(?<=[.!?]) ", reply)


def _template(text: str) -> str:
    return re.sub(r"\d+|[A-Z]\w+day", "", text)


def _rows(side: str) -> list[dict[str, str]]:
    return _example("quickstart", side)


def _example(folder: str, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (EXAMPLES / folder / f"{name}.jsonl").read_text().splitlines()]


def _committed_files() -> Iterator[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return (ROOT / name for name in listed.split("\0") if (ROOT / name).is_file())
