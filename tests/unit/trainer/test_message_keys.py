"""Keys of chat messages beside who says what: refused where they change what a row means, else told as not read."""

from __future__ import annotations

from typing import Any

import pytest

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.parsers import PARSERS
from alignment_trainer.data.rows import InvalidRow, RawRow, Reading

HI = {"role": "user", "content": "Hi."}
HO = {"role": "assistant", "content": "Ho."}


def reading(form: str, value: object) -> Reading:
    found = PARSERS[form].parse(RawRow(1, "x:1", value), Columns())[0].reading
    assert isinstance(found, Reading)
    return found


def refusal(form: str, value: object) -> str:
    with pytest.raises(InvalidRow) as refused:
        reading(form, value)
    return str(refused.value)


@pytest.mark.parametrize(
    ("turn", "key", "remedy"),
    [
        (HO | {"tool_calls": [{"id": "1"}]}, "tool_calls", "tools are not read yet"),
        ({"role": "tool", "content": "3", "tool_call_id": "1"}, "tool_call_id", "tools are not read yet"),
        (HI | {"images": ["a.png"]}, "images", "images are not read"),
        (HI | {"video": "a.mp4"}, "video", "videos are not read"),
        (HO | {"audio": {"id": "1"}}, "audio", "sounds are not read"),
        (HO | {"weight": 0}, "weight", "give each turn that shall be learned a row of its own"),
        (HO | {"weight": 0.5}, "weight", "weights and masks of turns are not read"),
        (HO | {"train": False}, "train", "weights and masks of turns are not read"),
        (HO | {"masked": True}, "masked", "weights and masks of turns are not read"),
        (HO | {"mask": 1}, "mask", "weights and masks of turns are not read"),
        (HI | {"loss": True}, "loss", "weights and masks of turns are not read"),
        (HO | {"training_detail": [{"begin_offset": 0}]}, "training_detail", "weights and masks of turns are not read"),
    ],
)
def test_a_key_that_changes_what_is_learned_is_refused_by_name(turn: dict[str, Any], key: str, remedy: str) -> None:
    message = refusal("demonstrations", {"messages": [HI, HO, turn, HI, HO]})
    assert message.startswith(f"`messages[2]` has `{key}`: ")
    assert remedy in message


@pytest.mark.parametrize("form", ["preferences", "feedback", "prompts"])
def test_it_is_refused_of_every_format(form: str) -> None:
    prompt = [HI, HO | {"weight": 0}, HI]
    value = {"prompt": prompt, "chosen": "a", "rejected": "b", "completion": "a", "label": True}
    assert "`prompt[1]` has `weight`" in refusal(form, value)


def test_a_weight_that_says_what_is_done_is_read_as_if_it_were_not_there() -> None:
    value = {"messages": [HI | {"weight": 0}, HO | {"weight": 1.0, "train": True, "masked": False}]}
    assert reading("demonstrations", value).unread == {f"messages[].{key}" for key in ("weight", "train", "masked")}


@pytest.mark.parametrize(
    ("form", "value", "unread"),
    [
        (
            "demonstrations",
            {"messages": [HI | {"name": "Ann", "id": None}, HO | {"timestamp": 3, "tool_calls": []}], "source": "web"},
            {"messages[].name", "messages[].timestamp", "source"},
        ),
        (
            "demonstrations",
            {"conversations": [{"from": "human", "value": "Hi.", "lang": "en"}, {"from": "gpt", "value": "Ho."}]},
            {"conversations[].lang"},
        ),
        (
            "preferences",
            {
                "prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi.", "cache": True, "url": None}]}],
                "chosen": HO | {"model": "a"},
                "rejected": [[HI | {"role": "assistant", "model": "b"}]],
            },
            {"prompt[].content[].cache", "chosen.model", "rejected[][].model"},
        ),
        (
            "preferences",
            {"prompt": "Hi.", "completions": [{"text": a, "score": s, "by": "x"} for a, s in (("a", 1), ("b", 2))]},
            {"completions[].by"},
        ),
        (
            "preferences",
            {
                "input": {"messages": [HI | {"name": "Ann"}], "parallel_tool_calls": True},
                "preferred_output": [HO],
                "non_preferred_output": [HO | {"content": "No."}],
            },
            {"input.messages[].name", "input.parallel_tool_calls"},
        ),
        ("prompts", {"prompt": [HI | {"name": "Ann"}], "answer": "3"}, {"prompt[].name"}),
    ],
)
def test_other_keys_are_told_as_unread_columns_are(form: str, value: object, unread: set[str]) -> None:
    assert reading(form, value).unread == unread


@pytest.mark.parametrize("column", ["audio", "videos", "images"])
def test_a_row_with_what_is_no_text_is_refused(column: str) -> None:
    what = {"audio": "sounds", "videos": "videos", "images": "images"}[column]
    assert refusal("demonstrations", {"messages": [HI, HO], column: ["a"]}) == (
        f"the row has {what}, which are not read; drop it"
    )
