"""Tokens are what the model meets at inference, and a prompt stands on one side of the split."""

from typing import Any

import pytest
from tests.tiny import tiny_tokenizer

from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.rows import InvalidRow, PreferenceRow, RawRow, parse_row
from alignment_trainer.data.tokenize import PairTokenizer, held_out_prompts

LLAMA3_LIKE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def preference(prompt: str = "Tell me.", chosen: str = "Gladly.", rejected: str = "No.") -> PreferenceRow:
    return parse_row(RawRow(7, "pairs.jsonl:7", {"prompt": prompt, "chosen": chosen, "rejected": rejected}))


def test_a_completion_is_the_answer_to_the_end_of_its_turn(tokenizer: Any) -> None:
    example = PairTokenizer(tokenizer, 100).encode(preference())
    assert tokenizer.decode(example.prompt) == "<|im_start|>user\nTell me.<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(example.chosen) == "Gladly.<|im_end|>"
    assert tokenizer.decode(example.rejected) == "No.<|im_end|>"
    assert example.row == 7


def test_a_token_over_the_boundary_belongs_to_the_completion() -> None:
    tokenizer = tiny_tokenizer(LLAMA3_LIKE)
    row = preference(chosen="Sure", rejected="Never")
    example = PairTokenizer(tokenizer, 100).encode(row)
    assert tokenizer.decode(example.prompt + example.chosen).endswith("<|im_start|>assistant: Sure<|im_end|>")
    assert tokenizer.decode(example.prompt + example.rejected).endswith("<|im_start|>assistant: Never<|im_end|>")


def test_without_a_chat_template_the_texts_are_joined_and_closed() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    example = PairTokenizer(tokenizer, 100).encode(preference("2 + 2 =", " 4", " 5"))
    assert tokenizer.decode(example.prompt) == "2 + 2 ="
    assert tokenizer.decode(example.chosen) == " 4<|im_end|>"
    assert example.chosen[-1] == tokenizer.eos_token_id


def test_a_conversation_needs_a_chat_template() -> None:
    turns = [{"role": "assistant", "content": "x"}]
    row = parse_row(
        RawRow(1, "a:1", {"prompt": "p", "chosen": turns, "rejected": [{"role": "assistant", "content": "y"}]})
    )
    with pytest.raises(InvalidRow, match="no chat template"):
        PairTokenizer(tiny_tokenizer(chat_template=None), 100).encode(row)


def test_a_long_row_is_told_its_length_and_the_limit(tokenizer: Any) -> None:
    row = preference(rejected="zq" * 40)
    length = len(PairTokenizer(tokenizer, 1000).encode(row).prompt) + 80 + 1
    with pytest.raises(
        InvalidRow, match=rf"prompt and `rejected` are {length} tokens, more than 64 \(spec.training.maxLength\)"
    ):
        PairTokenizer(tokenizer, 64).encode(row)
    assert PairTokenizer(tokenizer, length).encode(row)


def test_a_template_that_drops_the_answer_makes_the_row_invalid() -> None:
    template = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'user' %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"  # noqa: E501
    with pytest.raises(InvalidRow, match="`chosen` is empty after the chat template"):
        PairTokenizer(tiny_tokenizer(template), 100).encode(preference())


def test_a_template_that_raises_names_the_roles() -> None:
    template = "{{ raise_exception('system role not supported') }}"
    with pytest.raises(InvalidRow, match=r"refuses turns of roles user: system role not supported"):
        PairTokenizer(tiny_tokenizer(template), 100).encode(preference())


def example(prompt: int, row: int) -> PreferenceExample:
    return PreferenceExample(row, (prompt,), (1,), (2,))


def test_every_pair_of_a_prompt_is_on_the_same_side_whatever_the_order() -> None:
    rows = [example(prompt, row) for row, prompt in enumerate([*range(50), *range(50)])]
    held_out = held_out_prompts(rows, 0.1, seed=0)
    assert len(held_out) == 5
    assert held_out == held_out_prompts(rows[::-1], 0.1, seed=0)
    assert held_out != held_out_prompts(rows, 0.1, seed=1)


def test_a_small_share_of_few_prompts_still_holds_one_out() -> None:
    assert len(held_out_prompts([example(n, n) for n in range(4)], 0.02, seed=0)) == 1
