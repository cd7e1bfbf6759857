"""Weights and margins of rows: from files to tokenised rows, or refused by file and line."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet
from tests.tiny import tiny_tokenizer

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import DataReport
from alignment_trainer.data.examples import EXAMPLE_PARTS, Example, PromptGroup
from alignment_trainer.data.finding import DataSources
from alignment_trainer.data.preparation import FORMATS, Request, prepare_rows
from alignment_trainer.data.prepared import Examples, as_safetensors
from alignment_trainer.data.sources import Resolved
from alignment_trainer.data.spool import Selection, spool_in
from alignment_trainer.process.errors import UserError
from alignment_trainer.process.metrics import Metrics

ANSWERS: dict[str, dict[str, Any]] = {
    "reward": {"chosen": "a", "rejected": "b"},
    "dpo": {"chosen": "a", "rejected": "b"},
    "sft": {"completion": "a"},
    "kto": {"completion": "a", "label": True},
}
Numbers = list[tuple[float, float | None]]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> Path:
    path = folder / name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif name.endswith(".csv"):
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prepared(path: Path, algorithm: str, **data: Any) -> tuple[Numbers, DataReport]:
    """Weight and margin of each row, as training reads them from the prepared file; and what status says."""
    spec = AlignmentJobSpec.model_validate(
        {
            "model": {"source": "file:///model"},
            "data": {"source": f"file://{path}", "evaluation": {"fraction": 0.01}} | data,
            "algorithm": {algorithm: {}},
            "training": {"maxLength": 60, "microBatchTokens": 200},
        }
    )
    form = FORMATS[spec.algorithm.options.rows](spec, tiny_tokenizer())
    with spool_in(path.parent / "spool", form.parts, 0) as spool:
        sources = DataSources(Resolved(path), None)
        found = prepare_rows(Request(spec.data, "spec.data", 2), form, sources, spool, Metrics("x", "prepare"))
        examples = [one for split in found.splits.values() for one in stored(split, path.parent / "rows.safetensors")]
        return [(one.weight, one.margin) for one in sorted(examples, key=lambda one: one.row)], found.report


def stored(rows: Selection, path: Path) -> list[Example]:
    path.write_bytes(b"".join(as_safetensors(rows.columns())))
    return list(Examples(path))


def numbered(algorithm: str, *numbers: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [{"prompt": f"say {place}", **ANSWERS[algorithm], **each} for place, each in enumerate(numbers)]
    if algorithm == "kto":
        rows[0]["label"] = rows[1]["label"] = False
    return rows


WEIGHTS = [{"weight": weight} for weight in (0, 1, 0.1, 2.5, 3, 1e-3)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
@pytest.mark.parametrize("algorithm", ANSWERS)
def test_every_kind_of_row_has_its_weight_from_any_file_to_training(tmp_path: Path, algorithm: str, name: str) -> None:
    numbers, report = prepared(write(tmp_path, name, numbered(algorithm, *WEIGHTS)), algorithm)
    assert numbers == [(float(np.float32(each["weight"])), None) for each in WEIGHTS]
    (reading,) = report.readings
    assert reading.layout.endswith("; weight = `weight`")
    assert reading.unread == []


def test_a_margin_is_read_for_a_reward_model_and_said_to_be_unread_for_others(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", numbered("reward", *({"margin": 0.5 * place} for place in range(4))))
    numbers, report = prepared(path, "reward")
    assert numbers == [(1.0, 0.0), (1.0, 0.5), (1.0, 1.0), (1.0, 1.5)]
    assert [each.layout for each in report.readings] == ["texts; prompt = `prompt`; margin = `margin`"]
    numbers, report = prepared(path, "dpo")
    assert numbers == [(1.0, None)] * 4
    assert [(each.layout, each.unread) for each in report.readings] == [("texts; prompt = `prompt`", ["margin"])]


def test_columns_have_other_names_and_rows_may_lack_a_number(tmp_path: Path) -> None:
    rows = numbered("reward", {"w": 2, "m": 1}, {"w": None, "m": 0.25}, {}, {})
    numbers, report = prepared(write(tmp_path, "a.jsonl", rows), "reward", columns={"weight": "w", "margin": "m"})
    assert numbers == [(2.0, 1.0), (1.0, 0.25), (1.0, None), (1.0, None)]
    assert {each.layout: each.rows for each in report.readings} == {
        "texts; prompt = `prompt`": 2,
        "texts; prompt = `prompt`; margin = `m`": 1,
        "texts; prompt = `prompt`; weight = `w`; margin = `m`": 1,
    }


@pytest.mark.parametrize(
    ("number", "complaint"),
    [
        ({"weight": -1}, r"`weight` is -1; write 0 or more: how often the row counts"),
        ({"weight": math.inf}, "Infinity is no JSON"),
        ({"weight": "nan"}, r"`weight` is nan; write a finite number"),
        ({"weight": "much"}, r"`weight` is `much`; write a number"),
        ({"weight": True}, r"`weight` is a boolean; write a number"),
        ({"weight": [1]}, r"`weight` is a list; write a number"),
        ({"weight": 1e39}, r"`weight` is 1e\+39, more than single precision holds"),
        ({"weight": 10**400}, r"`weight` is `1000.*`; write a number"),
        ({"margin": -0.5}, r"`margin` is -0\.5; write 0 or more: by how much the chosen score is to be above"),
        ({"margin": {"a": 1}}, r"`margin` is an object; write a number"),
    ],
)
def test_a_number_that_is_none_is_refused_by_file_and_line(
    tmp_path: Path, number: dict[str, Any], complaint: str
) -> None:
    path = write(tmp_path, "rows.jsonl", numbered("reward", {}, number, {}))
    with pytest.raises(UserError, match=rf"1 of 3 rows are invalid.*\nrows\.jsonl:2: .*{complaint}"):
        prepared(path, "reward")


def test_rows_that_all_weigh_nothing_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "rows.jsonl", numbered("dpo", *[{"weight": 0}] * 4))
    with pytest.raises(UserError, match="training rows have weight 0; give those to learn from a weight above 0"):
        prepared(path, "dpo")
    rows = numbered("dpo", *[{"weight": 0}] * 4, {}, {})
    assert [weight for weight, _ in prepared(write(tmp_path, "rows.jsonl", rows), "dpo")[0]] == [0, 0, 0, 0, 1, 1]


def scored(*lists: tuple[list[str], list[float]]) -> list[dict[str, Any]]:
    return [{"prompt": f"say {n}", "completions": texts, "scores": scores} for n, (texts, scores) in enumerate(lists)]


def test_scores_become_margins_only_where_that_is_asked(tmp_path: Path) -> None:
    path = write(
        tmp_path, "a.jsonl", scored((["a", "b", "c"], [7, 2.5, 9]), (["a", "b"], [1, 1.5]), (["a", "b"], [3, 1]))
    )
    assert [margin for _, margin in prepared(path, "reward")[0]] == [None] * 5
    numbers, report = prepared(path, "reward", marginPerScore=0.5)
    assert [margin for _, margin in numbers] == [1.0, 3.25, 2.25, 0.25, 1.0]
    (reading,) = report.readings
    assert reading.layout.endswith("with different scores; margin = 0.5 for each point between the scores")


def test_scores_beside_two_answers_become_a_margin(tmp_path: Path) -> None:
    numbers = [{"score_chosen": 8.5, "score_rejected": 6.0}, {"score_chosen": 4, "score_rejected": 4}]
    path = write(tmp_path, "a.jsonl", numbered("reward", *numbers))
    found, report = prepared(path, "reward", marginPerScore=0.1)
    assert [margin for _, margin in found] == [0.25, 0.0]
    assert report.readings[0].layout.endswith("between the scores `score_chosen` and `score_rejected`")
    assert report.readings[0].unread == []


@pytest.mark.parametrize(
    ("number", "complaint"),
    [
        ({}, "marginPerScore makes a margin of scores, and the row has none; write `scores` beside"),
        ({"margin": 1}, "`margin` is a margin, and marginPerScore makes another; leave one of them out"),
        (
            {"score_chosen": 1, "score_rejected": 2},
            "`score_chosen` is 1 and `score_rejected` 2; the chosen one is worse",
        ),
        ({"score_chosen": 1, "score_rejected": "?"}, r"`score_rejected` is `\?`; write a number"),
    ],
)
def test_a_row_without_usable_scores_is_refused_where_they_are_asked_for(
    tmp_path: Path, number: dict[str, Any], complaint: str
) -> None:
    good = {"score_chosen": 2, "score_rejected": 1}
    path = write(tmp_path, "rows.jsonl", numbered("reward", good, good, number))
    with pytest.raises(UserError, match=rf"rows\.jsonl:3: {complaint}"):
        prepared(path, "reward", marginPerScore=0.1)


def test_rows_without_numbers_are_stored_as_ever_and_numbers_change_what_they_are_told_from(tmp_path: Path) -> None:
    """A file that was written before rows had numbers is read, and its rows keep their keys."""
    group = PromptGroup((1, 2), ((3,), (4, 5)))
    made = {"none": Example(3, group), "both": Example(3, group, weight=0.1, margin=0.25)}
    names, keys = {}, {}
    for name, example in made.items():
        with spool_in(tmp_path / name, EXAMPLE_PARTS, 0) as spool:
            spool.add([example])
            rows = Selection(spool, np.arange(1))
            names[name] = set(rows.columns())
            (read,) = stored(rows, tmp_path / "rows.safetensors")
            keys[name] = Examples(tmp_path / "rows.safetensors").keys()
        assert (read.group, read.margin) == (example.group, example.margin)
        assert read.weight == float(np.float32(example.weight))
    assert names["both"] - names["none"] == {
        f"{part}_{what}" for part in ("weight", "margin") for what in ("lengths", "tokens")
    }
    assert keys["both"] == keys["none"], "the reference says the same of both"


def test_a_last_row_may_lack_what_others_have(tmp_path: Path) -> None:
    """Spans of a demonstration with several turns, before one with a single turn."""
    several = PromptGroup((1,), ((2, 3, 4),), (((0, 1), (2, 3)),))
    made = [Example(1, several, weight=2.0), Example(2, PromptGroup((1,), ((2, 3),)))]
    with spool_in(tmp_path / "spool", EXAMPLE_PARTS, 0) as spool:
        spool.add(made)
        assert stored(Selection(spool, np.arange(2)), tmp_path / "rows.safetensors") == made


def test_a_turn_that_has_a_weight_of_its_own_is_refused_and_one_that_counts_as_it_is_read(tmp_path: Path) -> None:
    ask, first = {"role": "user", "content": "Hi."}, {"role": "assistant", "content": "a"}
    chats = [[ask, first | {"weight": weight}, ask | {"content": f"{n}?"}, first] for n, weight in enumerate((1, 0, 1))]
    chats[2][0] = ask | {"content": "Ho."}
    path = write(tmp_path, "rows.jsonl", [{"messages": chat} for chat in chats])
    with pytest.raises(UserError, match=r"rows\.jsonl:2: `messages\[1\]` has `weight`: weights and masks of turns are"):
        prepared(path, "sft")
    assert prepared(path, "sft", onInvalid="drop")[0] == [(1.0, None), (1.0, None)]
