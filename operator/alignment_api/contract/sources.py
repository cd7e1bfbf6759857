"""Where models, data, storage and output live: one set of schemes for all of them.

file:///path        a path as the role's process sees it
file://./path       relative to the manifest: on a laptop only
pvc://claim/path    a PersistentVolumeClaim of the job's namespace
hf://org/name       a model or data set of the Hugging Face hub
s3://bucket/prefix  what lies below a prefix of a bucket of an S3 store

The rows of a job may be a pattern of file, pvc and s3: `*` is any characters of one name, `?` is one.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema

Scheme = Literal["file", "pvc", "hf", "s3"]
FORMS = {
    "file": "file:///path (or file://./path, relative to the manifest, on a laptop)",
    "pvc": "pvc://claim/path",
    "hf": "hf://org/name",
    "s3": "s3://bucket/prefix",
}
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_BUCKET = re.compile(r"[a-z0-9][-a-z0-9.]{1,61}[a-z0-9]")
_LONGEST = 1024
_PATTERN = "it has a pattern (`*` or `?`), and only data may be one; write one path"
_NOT_IN_PATTERNS = re.compile(r"\*\*|[\[\]{}]")
_NO_PATTERN = {"rule": "!self.contains('*') && !self.contains('?')", "message": _PATTERN}
_INSIDE = {
    "rule": "!self.matches('^(pvc|s3)://') || !self.split('/').exists(part, part == '..')",
    "message": "leaves its volume by `..`; write a path inside the claim or bucket",
}


@dataclass(frozen=True)
class Source:
    """A parsed source. `claim` is set for pvc alone; `path` is the rest, of s3 the bucket and the prefix."""

    scheme: str
    """One of `Scheme`; of a job that another release admitted perhaps another."""
    path: str
    claim: str | None = None

    @property
    def is_relative(self) -> bool:
        """True for file://./path: it means something only beside its manifest."""
        return self.scheme == "file" and not self.path.startswith("/")

    @property
    def is_pattern(self) -> bool:
        """True where it stands for all files whose names are so."""
        return self.scheme != "hf" and is_pattern(self.path)

    @property
    def is_remote(self) -> bool:
        """True for hf and s3: the process that wants it asks for it, and nothing is mounted."""
        return self.scheme in ("hf", "s3")

    def __str__(self) -> str:
        if self.scheme == "pvc":
            return f"pvc://{self.claim}/{self.path}".rstrip("/")
        return f"{self.scheme}://{self.path}"


def parse_source(text: str) -> Source:
    """The source that `text` names. Takes it apart and no more: whether it may be one is for `check_source`."""
    scheme, _, rest = text.partition("://")
    if scheme != "pvc":
        return Source(scheme, rest.rstrip("/") if scheme == "s3" else rest)
    claim, _, path = rest.partition("/")
    return Source("pvc", path.strip("/"), claim)


def is_pattern(path: str) -> bool:
    """Whether a path, or a part of one, stands for several."""
    return "*" in path or "?" in path


def check_source(text: str, allowed: tuple[Scheme, ...] = ("file", "pvc", "hf", "s3"), patterns: bool = False) -> None:
    """Raises ValueError that says what was found and which forms are understood. patterns: whether it may be one."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in allowed:
        forms = " or ".join(FORMS[s] for s in allowed)
        raise ValueError(f"`{text}` is not a source understood here; write {forms}")
    if len(text) > _LONGEST:
        raise ValueError(f"has {len(text)} characters; write a path of at most {_LONGEST}")
    _CHECKS[scheme](text, rest)
    if parse_source(text).is_pattern:
        _check_pattern(text, rest, patterns)


def _check_pattern(text: str, rest: str, allowed: bool) -> None:
    if not allowed:
        raise ValueError(f"`{text}`: {_PATTERN}")
    if found := _NOT_IN_PATTERNS.search(rest):
        raise ValueError(
            f"`{text}`: `{found[0]}` is no part of a pattern; write `*` (any characters of one name) or `?` (one), or "
            "a folder for all files below it"
        )


def _inside(kind: str, name: re.Pattern[str], form: str) -> Callable[[str, str], None]:
    """Checks a path inside something that has a name."""

    def check(text: str, rest: str) -> None:
        found, _, path = rest.partition("/")
        if not name.fullmatch(found):
            raise ValueError(f"`{text}` names no {kind}; write {form}")
        if ".." in path.split("/"):
            raise ValueError(f"`{text}` {_INSIDE['message']}")

    return check


def _check_repository(text: str, rest: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", rest):
        raise ValueError(f"`{text}` is not a repository of the hub; write {FORMS['hf']}")


def _check_path(text: str, rest: str) -> None:
    if not rest.startswith(("/", "./", "../")):
        raise ValueError(f"`{text}` has no absolute path; write {FORMS['file']}")


_CHECKS: dict[str, Callable[[str, str], None]] = {
    "file": _check_path,
    "pvc": _inside("claim", _CLAIM, FORMS["pvc"]),
    "hf": _check_repository,
    "s3": _inside("bucket", _BUCKET, FORMS["s3"]),
}


@dataclass(frozen=True)
class IsSource:
    """Marks the types below, so that the sources of a spec are found by their type (see `derived/source_fields.py`)."""


def _check(*allowed: Scheme, patterns: bool = False) -> AfterValidator:
    def validate(text: str) -> str:
        check_source(text, allowed, patterns)
        return text

    return AfterValidator(validate)


def _schema(*allowed: Scheme, patterns: bool = False) -> WithJsonSchema:
    forms = {
        "file": r"file://(/|\./|\.\./).*",
        "pvc": r"pvc://[a-z0-9][-a-z0-9.]*(/.*)?",
        "hf": r"hf://[\w.-]+/[\w.-]+",
        "s3": r"s3://[a-z0-9][-a-z0-9.]{1,61}[a-z0-9](/.*)?",
    }
    return WithJsonSchema(
        {
            "type": "string",
            "maxLength": _LONGEST,
            "pattern": f"^({'|'.join(forms[s] for s in allowed)})$",
            "x-kubernetes-validations": [_INSIDE] if patterns else [_INSIDE, _NO_PATTERN],
        }
    )


ReadableSource = Annotated[str, IsSource(), _check("file", "pvc", "hf", "s3"), _schema("file", "pvc", "hf", "s3")]
"""A source that is read: a model."""

DataSource = Annotated[
    str,
    IsSource(),
    _check("file", "pvc", "hf", "s3", patterns=True),
    _schema("file", "pvc", "hf", "s3", patterns=True),
]
"""A source of rows, which may be a pattern."""

WritableSource = Annotated[str, IsSource(), _check("file", "pvc", "s3"), _schema("file", "pvc", "s3")]
"""A source that is written: storage and output."""

MountedSource = Annotated[str, IsSource(), _check("file", "pvc"), _schema("file", "pvc")]
"""A source that must be a path: another job's storage, code."""
