"""The functions themselves. They are made and called in the worker; nothing here limits their time."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from alignment_api.contract.rewards import JsonSchema, Length, NumericAnswer, PythonFunction, Regex, RewardFunction
from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.extraction import answer_text

Score = Callable[[Answer], Any]
"""What an answer is worth; what is no finite number is its author's mistake."""
_SIGNATURE = "def {name}(completion: str, row: dict) -> float"


class BadFunction(Exception):
    """It cannot be made. field: below `function`, in camelCase. message: what was found and what to write instead."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class BadRow(Exception):
    """The row lacks what a function asks of it. message: what was found and what to write instead."""


def make_score(function: RewardFunction, path: Path | None) -> Score:
    """The function that the spec describes; `path` is where its module is, where it has one. Raises BadFunction."""
    return _MAKERS[function.name](getattr(function, function.name), path)


def _numeric_answer(options: NumericAnswer, path: Path | None) -> Score:
    from math_verify import parse, verify  # type: ignore[import-untyped]  # a second, for sympy

    # Its own time limits are alarms, and so is ours: without them it warns once for each thing it parses.
    logging.getLogger("math_verify").setLevel(logging.ERROR)

    def read(text: str | None) -> list[Any]:
        found: list[Any] = parse(text, parsing_timeout=None) if text else []
        if not found and text and "\\" in text:
            found = parse(f"${text}$", parsing_timeout=None)  # LaTeX without its dollars
        return found

    @lru_cache(maxsize=4096)
    def expected(answer: str) -> list[Any]:
        found = read(answer_text(answer)) or read(answer)
        if not found:
            raise BadRow(
                f"`{options.answer_field}` is {answer!r}, in which no number is found; write `42`, `3/4` or "
                "`$\\sqrt{2}$`, or name another field as answerField"
            )
        return found

    def is_right(gold: list[Any], found: list[Any]) -> bool:
        if _is_integer(gold[0]) and found and not _is_worked_out(found[0]):
            return False
        return bool(verify(gold, found, timeout_seconds=None))

    def score(answer: Answer) -> float:
        if options.answer_field not in answer.row:
            raise BadRow(
                f"it has no field `{options.answer_field}`, only {', '.join(sorted(answer.row))}; add the answer to "
                "every row, or name the field that has it as answerField"
            )
        gold = expected(str(answer.row[options.answer_field]))
        said = answer_text(answer.text, answer.thinking)
        readings = [said, said.replace("%", "")] if said and "%" in said else [said]  # 50% is 0.5, and "how many %?" 50
        return float(any(is_right(gold, read(reading)) for reading in readings))

    return score


def _is_integer(expression: Any) -> bool:
    return bool(getattr(expression, "is_Number", False) and expression == int(expression))


def _is_worked_out(expression: Any) -> bool:
    """Whether it is a number, or says that something equals one.

    Who asks for an integer wants it computed: repeating the question, `7 + 7`, is no answer, though equal to it.
    """
    return bool(getattr(getattr(expression, "rhs", expression), "is_Number", False))


def _regex(options: Regex, path: Path | None) -> Score:
    try:
        pattern = re.compile(options.pattern)
    except re.error as error:
        message = f"`{options.pattern}` is no Python regular expression ({error}); write for example `\\d+\\s*\\Z`"
        raise BadFunction("regex.pattern", message) from error
    return lambda answer: float(pattern.search(answer.text) is not None)


def _length(options: Length, path: Path | None) -> Score:
    """DAPO (Yu et al. 2025), eq. 13."""

    def score(answer: Answer) -> float:
        return -min(1.0, max(0, answer.tokens - options.max_tokens) / options.tolerance_tokens)

    return score


def _json_schema(options: JsonSchema, path: Path | None) -> Score:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry

    try:
        Draft202012Validator.check_schema(options.definition)
    except SchemaError as error:
        at = "/".join(map(str, error.absolute_path)) or "its root"
        message = f"no JSON Schema of draft 2020-12: at {at}, {error.message}; write for example `{{type: object}}`"
        raise BadFunction("jsonSchema.definition", message) from error
    validator = Draft202012Validator(options.definition, registry=Registry())  # an empty one: nothing is fetched

    def score(answer: Answer) -> float:
        try:
            found = json.loads(answer.text)
        except (ValueError, RecursionError):  # the latter for a thousand open brackets
            return 0.0
        return float(validator.is_valid(found))

    return score


def _python(options: PythonFunction, path: Path | None) -> Score:
    module_name, _, name = options.entrypoint.partition(":")
    function = _attribute(_import(module_name, path), name, module_name)
    wanted = f"write `{_SIGNATURE.format(name=name)}`"
    if not callable(function):
        raise BadFunction("python.entrypoint", f"`{name}` is {type(function).__name__}, not a function; {wanted}")
    _check_parameters(name, function, wanted)
    return lambda answer: function(completion=answer.text, row=dict(answer.row))


def _check_parameters(name: str, function: Any, wanted: str) -> None:
    """They are matched by name: what takes two of anything may be made for a batch, and would score a row as texts."""
    try:
        signature = inspect.signature(function)
    except ValueError as error:  # of some written in C
        message = f"the parameters of `{name}` cannot be seen; wrap it: {wanted}"
        raise BadFunction("python.entrypoint", message) from error
    parameters = signature.parameters.values()
    taken = {one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    asked = [
        f"`{one.name}`"
        for one in parameters
        if one.name not in ("completion", "row")
        and one.default is one.empty
        and one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)
    ]
    lacking = [f"`{needed}`" for needed in ("completion", "row") if needed not in taken]
    if not lacking and not asked:
        return
    found = [f"it asks for {' and '.join(asked)}"] if asked else []
    found += [f"it has no {' and no '.join(lacking)}"] if lacking else []
    raise BadFunction(
        "python.entrypoint",
        f"`{name}{signature}` cannot be called with a completion and its row by name: {', and '.join(found)}; it is "
        f"called for one completion at a time, and its prompt's columns are `row['column']`: {wanted}",
    )


def _import(name: str, path: Path | None) -> Any:
    if path is not None:
        sys.path.insert(0, str(path))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            message = f"module `{name}` imports `{error.name}`, which is not here; add it to the image, or do without"
        else:
            message = f"there is no module `{error.name}` {_place(path)}; write module:function"
        raise BadFunction("python.entrypoint", message) from error
    except MemoryError as error:
        message = f"importing `{name}` takes more memory than its process may have; load less, or write a larger "
        raise BadFunction("python.entrypoint", f"{message}`memory` beside it") from error
    except (Exception, SystemExit) as error:
        message = f"importing `{name}` raised {type(error).__name__}: {error}; it must import where the job runs"
        raise BadFunction("python.entrypoint", message) from error


def _place(path: Path | None) -> str:
    if path is None:
        return "among the image's packages, and no `path` is given"
    there = sorted(entry.stem for entry in path.iterdir() if entry.suffix == ".py" or entry.is_dir())
    return f"in {path}, where there are {', '.join(there[:10]) or 'none'}"


def _attribute(module: Any, name: str, module_name: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    known = [key for key, value in vars(module).items() if inspect.isfunction(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean `{module_name}:{near[0]}`?" if near else f"its functions: {', '.join(sorted(known)) or 'none'}"
    )
    raise BadFunction("python.entrypoint", f"module `{module_name}` has no `{name}`; {hint}")


_MAKERS: Mapping[str, Callable[[Any, Path | None], Score]] = {
    "numeric_answer": _numeric_answer,
    "regex": _regex,
    "length": _length,
    "json_schema": _json_schema,
    "python": _python,
}
