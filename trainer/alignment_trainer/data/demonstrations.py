"""Demonstrations to token ids, with a span for each turn that is learned."""

from __future__ import annotations

from collections.abc import Sequence

from alignment_trainer.data.examples import Example, PromptGroup, TokenIds
from alignment_trainer.data.rows import DemonstrationRow, InvalidRow, RowTooLong
from alignment_trainer.data.tokenize import RowTokenizer, common_start


class DemonstrationTokenizer(RowTokenizer[DemonstrationRow, Example]):
    """Encodes demonstrations, with a span for each turn that is learned.

    A turn's span is what the template adds for it behind its own `add_generation_prompt`, to the end of the turn. It is
    found by rendering the conversation up to there: a template that writes earlier turns otherwise once others follow
    (thoughts left out, say) is refused, since what is said then is not what would be learned.
    """

    def _render(self, row: DemonstrationRow) -> Sequence[str]:
        """The whole; then of each learned turn the text before it and the text with it."""
        texts, said = self.texts, row.reply[-1].content
        if row.is_text:
            if (name := texts.special.named(said)) is not None:
                raise InvalidRow(
                    f"the text holds `{name}`, the name of a special token: a conversation is written as `messages`, "
                    "which the model's template puts into tokens; drop other rows with such names"
                )
            return (texts.special.hidden(said),)
        if not texts.has_template:
            prompt, answer = texts.plain_prompt(row), texts.special.hidden(said)
            return prompt + answer, prompt, prompt + answer
        turns = [*row.prompt, *row.reply]
        whole, rendered = texts.render(turns), list[str]()
        for place in range(len(row.prompt), len(turns)):
            if turns[place].role == "assistant":
                before = texts.render(turns[:place], add_generation_prompt=True)
                through = whole if place == len(turns) - 1 else texts.render(turns[: place + 1])
                if not through.startswith(before):
                    raise InvalidRow(_breaks(place, "does not continue its own prompt", texts.special.shown(through)))
                rendered += [before, through]
        return whole, *rendered

    def _example(self, row: DemonstrationRow, ids: Sequence[TokenIds]) -> Example:
        if row.is_text:
            return self._text(row, ids[0])
        whole, seams = ids[0], list(zip(ids[1::2], ids[2::2], strict=True))
        spans = [self._span(whole, *seam, number) for number, seam in enumerate(seams, 1)]
        first = spans[0][0]
        whole = (*whole[: spans[-1][0]], *self.texts.ended(whole[spans[-1][0] :]))
        if first < 1:
            raise InvalidRow("the prompt has no tokens; write the text that is answered")
        spans[-1] = spans[-1][0], len(whole)
        shifted = tuple((start - first, stop - first) for start, stop in spans)
        everything = len(shifted) == 1
        group = PromptGroup(whole[:first], (whole[first:],), () if everything else (shifted,))
        return self._checked(row, group)

    def _text(self, row: DemonstrationRow, ids: TokenIds) -> Example:
        tokens = self.texts.ended(self.texts.begun(ids))
        if len(tokens) < 2:
            raise InvalidRow("the text has no token that another stands before; write more, or drop the row")
        return self._checked(row, PromptGroup(tokens[:1], (tokens[1:],)))

    def _span(self, whole: TokenIds, before: TokenIds, through: TokenIds, number: int) -> tuple[int, int]:
        """Where the turn stands in the whole. A token that merges the text before it with it belongs to it."""
        start, same = common_start(before, through, whole), common_start(through, whole)
        turn = self.texts.turn(through[start:])
        end = same if turn is None else start + len(turn)
        if end > same or end <= start:
            raise InvalidRow(
                f"assistant turn {number}: the chat template writes it otherwise once others follow, so that "
                "its tokens are not what the model would say; give each turn a row of its own, as prompt and completion"
            )
        if self.texts.is_empty(whole[start:end]):
            raise InvalidRow(f"assistant turn {number} is empty after the chat template; fill it, or drop the row")
        return start, end

    def _checked(self, row: DemonstrationRow, group: PromptGroup) -> Example:
        length = len(group.prompt) + group.completion_tokens
        for limit, field in ((self._max_length, "maxLength"), (self._at_once, "microBatchTokens")):
            if length > limit:
                raise RowTooLong(
                    f"the row is {length} tokens, more than {limit} (spec.training.{field}); shorten it, or raise "
                    f"{field}"
                )
        return Example(row.number, group, weight=row.weight)


def _breaks(place: int, what: str, text: str) -> str:
    return f"message {place}: the chat template {what}; rendered `{text[-60:]}`"
