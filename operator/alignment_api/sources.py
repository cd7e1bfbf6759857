"""Where models, data, storage and output live: one set of schemes for all of them.

file:///path        a path as the role's process sees it
file://./path       relative to the manifest: on a laptop only
pvc://claim/path    a PersistentVolumeClaim of the job's namespace
hf://org/name       a model or data set of the Hugging Face hub
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

Scheme = Literal["file", "pvc", "hf"]
FORMS = {
    "file": "file:///path (or file://./path, relative to the manifest, on a laptop)",
    "pvc": "pvc://claim/path",
    "hf": "hf://org/name",
}
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True)
class Source:
    """A parsed source. `claim` is set for pvc alone; `path` is the rest."""

    scheme: Scheme
    path: str
    claim: str | None = None

    @property
    def is_relative(self) -> bool:
        """True for file://./path: it means something only beside its manifest."""
        return self.scheme == "file" and not self.path.startswith("/")

    def __str__(self) -> str:
        if self.scheme == "pvc":
            return f"pvc://{self.claim}/{self.path}".rstrip("/")
        return f"{self.scheme}://{self.path}"


def parse_source(text: str, allowed: tuple[Scheme, ...] = ("file", "pvc", "hf")) -> Source:
    """The source that `text` names.

    Raises ValueError that says what was found and which forms are understood.
    """
    scheme, separator, rest = text.partition("://")
    forms = " or ".join(FORMS[s] for s in allowed)
    if not separator or scheme not in allowed:
        raise ValueError(f"`{text}` is not a source understood here; write {forms}")
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        if not _CLAIM.fullmatch(claim):
            raise ValueError(f"`{text}` names no claim; write {FORMS['pvc']}")
        if ".." in path.split("/"):
            raise ValueError(f"`{text}` leaves its volume by `..`; write a path inside the claim")
        return Source("pvc", path.strip("/"), claim)
    if scheme == "hf":
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", rest):
            raise ValueError(f"`{text}` is not a repository of the hub; write {FORMS['hf']}")
        return Source("hf", rest)
    if not rest.startswith(("/", "./", "../")):
        raise ValueError(f"`{text}` has no absolute path; write {FORMS['file']}")
    return Source("file", rest)


@dataclass(frozen=True)
class IsSource:
    """Marks the types below, so that the sources of a spec are found by their type (see `source_fields.py`)."""


def _check(*allowed: Scheme) -> AfterValidator:
    def validate(text: str) -> str:
        parse_source(text, allowed)
        return text

    return AfterValidator(validate)


def _schema(*allowed: Scheme) -> WithJsonSchema:
    forms = {
        "file": r"file://(/|\./|\.\./).*",
        "pvc": r"pvc://[a-z0-9][-a-z0-9.]*(/.*)?",
        "hf": r"hf://[\w.-]+/[\w.-]+",
    }
    return WithJsonSchema(
        {"type": "string", "maxLength": 1024, "pattern": f"^({'|'.join(forms[s] for s in allowed)})$"}
    )


ReadableSource = Annotated[str, IsSource(), _check("file", "pvc", "hf"), _schema("file", "pvc", "hf")]
"""A source that is read: a model or data."""

WritableSource = Annotated[str, IsSource(), _check("file", "pvc"), _schema("file", "pvc")]
"""A source that is written: storage or output."""
