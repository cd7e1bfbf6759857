"""Feedback to token ids, each row beside a completion that answers another prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from alignment_trainer.data.examples import Example, PromptGroup, TokenIds
from alignment_trainer.data.rows import FeedbackRow, InvalidRow, RowTooLong
from alignment_trainer.data.spool import TOKEN, Selection
from alignment_trainer.data.tokenize import RowTokenizer, attempt, common_start
from alignment_trainer.process.errors import UserError

NEAR = 64
"""Rows among which another prompt is looked for."""


class FeedbackTokenizer(RowTokenizer[FeedbackRow, Example]):
    """Encodes feedback: its own completion, then one that answers another prompt.

    That is the completion of the nearest row before it that has another prompt, of the first rows that of the nearest
    behind them, so the same rows in the same order get the same. It is cut to the room there is; its own is not.
    """

    def __init__(self, tokenizer: Any, max_length: int, at_once: int, cuts_prompts: bool = False) -> None:
        """max_length: of prompt and completion. at_once: of prompt and both (training.microBatchTokens)."""
        super().__init__(tokenizer, max_length, at_once, cuts_prompts)
        self._before: list[Example] = []

    def encode_each(self, rows: Sequence[FeedbackRow | InvalidRow]) -> list[Example | InvalidRow]:
        """As above; what came before is remembered."""
        found = super().encode_each(rows)
        valid = [one for one in found if not isinstance(one, InvalidRow)]
        before, place = [*self._before, *valid], len(self._before)
        self._before = before[-NEAR:]
        whole = list[Example | InvalidRow]()
        for one in found:
            if not isinstance(one, InvalidRow):
                near = (*before[max(0, place - NEAR) : place][::-1], *before[place + 1 : place + 1 + NEAR])
                one, place = attempt(self._with_other, one, near), place + 1
            whole.append(one)
        return whole

    def _render(self, row: FeedbackRow) -> Sequence[str]:
        prompt = self.texts.asked(row)
        return prompt, self.texts.answered(row, prompt, row.completion, row.name)

    def _example(self, row: FeedbackRow, ids: Sequence[TokenIds]) -> Example:
        prompt, whole = ids
        boundary = common_start(prompt, whole)
        if boundary < 1:
            raise InvalidRow("`prompt` has no tokens; write the text that the completion answers")
        completion = self.texts.ended(whole[boundary:])
        if self.texts.is_empty(completion):
            raise InvalidRow(f"`{row.name}` is empty after the chat template; fill it, or drop the row")
        length = boundary + len(completion)
        if length > self._max_length:
            raise RowTooLong(
                f"prompt and `{row.name}` are {length} tokens, more than {self._max_length} (spec.training.maxLength); "
                "shorten the row or raise maxLength"
            )
        if length >= self._at_once:
            raise RowTooLong(
                f"prompt and `{row.name}` are {length} tokens, and a token more of another completion is computed with "
                f"them: more than {self._at_once} (spec.training.microBatchTokens); shorten the row or raise it"
            )
        group = PromptGroup(whole[:boundary], (completion,))
        return Example(row.number, group, int(row.desirable), row.weight)

    def _with_other(self, example: Example, near: Sequence[Example]) -> Example:
        """near: the nearest rows, those that come first preferred."""
        prompt, (own,) = example.prompt, example.group.completions
        other = next((row.group.completions[0] for row in near if row.prompt != prompt), None)
        if other is None:
            raise InvalidRow(
                f"none of the {NEAR} rows before and behind it has another prompt, and feedback is compared with "
                "answers to such; mix the rows"
            )
        room = min(self._max_length, self._at_once - len(own)) - len(prompt)
        return replace(example, group=PromptGroup(prompt, (own, other[:room])))


def check_labels(rows: Selection, source: str) -> None:
    """Raises UserError where all have one label: there is no difference to learn."""
    labels = np.frombuffer(b"".join(rows.columns()["label_tokens"].read()), TOKEN)
    if labels.min() == labels.max():
        which = "desirable" if labels[0] else "undesirable"
        raise UserError(
            "OneLabel",
            f"{source}: all {len(labels)} training rows are {which}, and kto learns what tells them from others: add "
            "such, or take `sft` for desirable ones alone",
        )
