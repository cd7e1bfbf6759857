"""Token masks under the chat formats of model families: what is learned is what their documentation says."""

from __future__ import annotations

from typing import Any

import pytest
from real_templates import FORMATS, HI, NO, SO, YES, Format
from tests.tiny import tiny_tokenizer

from alignment_trainer.data.demonstrations import DemonstrationTokenizer
from alignment_trainer.data.examples import Example
from alignment_trainer.data.feedback import FeedbackTokenizer
from alignment_trainer.data.layouts.parsers import PARSERS
from alignment_trainer.data.rows import InvalidRow, RawRow
from alignment_trainer.data.tokenize import PairTokenizer

every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)


def tokenizer_of(form: Format) -> Any:
    tokenizer = tiny_tokenizer(form.template)
    tokenizer.add_special_tokens({"additional_special_tokens": list(form.special), "eos_token": form.eos})
    if form.bos:
        tokenizer.add_special_tokens({"bos_token": form.special[0]})
    return tokenizer


def talk(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]


def marked(example: Example, tokenizer: Any) -> str:
    """The text of prompt and completion, what is learned between « and »."""
    [completion], [spans] = example.group.completions, example.group.trained
    text, last = tokenizer.decode(example.prompt), 0
    for start, stop in spans:
        text += tokenizer.decode(completion[last:start]) + "«" + tokenizer.decode(completion[start:stop]) + "»"
        last = stop
    return text + tokenizer.decode(completion[last:])


def demonstration(form: Format, messages: list[dict[str, str]]) -> str:
    """As it is learned from, or why it is not."""
    tokenizer = tokenizer_of(form)
    [row] = PARSERS["demonstrations"].parse(RawRow(1, "rows:1", {"messages": messages}))
    try:
        return marked(DemonstrationTokenizer(tokenizer, 500, 1000).encode(row), tokenizer)
    except InvalidRow as error:
        return str(error)


@every_format
def test_an_answer_is_learned_from_behind_its_header_to_the_end_of_its_turn(form):
    assert demonstration(form, talk(HI, YES)) == form.told


@every_format
def test_each_answer_of_a_conversation_is_learned_or_the_row_is_refused(form):
    found = demonstration(form, talk(HI, YES, SO, NO))
    assert found == form.talk if "«" in form.talk else found.startswith(form.talk)


@every_format
def test_a_system_message_stands_where_the_format_has_it_or_is_refused(form):
    found = demonstration(form, [{"role": "system", "content": "Be brief."}, *talk(HI, YES)])
    learned = form.told[form.told.index("«") :] if form.system and not form.system.startswith("the chat") else ""
    assert found.startswith(form.system + learned)


@every_format
def test_pairs_and_feedback_are_cut_at_the_same_seam(form):
    tokenizer, (asked, learned) = tokenizer_of(form), form.told.rstrip("»").split("«")
    refused = learned.replace(YES, NO)
    [pair] = PARSERS["preferences"].parse(RawRow(1, "rows:1", {"prompt": HI, "chosen": YES, "rejected": NO}))
    found = PairTokenizer(tokenizer, 500, 1000).encode(pair)
    assert [tokenizer.decode(found.prompt), *map(tokenizer.decode, found.group.completions)] == [
        asked,
        learned,
        refused,
    ]
    rows = [{"prompt": prompt, "completion": YES, "label": True} for prompt in (HI, SO)]
    opinions = [PARSERS["feedback"].parse(RawRow(1, "rows:1", row))[0] for row in rows]
    first, _ = FeedbackTokenizer(tokenizer, 500, 1000).encode_each(opinions)
    assert [tokenizer.decode(first.prompt), tokenizer.decode(first.group.completions[0])] == [asked, learned]


@every_format
def test_special_tokens_of_the_format_are_single_tokens_and_the_first_stands_once(form):
    tokenizer = tokenizer_of(form)
    [row] = PARSERS["demonstrations"].parse(RawRow(1, "rows:1", {"messages": talk(HI, YES)}))
    example = DemonstrationTokenizer(tokenizer, 500, 1000).encode(row)
    tokens = (*example.prompt, *example.group.completions[0])
    text = form.told.replace("«", "").replace("»", "")
    for name in form.special:
        assert tokens.count(tokenizer.convert_tokens_to_ids(name)) == text.count(name), name
    if form.bos and text.startswith(form.special[0]):
        assert tokens[:2].count(tokenizer.bos_token_id) == 1
