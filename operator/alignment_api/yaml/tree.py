"""YAML text to a tree that remembers where everything stands. Strict where readers of YAML disagree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from alignment_api.contract.base import FieldPath
from alignment_api.yaml.scalars import Scalar, core_meaning, disagreement

_MAX_NODES = 100_000
"""A manifest has dozens; aliases of aliases would otherwise grow without bound."""


@dataclass(frozen=True)
class Mark:
    """A complaint about the text itself."""

    line: int
    path: FieldPath
    message: str


@dataclass(frozen=True)
class Node:
    """A value and the line (from 1) on which it, or the key it belongs to, stands."""

    line: int
    value: Scalar | dict[str, Node] | list[Node]

    def plain(self) -> Any:
        """The value without positions, as JSON would carry it."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def line_of(self, path: FieldPath) -> int:
        """The line of the deepest part of `path` that exists."""
        node = self
        for part in path:
            child = node._child(part)
            if child is None:
                break
            node = child
        return node.line

    def _child(self, part: str | int) -> Node | None:
        if isinstance(self.value, dict):
            return self.value.get(str(part))
        if isinstance(self.value, list) and isinstance(part, int) and part < len(self.value):
            return self.value[part]
        return None


def parse_yaml(text: str) -> tuple[list[Node], list[Mark]]:
    """Every document of the text that is not empty, and everything about the text that must be written otherwise."""
    builder = _Builder()
    try:
        events = _events(text)
        documents = [builder.node(events, ()) for event in events if builder.starts_document(event)]
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        return [], [*builder.marks, Mark(line, (), f"not YAML: {error.problem or error.context}")]
    except YAMLError as error:
        return [], [*builder.marks, Mark(1, (), f"not YAML: {error}")]
    except _TooManyNodes:
        return [], [*builder.marks, Mark(1, (), "aliases unfold to too many values; write them out")]
    return [node for node in documents if node.value is not None], builder.marks


def _events(text: str) -> Iterator[Event]:
    # ruamel keeps the comments of round trips with the "rt" parser; "safe" and pure is the plain YAML 1.2 one.
    return iter(YAML(typ="safe", pure=True).parse(text))


class _TooManyNodes(Exception):
    pass


class _Builder:
    """Turns parse events into nodes and collects complaints."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._anchors: dict[str, Node] = {}
        self._count = 0

    def starts_document(self, event: Event) -> bool:
        if not isinstance(event, DocumentStartEvent):
            return False
        self._anchors.clear()
        if event.version or event.tags:
            self._complain(event, (), "a % directive is read differently by kubectl; remove it")
        return True

    def node(self, events: Iterator[Event], path: FieldPath) -> Node:
        return self._from(next(events), events, path)

    def _from(self, event: Event, events: Iterator[Event], path: FieldPath) -> Node:
        if isinstance(event, AliasEvent):
            return self._alias(event, path)
        assert isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent), event
        if event.tag is not None:
            self._complain(event, path, f"the tag `{event.tag}` is not read by all readers; write the value without it")
        line = event.start_mark.line + 1
        if isinstance(event, ScalarEvent):
            node = Node(line, self._scalar(event, path))
        elif isinstance(event, MappingStartEvent):
            node = Node(line, self._mapping(events, path))
        else:
            node = Node(line, self._sequence(events, path))
        self._count_nodes(1)
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: AliasEvent, path: FieldPath) -> Node:
        node = self._anchors.get(event.anchor)
        if node is None:
            self._complain(event, path, f"`*{event.anchor}` has no anchor `&{event.anchor}` before it")
            return Node(event.start_mark.line + 1, None)
        self._count_nodes(_size(node))
        return node

    def _count_nodes(self, count: int) -> None:
        self._count += count
        if self._count > _MAX_NODES:
            raise _TooManyNodes

    def _scalar(self, event: ScalarEvent, path: FieldPath) -> Scalar:
        if event.style is not None:
            return str(event.value)
        problem = disagreement(event.value)
        if problem is not None:
            self._complain(event, path, problem)
        return core_meaning(event.value)

    def _sequence(self, events: Iterator[Event], path: FieldPath) -> list[Node]:
        items: list[Node] = []
        for event in events:
            if isinstance(event, SequenceEndEvent):
                break
            items.append(self._from(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[Event], path: FieldPath) -> dict[str, Node]:
        entries: dict[str, Node] = {}
        for event in events:
            if isinstance(event, MappingEndEvent):
                break
            key = self._key(event, events, path)
            value = self.node(events, (*path, key))
            if key in entries:
                self._complain(event, (*path, key), f"stands twice, first on line {entries[key].line}; keep one")
            entries[key] = Node(event.start_mark.line + 1, value.value)
        return entries

    def _key(self, event: Event, events: Iterator[Event], path: FieldPath) -> str:
        if not isinstance(event, ScalarEvent):
            self._complain(event, path, "a key must be a plain word; write the field's name")
            self._from(event, events, path)
            return "?"
        key = str(event.value)
        if event.style is None and key == "<<":
            self._complain(event, (*path, key), "the merge key `<<` is not YAML 1.2; write the fields out")
        elif event.style is None and (disagreement(key) or not isinstance(core_meaning(key), str)):
            self._complain(event, (*path, key), f'the key `{key}` is not a text to every reader; quote it (`"{key}"`)')
        return key

    def _complain(self, event: Event, path: FieldPath, message: str) -> None:
        self.marks.append(Mark(event.start_mark.line + 1, path, message))


def _size(node: Node) -> int:
    children = list(node.value.values()) if isinstance(node.value, dict) else node.value
    return 1 + sum(_size(child) for child in children) if isinstance(children, list) else 1
