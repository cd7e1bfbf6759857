"""Special tokens whose names a text holds: there they are text, so that no row ends a turn or begins one by itself.

While a chat template is at work a character of nobody's stands for such a name. The text around it is then encoded
between the template's own special tokens, as a tokenizer does that looks for these first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from alignment_trainer.data.rows import InvalidRow

_FIRST, _LAST = 0x10F000, 0x10FFFD
"""The marks: the end of Unicode's last private plane."""
_MARK = re.compile(f"[{chr(_FIRST)}-{chr(_LAST)}]")
_NEUTRAL = "x"
_START = 3
"""Characters of a name that are looked for first: a text has hardly ever one of these few."""


class SpecialTokens:
    """Those of one tokenizer, by name."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        added = {str(token): number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._ids = dict(sorted(added.items(), key=lambda item: (-len(item[0]), item[0]))[: _LAST - _FIRST + 1])
        self._names = re.compile("|".join(map(re.escape, self._ids)) or r"(?!)")
        self._starts = {name[:_START] for name in self._ids}
        self._marks = {name: chr(_FIRST + place) for place, name in enumerate(self._ids)}
        self._marked = {mark: name for name, mark in self._marks.items()}

    def named(self, text: str) -> str | None:
        """The first one whose name the text holds."""
        found = self._names.search(text) if any(start in text for start in self._starts) else None
        return found and found[0]

    def hidden(self, text: str) -> str:
        """The text with a mark for each name. Raises InvalidRow where one stands there already."""
        if self.is_marked(text):
            mark = ord(_MARK.findall(text)[0])
            raise InvalidRow(
                f"a text holds U+{mark:X}, a private character that stands for special tokens here; remove it"
            )
        return text if self.named(text) is None else self._names.sub(lambda name: self._marks[name[0]], text)

    def shown(self, text: str) -> str:
        """The text with the names."""
        return _MARK.sub(lambda mark: self._marked.get(mark[0], mark[0]), text)

    def rendered(self, render: Callable[[list[dict[str, str]]], str], turns: list[dict[str, str]]) -> str:
        """What a template makes of turns, the names in these hidden. Raises InvalidRow where it looks at them."""
        hidden = [turn | {"content": self.hidden(turn["content"])} for turn in turns]
        text = render(hidden)
        if hidden != turns and self.shown(text) != render(turns):
            name = next(filter(None, (self.named(turn["content"]) for turn in turns)))
            raise _unproven(name, "the chat template does not write it as it writes other text")
        return text

    def is_marked(self, text: str) -> bool:
        """Whether names are hidden in it."""
        return not text.isascii() and _MARK.search(text) is not None

    def ids(self, text: str) -> tuple[int, ...]:
        """Of a text with names that are hidden. Raises InvalidRow where they cannot be told from tokens."""
        name = self._marked[_MARK.findall(text)[0]]
        if not self._tokenizer.is_fast:
            raise _unproven(name, "this model's tokenizer (not a fast one) cannot tell them apart")
        backend, harmless = self._tokenizer.backend_tokenizer, _MARK.sub(_NEUTRAL, text)
        if tuple(self._pieces(harmless)) != tuple(backend.encode(harmless, add_special_tokens=False).ids):
            raise _unproven(name, "this model's tokenizer reads the text around a special token in another way")
        return tuple(self._pieces(text))

    def _pieces(self, text: str) -> Iterator[int]:
        """Of the text between special tokens, and these."""
        backend = self._tokenizer.backend_tokenizer
        names = [*self._names.findall(text), None]
        backend.encode_special_tokens = True  # as text
        try:
            for piece, name in zip(self._names.split(text), names, strict=True):
                yield from backend.encode(self.shown(piece), add_special_tokens=False).ids if piece else ()
                if name is not None:
                    yield self._ids[name]
        finally:
            backend.encode_special_tokens = False


def _unproven(name: str, why: str) -> InvalidRow:
    return InvalidRow(f"a text holds `{name}`, which is the name of a special token, and {why}: write it otherwise")
