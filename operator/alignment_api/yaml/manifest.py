"""A manifest's text to an AlignmentJob, or every mistake in it at once: where, what was found, what to write.

What is stored already is read by `contract/stored.py`, with more patience.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from alignment_api.contract.base import Contract, FieldPath, field_path
from alignment_api.contract.handed import without_newer_defaults
from alignment_api.contract.job import AlignmentJob
from alignment_api.rules.check import check
from alignment_api.rules.rule import Mistake, Rule
from alignment_api.rules.table import RULES
from alignment_api.rules.teach import unknown_field
from alignment_api.yaml.tree import Node, parse_yaml

ContractType = TypeVar("ContractType", bound=Contract)

_METADATA = frozenset(
    {"name", "generateName", "namespace", "labels", "annotations", "finalizers", "ownerReferences", "uid"}
    | {"resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"}
    | {"managedFields", "selfLink"}
)
"""Every field of metav1.ObjectMeta; the contract reads some."""


@dataclass(frozen=True)
class Problem:
    """One mistake. `str()` of it is what a person reads."""

    file: str
    line: int
    field: str
    """Path in camelCase: spec.training.batchSize, spec.credentials[0].secretName; empty for the text itself."""
    message: str
    """What was found and what to write instead."""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return f"{where}: {self.field}: {self.message}" if self.field else f"{where}: {self.message}"


class InvalidManifest(ValueError):
    """A manifest with mistakes; `problems` has them all, in the order of their lines."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=lambda problem: (problem.line, problem.field)))
        super().__init__("\n".join(map(str, self.problems)))


def read_manifest(text: str, file: str = "job.yaml") -> AlignmentJob:
    """The job that the text asks to start; its status, if any, is left out. Raises InvalidManifest."""
    return _read(text, file, RULES)


def read_begun_manifest(text: str, file: str = "job.yaml") -> AlignmentJob:
    """The same of a job that was let in before: no rule is asked again. Raises InvalidManifest."""
    return _read(text, file, (), without_newer_defaults)


def read_contract(model: type[ContractType], text: str, file: str) -> ContractType:
    """Another type of the contract (a Platform) from YAML, as strictly. Raises InvalidManifest."""
    root, problems = _single_document(text, file)
    read, mistakes = check(model, root.plain())
    return _without_mistakes(read, root, mistakes, problems, file)


def _single_document(text: str, file: str) -> tuple[Node, list[Problem]]:
    documents, marks = parse_yaml(text)
    problems = [Problem(file, mark.line, field_path(mark.path), mark.message) for mark in marks]
    if not documents:
        raise InvalidManifest(problems or [Problem(file, 1, "", "is empty; write an AlignmentJob")])
    if len(documents) > 1:
        advice = f"{len(documents)} documents found; write one AlignmentJob per file"
        raise InvalidManifest([*problems, Problem(file, documents[1].line, "", advice)])
    return documents[0], problems


def _read(text: str, file: str, rules: Iterable[Rule], change: Callable[[Any], Any] = lambda job: job) -> AlignmentJob:
    root, problems = _single_document(text, file)
    value = root.plain()
    if isinstance(value, dict):
        value.pop("status", None)
        problems += _unknown_metadata(root, value, file)
        value = change(value)
    job, mistakes = check(AlignmentJob, value, rules)
    return _without_mistakes(job, root, mistakes, problems, file)


def _without_mistakes(
    read: ContractType | None, root: Node, mistakes: Iterable[Mistake], problems: list[Problem], file: str
) -> ContractType:
    told = {problem.field for problem in problems}
    for path, message in mistakes:
        if field_path(path) not in told:
            problems.append(Problem(file, root.line_of(path), field_path(path), message))
    if problems or read is None:
        raise InvalidManifest(problems)
    return read


def _unknown_metadata(root: Node, value: dict[str, Any], file: str) -> list[Problem]:
    metadata = value.get("metadata")
    if not isinstance(metadata, dict):
        return []
    return [
        Problem(
            file, root.line_of(("metadata", name)), f"metadata.{name}", unknown_field(AlignmentJob, ("metadata", name))
        )
        for name in metadata
        if name not in _METADATA
    ]


def problem_at(text: str, file: str, path: FieldPath, message: str) -> Problem:
    """A mistake found later, by looking at what the manifest names, at the line of the field that names it."""
    documents, _ = parse_yaml(text)
    return Problem(file, documents[0].line_of(path), field_path(path), message)
