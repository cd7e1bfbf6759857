"""Tokens are what the model meets at inference, and a prompt stands on one side of the split."""

import re
from typing import Any

import pytest
from tests.tiny import tiny_tokenizer

from alignment_trainer.data.examples import Example
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.rows import InvalidRow, PreferenceRow, PromptRow, RawRow, RowTooLong
from alignment_trainer.data.tokenize import PairTokenizer, PromptTokenizer, Room, Texts

LLAMA3_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def preference(prompt: str = "Tell me.", chosen: str = "Gladly.", rejected: str = "No.") -> PreferenceRow:
    (row,) = parse_preferences(RawRow(7, "pairs.jsonl:7", {"prompt": prompt, "chosen": chosen, "rejected": rejected}))
    return row


def test_a_completion_is_the_answer_to_the_end_of_its_turn(tokenizer: Any) -> None:
    example = PairTokenizer(tokenizer, 100, 1000).encode(preference())
    assert tokenizer.decode(example.prompt) == "<|im_start|>user\nTell me.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.group.completions[0]) == "Gladly.<|im_end|>"
    assert tokenizer.decode(example.group.completions[1]) == "No.<|im_end|>"
    assert example.row == 7


def test_a_token_over_the_boundary_belongs_to_the_completion() -> None:
    tokenizer = tiny_tokenizer(LLAMA3_LIKE)
    row = preference(chosen="Sure", rejected="Never")
    example = PairTokenizer(tokenizer, 100, 1000).encode(row)
    assert tokenizer.decode(example.prompt + example.group.completions[0]).endswith(
        "<|im_start|>assistant: Sure<|im_end|>"
    )
    assert tokenizer.decode(example.prompt + example.group.completions[1]).endswith(
        "<|im_start|>assistant: Never<|im_end|>"
    )


def test_without_a_chat_template_the_texts_are_joined_and_closed() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    example = PairTokenizer(tokenizer, 100, 1000).encode(preference("2 + 2 =", " 4", " 5"))
    assert tokenizer.decode(example.prompt) == "2 + 2 ="
    assert tokenizer.decode(example.group.completions[0]) == " 4<|im_end|>"
    assert example.group.completions[0][-1] == tokenizer.eos_token_id


def test_a_conversation_needs_a_chat_template() -> None:
    turns = [{"role": "assistant", "content": "x"}]
    (row,) = parse_preferences(
        RawRow(1, "a:1", {"prompt": "p", "chosen": turns, "rejected": [{"role": "assistant", "content": "y"}]})
    )
    with pytest.raises(InvalidRow, match="no chat template"):
        PairTokenizer(tiny_tokenizer(chat_template=None), 100, 1000).encode(row)


def test_a_long_row_is_told_its_length_and_the_limit(tokenizer: Any) -> None:
    row = preference(rejected="zq" * 40)
    length = len(PairTokenizer(tokenizer, 1000, 1000).encode(row).prompt) + 80 + 1
    with pytest.raises(
        InvalidRow, match=rf"prompt and `rejected` are {length} tokens, more than 64 \(spec.training.maxLength\)"
    ):
        PairTokenizer(tokenizer, 64, 1000).encode(row)
    assert PairTokenizer(tokenizer, length, 1000).encode(row)


def test_a_template_that_drops_the_answer_makes_the_row_invalid() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # noqa: E501
    with pytest.raises(InvalidRow, match="`chosen` is empty after the chat template"):
        PairTokenizer(tiny_tokenizer(template), 100, 1000).encode(preference())


def test_a_template_that_raises_names_the_roles() -> None:
    template = "{{ raise_exception('system role not supported') }}"
    with pytest.raises(InvalidRow, match=r"refuses turns of roles user: system role not supported"):
        PairTokenizer(tiny_tokenizer(template), 100, 1000).encode(preference())


def prompt_row(prompt: object, **fields: object) -> PromptRow:
    return parse_prompt(RawRow(7, "prompts.jsonl:7", {"prompt": prompt, **fields}))


def room(max_length: int = 100, max_new_tokens: int = 20) -> Room:
    return Room(max_length, 1000, max_new_tokens, "spec.algorithm.grpo.maxNewTokens")


def test_a_prompt_ends_where_the_assistant_begins_and_keeps_its_row(tokenizer: Any) -> None:
    example = PromptTokenizer(tokenizer, room()).encode(prompt_row("2 + 2?", answer="4"))
    assert tokenizer.decode(example.prompt) == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert (example.row, example.fields) == (7, {"prompt": "2 + 2?", "answer": "4"})
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    chat = PromptTokenizer(tokenizer, room()).encode(prompt_row(turns))
    assert tokenizer.decode(chat.prompt).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2")


def test_a_prompt_is_that_of_a_preference(tokenizer: Any) -> None:
    prompt = PromptTokenizer(tokenizer, room()).encode(prompt_row("Tell me.", chosen="Gladly.", rejected="No."))
    assert prompt.prompt == PairTokenizer(tokenizer, 100, 1000).encode(preference()).prompt
    assert prompt.fields["rejected"] == "No."


def test_without_a_template_a_prompt_is_plain_text() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    assert tokenizer.decode(PromptTokenizer(tokenizer, room()).encode(prompt_row("2 + 2 =")).prompt) == "2 + 2 ="
    with pytest.raises(InvalidRow, match="no chat template"):
        PromptTokenizer(tokenizer, room()).encode(prompt_row([{"role": "user", "content": "2 + 2?"}]))


def test_a_prompt_leaves_room_for_its_completion(tokenizer: Any) -> None:
    row = prompt_row("Tell me.")
    length = len(PromptTokenizer(tokenizer, room()).encode(row).prompt)
    assert PromptTokenizer(tokenizer, room(length + 20)).encode(row)
    complaint = rf"`prompt` is {length} tokens; with 20 of a completion \(spec\.algorithm\.grpo\.maxNewTokens\)"
    with pytest.raises(InvalidRow, match=complaint):
        PromptTokenizer(tokenizer, room(length + 19)).encode(row)


@pytest.mark.parametrize("template", ["", LLAMA3_LIKE])
def test_many_rows_at_once_are_encoded_as_one_by_one(template: str) -> None:
    rows = [preference(f"2 + {number} =", f" {2 + number}", " 5" * number) for number in range(1, 40)]
    pairs = PairTokenizer(tiny_tokenizer(template or None), 64, 1000)
    found = pairs.encode_each([InvalidRow("broken"), *rows])
    assert str(found[0]) == "broken"
    for row, example in zip(rows, found[1:], strict=True):
        if isinstance(example, InvalidRow):
            with pytest.raises(InvalidRow, match=re.escape(str(example))):
                pairs.encode(row)
        else:
            assert example == pairs.encode(row)
    assert {type(each) for each in found[1:]} == {RowTooLong, Example}, "some are too long, others are not"


@pytest.mark.parametrize("first", [None, "<|im_start|>"])
def test_what_all_cores_make_of_texts_is_what_the_tokenizer_makes_of_each(first: str | None) -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    tokenizer.bos_token = first
    start = () if first is None else (tokenizer.bos_token_id,)
    texts = [
        "",
        "2 + 2 = 4\n",
        "na\u00efve \u65e5\u672c \U0001f600",
        "<|im_start|>user",
        " ".join(map(str, range(900))),
    ]
    alone = [(*start, *tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding()
    assert Texts(tokenizer).ids(texts) == alone
