"""What is told of errors that are not ours: what is wrong and where, never what a file holds that could not be read."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable

import pytest

from alignment_api.contract.context import Failure
from alignment_trainer.process.errors import UserError, describe, failure_of
from alignment_trainer.process.logs import JsonFormatter

SECRET = "q7-Xb_94hSecretOfAnother"
PARSERS: dict[str, tuple[Callable[[], object], str]] = {
    "JSON": (lambda: json.loads(f"[{SECRET}"), "not JSON at line 1, column 2 (Expecting value)"),
    "UTF-8": (lambda: (SECRET.encode() + b"\xff").decode(), f"not utf-8 at byte {len(SECRET)}"),
    "a type": (
        lambda: Failure.model_validate_json(f'{{"reason": "A", "message": "b", "retryable": "{SECRET}"}}'),
        "`retryable`: Input should be a valid boolean, unable to interpret input",
    ),
    "an unknown field": (
        lambda: Failure.model_validate_json(f'{{"reason": "A", "message": "b", "retryable": true, "{SECRET}": 1}}'),
        "`its root`: Extra inputs are not permitted",
    ),
    "no object": (lambda: Failure.model_validate_json(SECRET), "`its root`: Invalid JSON: expected value at line 1"),
    "a number": (lambda: float(SECRET), "could not convert string to float: ..."),
    "an integer": (lambda: int(SECRET), "invalid literal for int() with base 10: ..."),
}


@pytest.mark.parametrize("kind", PARSERS)
def test_an_error_of_a_parser_is_told_without_what_it_met(kind: str) -> None:
    parse, words = PARSERS[kind]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (each has its own type)
        parse()
    assert words in describe(caught.value)
    assert failure_of(caught.value).message.startswith(words)
    assert SECRET not in describe(caught.value) + failure_of(caught.value).message


@pytest.mark.parametrize("kind", ["JSON", "UTF-8", "a type", "no object", "a number"])
def test_nor_does_the_traceback_in_the_log_hold_it(kind: str) -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonFormatter({}))
    logger = logging.Logger("of this test")
    logger.addHandler(handler)
    try:
        PARSERS[kind][0]()
    except ValueError:
        logger.exception("not read")
    assert "Traceback" in out.getvalue()
    assert SECRET not in out.getvalue()


def test_our_own_words_and_what_they_quote_stay() -> None:
    assert describe(UserError("InvalidSpec", 'string "four" is no number')) == 'string "four" is no number'


def test_an_error_without_words_is_told_by_its_kind_and_a_long_one_is_cut() -> None:
    assert describe(RuntimeError()) == "RuntimeError"
    assert describe(RuntimeError("one\n  two")) == "one two"
    assert len(describe(RuntimeError("x" * 1000))) == 400
