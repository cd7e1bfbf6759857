"""Preferences to token ids, by the tokenizer's chat template where it has one, and their split by prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.rows import InvalidRow, PreferenceRow

TokenIds = tuple[int, ...]


class PairTokenizer:
    """Encodes preferences with one tokenizer.

    With a chat template the prompt is rendered up to the assistant's turn (`add_generation_prompt`) and a completion
    is what the template adds for the answer, to the end of its turn. Without one, prompt and completion are plain
    text. Either way a completion ends with a token that ends a turn, so that the model learns to stop.
    """

    def __init__(self, tokenizer: Any, max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self._has_template = bool(tokenizer.chat_template)
        self._special = frozenset(tokenizer.all_special_ids)

    def encode(self, row: PreferenceRow) -> PreferenceExample:
        """Raises InvalidRow for a row that cannot be rendered, is empty or is too long."""
        prompt, chosen, rejected = self._render(row) if self._has_template else self._join(row)
        boundary = _common_start(prompt, chosen, rejected)
        if boundary < 1:
            raise InvalidRow("`prompt` has no tokens; write the text that the two completions answer")
        example = PreferenceExample(
            row.number, prompt[:boundary], self._end(chosen[boundary:]), self._end(rejected[boundary:])
        )
        self._check(example)
        return example

    def _render(self, row: PreferenceRow) -> tuple[TokenIds, TokenIds, TokenIds]:
        turns = [message.as_dict() for message in row.prompt]
        try:
            prompt = self._template(turns, add_generation_prompt=True)
            chosen = self._template([*turns, {"role": "assistant", "content": row.chosen}])
            rejected = self._template([*turns, {"role": "assistant", "content": row.rejected}])
        except Exception as error:  # a template is a program of the model's authors and raises what it likes
            roles = ", ".join(message.role for message in row.prompt)
            raise InvalidRow(f"the chat template refuses a prompt of roles {roles}: {error}") from error
        for field, text in (("chosen", chosen), ("rejected", rejected)):
            if not text.startswith(prompt):
                raise InvalidRow(
                    f"`{field}`: the chat template does not continue its own prompt; rendered `{text[-60:]}`"
                )
        return tuple(self._ids(prompt)), tuple(self._ids(chosen)), tuple(self._ids(rejected))

    def _template(self, turns: list[dict[str, str]], add_generation_prompt: bool = False) -> str:
        text: str = self._tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        return text

    def _join(self, row: PreferenceRow) -> tuple[TokenIds, TokenIds, TokenIds]:
        if row.is_chat or len(row.prompt) != 1:
            raise InvalidRow("a conversation, but the model's tokenizer has no chat template; write plain strings")
        prompt = row.prompt[0].content
        texts = (prompt, prompt + row.chosen, prompt + row.rejected)
        start = [] if self._tokenizer.bos_token_id is None else [self._tokenizer.bos_token_id]
        ids = [tuple(start + self._ids(text)) for text in texts]
        return ids[0], ids[1], ids[2]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _end(self, completion: TokenIds) -> TokenIds:
        """To its last special token (templates add a line break behind it), else closed by the tokenizer's own."""
        ends = [place for place, token in enumerate(completion) if token in self._special]
        if ends and not self._tokenizer.decode(completion[ends[-1] + 1 :]).strip():
            return completion[: ends[-1] + 1]
        if self._tokenizer.eos_token_id is None:
            return completion
        return (*completion, self._tokenizer.eos_token_id)

    def _check(self, example: PreferenceExample) -> None:
        for field, completion in (("chosen", example.chosen), ("rejected", example.rejected)):
            if all(token in self._special for token in completion):
                raise InvalidRow(
                    f"`{field}` is empty after the chat template. A preference needs two completions: fill it, or drop "
                    "the row (spec.data.onInvalid: drop)"
                )
            length = len(example.prompt) + len(completion)
            if length > self._max_length:
                raise InvalidRow(
                    f"prompt and `{field}` are {length} tokens, more than {self._max_length} "
                    "(spec.training.maxLength); shorten the row or raise maxLength"
                )
        if example.chosen == example.rejected:
            raise InvalidRow(
                "`chosen` and `rejected` are the same tokens; a preference needs two different completions"
            )


def _common_start(*sequences: TokenIds) -> int:
    """How many first tokens all share: a token that merges prompt and completion belongs to the completion."""
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))


def held_out_prompts(examples: Sequence[PreferenceExample], fraction: float, seed: int) -> frozenset[TokenIds]:
    """The prompts that are held out: `fraction` of the distinct ones, those with the lowest seeded hashes.

    At least one, if there are two. Independent of the order of rows.
    """
    prompts = {example.prompt for example in examples}
    count = max(1, round(fraction * len(prompts)))
    return frozenset(sorted(prompts, key=lambda prompt: _hash(prompt, seed))[:count])


def _hash(prompt: TokenIds, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
