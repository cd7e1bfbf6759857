"""Values to YAML text that every reader reads alike."""

from __future__ import annotations

from io import StringIO
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from alignment_api.yaml.scalars import core_meaning, kubectl_meaning


def dump_yaml(value: Any) -> str:
    """A JSON-like value as YAML. A text that some reader would take for a number or a boolean stands in quotes."""
    yaml = YAML()
    yaml.width = 4096  # ruamel leaves trailing spaces where it folds
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = StringIO()
    yaml.dump(_quoted(value), stream)
    return stream.getvalue()


def _quoted(value: Any) -> Any:
    if isinstance(value, dict):
        return {_quoted(key): _quoted(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_quoted(child) for child in value]
    if isinstance(value, str) and "\n" in value:
        return LiteralScalarString(value)
    if isinstance(value, str) and not (
        isinstance(core_meaning(value), str) and isinstance(kubectl_meaning(value), str)
    ):
        return DoubleQuotedScalarString(value)
    return value
