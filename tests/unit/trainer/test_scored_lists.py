"""Lists of scored or ranked completions: from small files to tokenised pairs, or refused by file and line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet
from tests.tiny import tiny_tokenizer

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import DataReport
from alignment_trainer.data.finding import DataSources
from alignment_trainer.data.preparation import FORMATS, Request, prepare_rows
from alignment_trainer.data.prepared import Examples, as_safetensors
from alignment_trainer.data.sampler import Groups
from alignment_trainer.data.sources import Resolved
from alignment_trainer.data.spool import spool_in
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.metrics import Metrics

Pair = tuple[int, str, str]
"""Number of the row, and what the two completions say."""
LAST = {"prompt": "last", "chosen": "x", "rejected": "y"}


def prepared(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl", **data: Any) -> tuple[list[Pair], Any]:
    """The pairs that a dpo job trains on, in order, and what status says; a row of its own is held out."""
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = folder / "held-out.jsonl"
    rated = [{"response": "x", "overall_score": 2}, {"response": "y", "overall_score": 1}]
    last = {"prompt": "last", "completions": rated} if "columns" in data else LAST
    held_out.write_text(json.dumps(last) + "\n")
    spec = AlignmentJobSpec.model_validate(
        {
            "model": {"source": "file:///model"},
            "data": {"source": f"file://{path}", "evaluation": {"source": f"file://{held_out}"}} | data,
            "algorithm": {"dpo": {}},
            "training": {"maxLength": 60, "microBatchTokens": 200},
        }
    )
    tokenizer = tiny_tokenizer()
    form = FORMATS["preferences"](spec, tokenizer)
    with spool_in(folder / "spool", form.parts, 0) as spool:
        sources = DataSources(Resolved(path), Resolved(held_out))
        found = prepare_rows(Request(spec.data, "spec.data", 2), form, sources, spool, Metrics("x", "prepare"))
        (folder / "train").write_bytes(b"".join(as_safetensors(found.splits["train"].columns())))
    examples = Examples(folder / "train")
    said = [
        [tokenizer.decode(answer).removesuffix("<|im_end|>") for answer in one.group.completions] for one in examples
    ]
    assert (examples.groups is None) == (len({one.row for one in examples}) == len(examples))
    return [(one.row, *both) for one, both in zip(examples, said, strict=True)], found.report


def reading(report: DataReport) -> tuple[str, list[str]]:
    first = report.readings[0]
    return first.layout, first.unread


RATED = {
    "source": "x",
    "instruction": "Say hi",
    "models": ["one", "two", "three", "four"],
    "completions": [
        {"model": "one", "response": "a", "overall_score": 7.5, "critique": "Good."},
        {"model": "two", "response": "b", "overall_score": 4.0, "critique": "Bad."},
        {"model": "three", "response": "c", "overall_score": 7.5, "critique": "Good."},
        {"model": "four", "response": "d", "overall_score": 9.0, "critique": "Best."},
    ],
}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_rated_lists_are_pairs_of_every_two_that_differ_from_the_best_on(tmp_path: Path, name: str) -> None:
    two = RATED | {"instruction": "Say ho", "completions": [RATED["completions"][1], RATED["completions"][0]]}
    found, report = prepared(tmp_path, [RATED, two], name, columns={"scores": "overall_score"})
    assert found == [(1, "d", "a"), (1, "d", "c"), (1, "d", "b"), (1, "a", "b"), (1, "c", "b"), (2, "a", "b")]
    layout, unread = reading(report)
    assert layout == (
        "texts; prompt = `instruction` (Alpaca); a pair of every two `completions` with different scores "
        "(`overall_score`)"
    )
    assert unread == ["completions[].critique", "completions[].model", "models", "source"]
    assert [each.rows for each in report.readings if each.source.endswith(name)] == [2]


@pytest.mark.parametrize(
    ("row", "of"),
    [
        ({"responses": ["a", "b", "c"], "scores": [1, 3, 2]}, "`responses` with different scores"),
        ({"responses": ["a", "b", "c"], "ranks": [3, 1, 2]}, "`responses` with different ranks"),
        (
            {"completions": [{"text": "a", "rank": 3}, {"text": "b", "rank": 1}, {"text": "c", "rank": 2}]},
            "different ranks",
        ),
        (
            {
                "completions": [
                    {"role": "assistant", "content": t, "score": s} for t, s in (("a", 1), ("b", 3), ("c", 2))
                ]
            },
            "`completions` with different scores",
        ),
    ],
)
def test_names_of_lists_and_forms_of_scores(tmp_path: Path, row: dict[str, Any], of: str) -> None:
    found, report = prepared(tmp_path, [{"prompt": "Say hi"} | row])
    assert found == [(1, "b", "c"), (1, "b", "a"), (1, "c", "a")]
    assert reading(report)[0].endswith(of)


def test_a_chosen_one_is_a_pair_with_each_of_any_number_of_rejected(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Say hi", "chosen": "a", "rejected": ["b", "c", "d"]},
        {"prompt": "Say ho", "chosen": "a", "rejected": ["b"]},
        {"prompt": "Say hu", "chosen": "a", "rejected": "b"},
    ]
    found, report = prepared(tmp_path, rows)
    assert found == [(1, "a", "b"), (1, "a", "c"), (1, "a", "d"), (2, "a", "b"), (3, "a", "b")]
    assert {each.layout: each.rows for each in report.readings if each.source.endswith("rows.jsonl")} == {
        "texts; prompt = `prompt`; a pair with each of `rejected`": 2,
        "texts; prompt = `prompt`": 1,
    }


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"scores": [1, "high"]}, r"`scores` has something that is no number: `scores\[1\]` is `high`; write one"),
        ({"scores": [1]}, "`scores` must be a list of 2 numbers, one of each completion; it has 1"),
        ({"scores": 3}, "`scores` must be a list of 2 numbers, one of each completion; it is a number"),
        ({"scores": [2, 2]}, "all 2 of `completions` have the same scores"),
        ({}, "has neither `scores` .* nor `ranks` .*best\\)$"),
        (
            {"completions": [{"text": "a", "score": 1}, {"text": "b"}]},
            r"`score` has something that is no number: `completions\[1\]\.score` is null",
        ),
        (
            {"completions": [{"text": "a", "helpful": 1, "honest": 2}, {"text": "b", "helpful": 2}]},
            r"its completions have `helpful`, `honest`: say which is meant, `columns: \{scores: helpful\}`",
        ),
    ],
)
def test_a_list_that_states_no_preference_is_refused_by_file_and_line(
    tmp_path: Path, row: dict[str, Any], complaint: str
) -> None:
    rows = [LAST | {"prompt": "first"}, {"prompt": "Say hi", "completions": ["a", "b"]} | row]
    with pytest.raises(UserError, match=rf"1 of 3 rows are invalid.*\nrows\.jsonl:2: .*{complaint}"):
        prepared(tmp_path, rows)


def test_a_tie_is_dropped_and_counted_where_that_is_asked(tmp_path: Path) -> None:
    tied = {"prompt": "Say hi", "completions": ["a", "b"], "scores": [2, 2]}
    found, report = prepared(tmp_path, [LAST | {"prompt": "first"}, tied], onInvalid="drop")
    assert (found, report.invalid_rows) == ([(1, "x", "y")], 1)


def test_a_name_that_neither_a_row_nor_a_completion_has_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"columns\.scores: no row of .* has a `overal_score`; did you mean `overall_score`"
    ):
        prepared(tmp_path, [RATED], columns={"scores": "overal_score"})


def test_pairs_of_a_list_are_one_group(tmp_path: Path) -> None:
    prepared(tmp_path, [RATED, LAST | {"prompt": "first"}], columns={"scores": "overall_score"})
    groups = Examples(tmp_path / "train").groups
    assert isinstance(groups, Groups)
    assert groups.starts.tolist() == [0, 5]
