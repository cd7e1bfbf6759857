"""Rows that are longer than a job allows are refused, cut at the beginning of their prompt, or dropped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.tiny import tiny_tokenizer

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_trainer.data.finding import DataSources
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.preparation import FORMATS, PreparedRows, Request, prepare_rows
from alignment_trainer.data.rows import InvalidRow, RawRow, RowTooLong
from alignment_trainer.data.sources import Resolved
from alignment_trainer.data.spool import spool_in
from alignment_trainer.data.tokenize import PairTokenizer
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.metrics import Metrics

MAX_LENGTH = 60
LONG = "word " * 40 + "and the end"
SAMPLES = {"ppo": {"rewards": [{"name": "x", "function": {"regex": {"pattern": "x"}}}], "maxNewTokens": 20}}
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "pairs": ("dpo", {}, {"chosen": "a", "rejected": "b"}),
    "demonstrations": ("sft", {}, {"completion": "a"}),
    "feedback": ("kto", {}, {"completion": "a", "label": True}),
    "prompts": ("ppo", SAMPLES["ppo"], {}),
}


def prompt_of(turns: list[tuple[str, str]], **answers: str) -> str:
    """The prompt that is left of a pair's."""
    tokenizer = tiny_tokenizer()
    prompt = [{"role": role, "content": content} for role, content in turns]
    (row,) = parse_preferences(RawRow(1, "x:1", {"prompt": prompt, "chosen": "Good", "rejected": "Bad"} | answers))
    encoder = PairTokenizer(tokenizer, MAX_LENGTH, 2 * MAX_LENGTH, cuts_prompts=True)
    example = encoder.encode(row)
    assert all(len(example.prompt) + len(answer) <= MAX_LENGTH for answer in example.group.completions)
    assert [tokenizer.decode(answer) for answer in example.group.completions] == ["Good<|im_end|>", "Bad<|im_end|>"]
    assert encoder.cut == 1
    text: str = tokenizer.decode(example.prompt)
    return text


def test_the_oldest_turns_go_first_and_no_system_message() -> None:
    turns = [("system", "Be brief."), ("user", LONG), ("assistant", "Yes"), ("user", "And?")]
    assert prompt_of(turns) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_of_the_last_turn_the_beginning_goes_and_no_more_than_must() -> None:
    text = prompt_of([("system", "Be brief."), ("user", LONG)])
    begin, end = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    assert text.startswith(begin)
    assert text.endswith(f"and the end{end}")
    kept = text.removeprefix(begin).removesuffix(end)
    assert LONG.endswith(kept)
    with pytest.raises(AssertionError, match="assert 0 == 1"):
        prompt_of([("system", "Be brief."), ("user", kept)])


def test_an_answer_is_never_cut() -> None:
    (row,) = parse_preferences(RawRow(1, "x:1", {"prompt": "Hi", "chosen": LONG, "rejected": "b"}))
    encoder = PairTokenizer(tiny_tokenizer(), MAX_LENGTH, 2 * MAX_LENGTH, cuts_prompts=True)
    with pytest.raises(RowTooLong, match=r"more than 60 \(spec\.training\.maxLength\)"):
        encoder.encode(row)


def prepared(folder: Path, kind: str, too_long: str, rows: list[str]) -> tuple[PreparedRows, list[str]]:
    """Rows with these prompts, read as that kind; the lines of what was dropped."""
    algorithm, options, answer = ROWS[kind]
    data = folder / "rows.jsonl"
    labels = [{"label": place % 2 == 0} if kind == "feedback" else {} for place in range(len(rows))]
    lines = [{"prompt": prompt} | answer | label for prompt, label in zip(rows, labels, strict=True)]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    spec = AlignmentJobSpec.model_validate(
        {
            "model": {"source": "file:///model"},
            "data": {"source": f"file://{data}", "onTooLong": too_long, "evaluation": {"fraction": 0.3}},
            "algorithm": {algorithm: options},
            "training": {"maxLength": MAX_LENGTH, "microBatchTokens": 200},
        }
    )
    form = FORMATS[spec.algorithm.options.rows](spec, tiny_tokenizer())
    with spool_in(folder / "spool", form.parts, 0) as spool:
        found = prepare_rows(
            Request(spec.data, "spec.data", 2), form, DataSources(Resolved(data), None), spool, Metrics("x", "prepare")
        )
        return found, b"".join(found.dropped).decode().splitlines()


PROMPTS = [f"short {number}" for number in range(9)] + [LONG]


@pytest.mark.parametrize("kind", ROWS)
def test_a_job_says_what_becomes_of_rows_that_are_too_long(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"1 of 10 rows are invalid"):
        prepared(tmp_path, kind, "refuse", PROMPTS)
    dropped, lines = prepared(tmp_path, kind, "drop", PROMPTS)
    assert (dropped.report.rows + dropped.report.evaluation_rows, dropped.report.too_long_rows) == (9, 1)
    assert dropped.report.invalid_rows == 0
    assert [json.loads(line)["row"] for line in lines] == [10]
    cut, lines = prepared(tmp_path, kind, "truncatePrompt", PROMPTS)
    assert (cut.report.rows + cut.report.evaluation_rows, cut.report.truncated_rows) == (10, 1)
    assert lines == []


def test_what_is_invalid_otherwise_is_still_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"rows\.jsonl:10: .*1 of 10|1 of 10 rows are invalid"):
        prepared(tmp_path, "pairs", "drop", [*PROMPTS[:9], ""])
    assert issubclass(RowTooLong, InvalidRow)
