"""A manifest's text to an AlignmentJob, or every mistake in it at once: where, what was found, what to write.

The value is validated as the apiserver does it: camelCase names alone, no coercion of `"5"` to 5, no unknown field.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from alignment_api.base import Contract
from alignment_api.job import AlignmentJob
from alignment_api.teach import explain, unknown_field
from alignment_api.yaml_tree import Node, Path, parse_yaml

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
    """The AlignmentJob that the text holds; its status, if any, is left out. Raises InvalidManifest."""
    root, problems = _single_document(text, file)
    value = root.plain()
    if isinstance(value, dict):
        value.pop("status", None)
        problems += _unknown_metadata(root, value, file)
    return _validated(AlignmentJob, root, value, problems, file)


def read_contract(model: type[ContractType], text: str, file: str) -> ContractType:
    """Another type of the contract (a Platform) from YAML, as strictly. Raises InvalidManifest."""
    root, problems = _single_document(text, file)
    return _validated(model, root, root.plain(), problems, file)


def describe_invalid(model: type[Contract], error: ValidationError) -> list[str]:
    """Every mistake of an object that came without a text (from the apiserver), as `field: what to write`."""
    return [f"{field_path(path)}: {message}" for path, message in _mistakes(model, error)]


def field_path(path: Sequence[str | int]) -> str:
    """spec.credentials[0].secretName"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _single_document(text: str, file: str) -> tuple[Node, list[Problem]]:
    documents, marks = parse_yaml(text)
    problems = [Problem(file, mark.line, field_path(mark.path), mark.message) for mark in marks]
    if not documents:
        raise InvalidManifest(problems or [Problem(file, 1, "", "is empty; write an AlignmentJob")])
    if len(documents) > 1:
        advice = f"{len(documents)} documents found; write one AlignmentJob per file"
        raise InvalidManifest([*problems, Problem(file, documents[1].line, "", advice)])
    return documents[0], problems


def _validated(model: type[ContractType], root: Node, value: Any, problems: list[Problem], file: str) -> ContractType:
    try:
        # JSON, for pydantic's strict mode reads arrays as tuples and strings as times only there.
        job = model.model_validate_json(json.dumps(value), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        told = {problem.field for problem in problems}
        for path, message in _mistakes(model, error):
            if field_path(path) not in told:
                problems.append(Problem(file, root.line_of(path), field_path(path), message))
        raise InvalidManifest(problems) from None
    if problems:
        raise InvalidManifest(problems)
    return job


def _mistakes(model: type[Contract], error: ValidationError) -> list[tuple[Path, str]]:
    details: list[ErrorDetails] = error.errors(include_url=False)
    return [(_place(detail), explain(model, detail)) for detail in details if not _follows(detail, details)]


def _follows(detail: ErrorDetails, details: list[ErrorDetails]) -> bool:
    """A list is said to be too short also when its items were refused: those mistakes are told already."""
    depth = len(detail["loc"])
    below = (other for other in details if len(other["loc"]) > depth and other["loc"][:depth] == detail["loc"])
    return detail["type"] == "too_short" and any(below)


def _place(detail: ErrorDetails) -> Path:
    """A rule over several fields may say itself which of them is wrong."""
    below: Path = getattr(detail.get("ctx", {}).get("error"), "below", ())
    return (*detail["loc"], *below)


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


def problem_at(text: str, file: str, path: Path, message: str) -> Problem:
    """A mistake found later, by looking at what the manifest names, at the line of the field that names it."""
    documents, _ = parse_yaml(text)
    return Problem(file, documents[0].line_of(path), field_path(path), message)
