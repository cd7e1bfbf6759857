"""Layouts that people have: each is read as it is meant, and said to be, or refused with what to write."""

from __future__ import annotations

from typing import Any

import pytest

from alignment_api.contract.inputs import Columns
from alignment_trainer.data.layouts.formats import check_preferences, check_prompts
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.layouts.readings import Readings
from alignment_trainer.data.rows import InvalidRow, PreferenceRow, RawRow, Reading
from alignment_trainer.process.errors import UserError

TWO = {"chosen": "Yes.", "rejected": "No."}
HI = {"role": "user", "content": "Hi."}


def row(value: object) -> RawRow:
    return RawRow(1, "pairs.jsonl:1", value)


def pairs(value: object, **columns: str) -> list[PreferenceRow]:
    return parse_preferences(row(value), Columns(**columns))


def one(value: object, **columns: str) -> PreferenceRow:
    (pair,) = pairs(value, **columns)
    return pair


def turns(pair: PreferenceRow) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in pair.prompt]


def says(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize(
    ("value", "prompt", "layout"),
    [
        ({"prompt": "Hi.", **TWO}, [("user", "Hi.")], "texts; prompt = `prompt`"),
        (
            {"prompt": "Hi.", "system": "Be kind.", **TWO},
            [("system", "Be kind."), ("user", "Hi.")],
            "texts; prompt = `prompt` behind `system`",
        ),
        (
            {"instruction": "Sum up.", "input": "A text.", **TWO},
            [("user", "Sum up.\nA text.")],
            "texts; prompt = `instruction`, a line break, `input` (Alpaca)",
        ),
        (
            {"instruction": "Hi.", "input": "", "history": [], **TWO},
            [("user", "Hi.")],
            "texts; prompt = `instruction` (Alpaca)",
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Hi."}],
                "chosen": {"from": "gpt", "value": "Yes."},
                "rejected": {"from": "gpt", "value": "No."},
            },
            [("user", "Hi.")],
            "messages; prompt = `conversations` (ShareGPT)",
        ),
        (
            {
                "input": {"messages": [{"role": "developer", "content": "Be kind."}, HI], "tools": []},
                "preferred_output": [says("Yes.")],
                "non_preferred_output": [says("No.")],
            },
            [("system", "Be kind."), ("user", "Hi.")],
            "messages; prompt = `input.messages` (OpenAI)",
        ),
        (
            {"prompt": [{"role": "human", "content": [{"type": "text", "text": "Hi"}, {"type": "text", "text": "."}]}]}
            | {"chosen": says("Yes."), "rejected": says("No.")},
            [("user", "Hi.")],
            "messages; prompt = `prompt`, a list of messages",
        ),
        (
            {"prompt": " Hi.", "chosen": [HI, says("Yes.")], "rejected": [HI, says("No.")]},
            [("user", "Hi.")],
            "messages; prompt = all but the last assistant turn",
        ),
        (
            {"system": "Be kind.", "chosen": [HI, says("Yes.")], "rejected": [HI, says("No.")]},
            [("system", "Be kind."), ("user", "Hi.")],
            "messages; prompt = all but the last assistant turn behind `system`",
        ),
        (
            {"prompt": [{"role": "system", "content": "Be kind."}, HI]}
            | {"chosen": [HI, says("Yes.")], "rejected": [HI, says("No.")]},
            [("system", "Be kind."), ("user", "Hi.")],
            "messages; prompt = all but the last assistant turn behind the system message of the given prompt",
        ),
        (
            {
                "prompt": [HI],
                "chosen": [says("Wait."), {"role": "tool", "content": "3"}, says("Yes.")],
                "rejected": [says("Wait."), {"role": "tool", "content": "3"}, says("No.")],
            },
            [("user", "Hi."), ("assistant", "Wait."), ("tool", "3")],
            "messages; prompt = `prompt`, a list of messages and all but the last assistant turn",
        ),
        (
            {
                "chosen": "\n\nHuman: Hi.\n\nAssistant: Hm?\n\nHuman: Well\nthen?\n\nAssistant: Yes.",
                "rejected": "\n\nHuman: Hi.\n\nAssistant: Hm?\n\nHuman: Well\nthen?\n\nAssistant: No.",
            },
            [("user", "Hi."), ("assistant", "Hm?"), ("user", "Well\nthen?")],
            "transcripts; prompt = all but the last assistant turn",
        ),
        (
            {"prompt": "\n\nHuman: Hi.\n\nAssistant:", **TWO},
            [("user", "Hi.")],
            "texts; prompt = `prompt`, the turns of a transcript",
        ),
    ],
)
def test_a_layout_is_read_as_it_is_meant_and_says_how(value: object, prompt: object, layout: str) -> None:
    pair = one(value)
    assert (turns(pair), pair.chosen, pair.rejected, pair.reading.layout) == (prompt, "Yes.", "No.", layout)


def test_columns_by_other_names_are_read_where_the_job_says_so() -> None:
    value = {"question": "Hi.", "style": "Be kind.", "good": "Yes.", "bad": "No.", "id": 7}
    pair = one(value, prompt="question", system="style", chosen="good", rejected="bad")
    assert (turns(pair), pair.chosen, pair.names) == (
        [("system", "Be kind."), ("user", "Hi.")],
        "Yes.",
        ("good", "bad"),
    )
    assert pair.reading == Reading("texts; prompt = `question` behind `style`", frozenset({"id"}))
    assert parse_prompt(row(value), Columns(prompt="question")).prompt == pair.prompt[1:]


def test_a_column_that_no_row_has_is_refused_with_the_nearest() -> None:
    rows, columns = [row({"question": "Hi.", **TWO})], Columns(prompt="questions")
    with pytest.raises(
        UserError, match=r"spec\.data\.columns\.prompt: no row of x has a `questions`; did you mean `que"
    ):
        check_preferences(rows, "x", columns)
    with pytest.raises(UserError, match=r"spec\.data\.columns\.prompt: no row of x has a `z`; found `chosen`, `questi"):
        check_prompts(rows, "x", Columns(prompt="z"))
    check_prompts(rows, "x", Columns(prompt="question"))


def test_what_was_not_read_is_counted_by_layout() -> None:
    readings = Readings("pvc://data/a.jsonl")
    for value in ({"prompt": "Hi.", "margin": 2.5, **TWO}, {"prompt": "Hi.", "id": 1, "margin": None, **TWO}):
        readings.add(one(value).reading)
    readings.add(one({"instruction": "Hi.", **TWO}).reading)
    assert [(each.source, each.layout, each.rows, each.unread) for each in readings.reports()] == [
        ("pvc://data/a.jsonl", "texts; prompt = `prompt`", 2, ["margin", "id"]),
        ("pvc://data/a.jsonl", "texts; prompt = `instruction` (Alpaca)", 1, []),
    ]


def test_each_of_several_rejected_is_a_pair() -> None:
    found = pairs({"prompt": "Hi.", "chosen": "Yes.", "rejected": ["No.", "Never."]})
    assert [(pair.chosen, pair.rejected, pair.names[1]) for pair in found] == [
        ("Yes.", "No.", "rejected[0]"),
        ("Yes.", "Never.", "rejected[1]"),
    ]
    chats = pairs({"prompt": [HI], "chosen": [says("Yes.")], "rejected": [[says("No.")], [says("Never.")]]})
    assert [pair.rejected for pair in chats] == ["No.", "Never."]


@pytest.mark.parametrize(
    "value",
    [
        {"completions": ["c", "a", "b", "B"], "scores": [1, 9.5, 4, 4]},
        {"completions": ["c", "a", "b", "B"], "ranks": [3, 1, 2, 2]},
        {"completions": [{"response": text, "score": score} for text, score in zip("cabB", (1, 9, 4, 4), strict=True)]},
        {"completions": [{"role": "assistant", "content": text} for text in "cabB"], "scores": [1, 9, 4, 4]},
    ],
)
def test_every_two_completions_of_different_scores_are_a_pair_and_ties_are_none(value: dict[str, Any]) -> None:
    found = pairs({"prompt": "Hi.", **value})
    assert sorted((pair.chosen, pair.rejected) for pair in found) == [
        ("B", "c"),
        ("a", "B"),
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert {pair.names for pair in found if pair.chosen == "a" and pair.rejected == "c"} == {
        ("completions[1]", "completions[0]")
    }


CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (
            {"question": "Hi.", **TWO},
            "`prompt` is missing; found `question`, `chosen`, `rejected`. Write the text that",
        ),
        ({"question": "Hi.", **TWO}, "`columns: {prompt: question}` beside `source`"),
        ({"prompt": "Hi.", "chosen": None, "rejected": "No."}, "`chosen` is null"),
        ({"prompt": "Hi.", "chosen": [HI, CALL], "rejected": [HI, says("No.")]}, "`chosen[1]` has `tool_calls`: tools"),
        ({"prompt": "Hi.", "tools": [{}], **TWO}, "`tools`: tools are not read yet"),
        ({"prompt": "Hi.", "images": ["a.png"], **TWO}, "the row has images"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url"}]}], **TWO},
            "`prompt[0]` has a part of type `image_url`; only text is read",
        ),
        (
            {"prompt": "Hi.", "chosen": {"reasoning_content": "x", **says("Yes.")}, "rejected": says("No.")},
            "`chosen[0]` has `reasoning_content`: write it in `content`",
        ),
        (
            {"conversations": [{"from": "observation", "value": "3"}], **TWO},
            "`conversations[0]` has role `observation`: tools are not read yet",
        ),
        ({"instruction": "Hi.", "history": [["a", "b"]], **TWO}, "`history`: earlier turns are read from messages"),
        ({"prompt": [HI, says("Well, ")], **TWO}, "`prompt` ends with role `assistant`"),
        (
            {"prompt": "Bye.", "chosen": [HI, says("Yes.")], "rejected": [HI, says("No.")]},
            "`chosen` is a conversation that does not hold `prompt`",
        ),
        (
            {"system": "Be rude.", "prompt": [{"role": "system", "content": "Be kind."}, HI], **TWO},
            "two different system messages",
        ),
        (
            {"chosen": "\n\nHuman: Hi.\n\nHuman: Hi?\n\nAssistant: Yes.", "rejected": "\n\nHuman: a\n\nAssistant: No."},
            "`chosen` is a transcript of Human, Human, Assistant; they must alternate",
        ),
        (
            {
                "chosen": "\n\nHuman: Hi.\n\nAssistant: Yes.\n\nHuman: Bye.\n\nAssistant: Bye.",
                "rejected": "\n\nHuman: Hi.\n\nAssistant: No.",
            },
            "`chosen` (4 messages) and `rejected` (2 messages) differ before their last",
        ),
        (
            {"prompt": "Hi.", "chosen": "\n\nHuman: Hi.\n\nAssistant: Yes.", "rejected": "No."},
            "`chosen` is a transcript and the other answer is not",
        ),
        ({"chosen": "The sky is blue.", "rejected": "The sky is green."}, "`prompt` is missing"),
        ({"prompt": "Hi.", "completions": ["a", "b"], "scores": [1, 1]}, "all 2 of `completions` have the same scores"),
        ({"prompt": "Hi.", "completions": ["a", "b"], "scores": [1]}, "`scores` must be a list of 2 numbers"),
        ({"prompt": "Hi.", "completions": ["a", "b"], "scores": [1, True]}, "`scores` has something that is no number"),
        ({"prompt": "Hi.", "completions": ["a", "b"], "scores": [1, float("nan")]}, "not finite"),
        ({"prompt": "Hi.", "completions": ["a", "b"]}, "neither `scores`"),
        ({"prompt": "Hi.", "completions": ["a", "a"], "scores": [1, 2]}, "are the same"),
        ({"prompt": "Hi.", "chosen": "a", "rejected": list("bcdefghijklm" * 3)}, "36 completions, more than 32"),
    ],
)
def test_a_layout_that_cannot_be_read_says_what_to_write(value: object, complaint: str) -> None:
    with pytest.raises(InvalidRow) as caught:
        pairs(value)
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("value", "name", "remedy"),
    [
        ({"conversations": [HI]}, "demonstrations (ShareGPT's `conversations`)", "as `rejected`"),
        ({"instruction": "a", "input": "", "output": "b"}, "demonstrations (Alpaca's", "as `rejected`"),
        ({"text": "a"}, "demonstrations (`text`)", "as `rejected`"),
        ({"prompt": "a", "completion": "b", "label": True}, "binary feedback", "a good and a bad completion"),
    ],
)
def test_what_is_no_preference_is_named_with_what_to_write(value: object, name: str, remedy: str) -> None:
    with pytest.raises(UserError) as caught:
        check_preferences([row(value)], "x")
    assert name in str(caught.value)
    assert remedy in str(caught.value)
