"""How a value that was found is told to the one who wrote it."""

from __future__ import annotations

import json

_KINDS: dict[type, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    dict: "fields below it",
    list: "a list",
    type(None): "nothing",
}


def shown(value: object) -> str:
    """The value as the user wrote it, shortened, with its kind."""
    kind = _KINDS.get(type(value), "a value")
    if isinstance(value, dict | list) or value is None:
        return kind
    text = json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return f"`{text}`" if isinstance(value, bool) else f"`{text}` ({kind})"
