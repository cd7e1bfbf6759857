"""Rows to token ids, by the tokenizer's chat template where it has one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, Generic, TypeVar

from jinja2 import TemplateSyntaxError

from alignment_trainer.data.examples import Example, PromptExample, PromptGroup, TokenIds
from alignment_trainer.data.rows import (
    DemonstrationRow,
    FeedbackRow,
    InvalidRow,
    Message,
    PreferenceRow,
    PromptRow,
    Row,
    RowTooLong,
)
from alignment_trainer.data.special_tokens import SpecialTokens
from alignment_trainer.data.too_long import with_end_of_prompt
from alignment_trainer.process.errors import UserError, describe
from alignment_trainer.process.time_limit import TookTooLong, time_limit

Found = TypeVar("Found")
T = TypeVar("T")
TEMPLATE_SECONDS = 10.0
"""For one conversation, which takes a template a millisecond: far beyond any machine's load."""


class Texts:
    """What one tokenizer makes of turns and of plain text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.has_template = bool(tokenizer.chat_template)
        self._special_ids = frozenset(tokenizer.all_special_ids)
        self.special = SpecialTokens(tokenizer)

    def render(self, turns: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """The turns by the chat template, a program of the model's authors: in transformers' sandbox, which has neither
        files nor attributes of Python's own, and within TEMPLATE_SECONDS. Names of special tokens in them are hidden.

        Raises InvalidRow where it refuses the turns, UserError where it cannot be used. Main thread.
        """
        apply = partial(
            self._tokenizer.apply_chat_template, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        try:
            with time_limit(TEMPLATE_SECONDS):
                return self.special.rendered(apply, [turn.as_dict() for turn in turns])
        except InvalidRow:
            raise
        except (TookTooLong, TemplateSyntaxError) as error:
            raise _unusable(error) from None  # what does not parse is not quoted in the log either
        except Exception as error:  # it raises what it likes
            roles = ", ".join(turn.role for turn in turns)
            raise InvalidRow(f"the chat template refuses turns of roles {roles}: {describe(error)}") from error

    def ids(self, texts: Sequence[str]) -> list[TokenIds | InvalidRow]:
        """Of each text, or what is wrong with it. One that a template made holds its special tokens itself; another
        stands behind the tokenizer's first token, where it has one."""
        start = () if self.has_template or self._tokenizer.bos_token_id is None else (self._tokenizer.bos_token_id,)
        found = [
            attempt(self.special.ids, text) if self.special.is_marked(text) else tuple(ids)
            for text, ids in zip(texts, self._plain_ids(texts), strict=True)
        ]
        return [one if isinstance(one, InvalidRow) else (*start, *one) for one in found]

    def _plain_ids(self, texts: Sequence[str]) -> Iterable[Sequence[int]]:
        if not self._tokenizer.is_fast:
            return [self._tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        backend = self._tokenizer.backend_tokenizer  # all cores, and nothing made of a text but its ids
        backend.no_truncation()
        backend.no_padding()
        return (found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False))

    def turn(self, completion: TokenIds) -> TokenIds | None:
        """To its last special token (templates add a line break behind it); None where none ends it."""
        ends = [place for place, token in enumerate(completion) if token in self._special_ids]
        if ends and not self._tokenizer.decode(completion[ends[-1] + 1 :]).strip():
            return completion[: ends[-1] + 1]
        return None

    def ended(self, completion: TokenIds) -> TokenIds:
        """To its last special token, else closed by the tokenizer's own."""
        if (turn := self.turn(completion)) is not None:
            return turn
        if self._tokenizer.eos_token_id is None:
            return completion
        return (*completion, self._tokenizer.eos_token_id)

    def begun(self, text: TokenIds) -> TokenIds:
        """Behind the tokenizer's first token, where it has one and the text has it not yet."""
        first = self._tokenizer.bos_token_id
        return text if first is None or text[:1] == (first,) else (first, *text)

    def is_empty(self, completion: TokenIds) -> bool:
        """Whether it has special tokens alone."""
        return all(token in self._special_ids for token in completion)

    def asked(self, row: PreferenceRow | FeedbackRow | PromptRow) -> str:
        """The text up to the assistant's turn."""
        return self.render(row.prompt, add_generation_prompt=True) if self.has_template else self.plain_prompt(row)

    def answered(self, row: PreferenceRow | FeedbackRow, prompt: str, answer: str, field: str) -> str:
        """That text with an answer behind it. prompt: what `asked` says. field: that holds the answer."""
        if not self.has_template:
            return prompt + self.special.hidden(answer)
        text = self.render([*row.prompt, Message("assistant", answer)])
        if not text.startswith(prompt):
            end = self.special.shown(text)[-60:]
            raise InvalidRow(f"`{field}`: the chat template does not continue its own prompt; rendered `{end}`")
        return text

    def plain_prompt(self, row: PreferenceRow | DemonstrationRow | FeedbackRow | PromptRow) -> str:
        """The one text that a model without a template continues. Raises InvalidRow for a conversation."""
        if row.is_chat or len(row.prompt) != 1:
            raise InvalidRow("a conversation, but the model's tokenizer has no chat template; write plain strings")
        return self.special.hidden(row.prompt[0].content)


def _unusable(error: TookTooLong | TemplateSyntaxError) -> UserError:
    where = f"cannot be parsed at line {error.lineno}" if isinstance(error, TemplateSyntaxError) else f"is {error}"
    return UserError("InvalidModel", f"spec.model: the chat template of its tokenizer {where}; mend it")


@dataclass(frozen=True)
class Room:
    """Tokens for a prompt and its completion. max_length: of both together (training.maxLength).

    at_once: that a rank computes at once (training.microBatchTokens). field: where the manifest says `max_new_tokens`,
    the completion's share.
    """

    max_length: int
    at_once: int
    max_new_tokens: int
    field: str

    def check(self, prompt: int) -> None:
        """Raises InvalidRow where a prompt of so many tokens leaves too little."""
        if prompt + self.max_new_tokens > self.max_length:
            raise RowTooLong(
                f"`prompt` is {prompt} tokens; with {self.max_new_tokens} of a completion ({self.field}) that is more "
                f"than {self.max_length} (spec.training.maxLength); shorten the row, lower maxNewTokens or raise "
                "maxLength"
            )
        if prompt + self.max_new_tokens > self.at_once:
            raise RowTooLong(
                f"`prompt` is {prompt} tokens; with {self.max_new_tokens} of a completion ({self.field}) that is more "
                f"than {self.at_once} (spec.training.microBatchTokens); shorten the row, lower maxNewTokens or raise "
                "microBatchTokens"
            )


class RowTokenizer(ABC, Generic[Row, Found]):
    """Encodes rows with one tokenizer, many at a time: it works on all cores only then."""

    def __init__(self, tokenizer: Any, max_length: int, at_once: int, cuts_prompts: bool = False) -> None:
        """max_length: tokens of a prompt with a completion (training.maxLength). at_once: of all that a row computes at
        once (training.microBatchTokens). cuts_prompts: of rows that are too long (data.onTooLong)."""
        self.texts = Texts(tokenizer)
        self._max_length, self._at_once = max_length, at_once
        self.cut = 0
        """Rows whose prompt was."""
        self._cuts_prompts = cuts_prompts

    def encode(self, row: Row) -> Found:
        """One row. Raises InvalidRow."""
        (found,) = self.encode_each([row])
        if isinstance(found, InvalidRow):
            raise found
        return found

    def encode_each(self, rows: Sequence[Row | InvalidRow]) -> list[Found | InvalidRow]:
        """Of each row the example, or what is wrong with it; what is known to be wrong stays as it is."""
        return [self._fitted(row, found) for row, found in zip(rows, self._read(rows), strict=True)]

    def _fitted(self, row: Row | InvalidRow, found: Found | InvalidRow) -> Found | InvalidRow:
        if isinstance(row, InvalidRow) or not (self._cuts_prompts and isinstance(found, RowTooLong)):
            return found
        shorter = with_end_of_prompt(row, lambda other: self._read([other])[0])
        if shorter is None:
            return found
        self.cut += 1
        return shorter

    def _read(self, rows: Sequence[Row | InvalidRow]) -> list[Found | InvalidRow]:
        rendered = [row if isinstance(row, InvalidRow) else attempt(self._render, row) for row in rows]
        texts = [text for found in rendered if not isinstance(found, InvalidRow) for text in found]
        ids = iter(self.texts.ids(texts))
        return [
            found if isinstance(found, InvalidRow) else self._made(row, [next(ids) for _ in found])
            for row, found in zip(rows, rendered, strict=True)
        ]

    def _made(self, row: Row | InvalidRow, ids: Sequence[TokenIds | InvalidRow]) -> Found | InvalidRow:
        wrong = next((one for one in ids if isinstance(one, InvalidRow)), None)
        return attempt(self._example, row, ids) if wrong is None else wrong

    @abstractmethod
    def _render(self, row: Row) -> Sequence[str]:
        """The texts of a row, as many for each. Raises InvalidRow for one that cannot be rendered."""

    @abstractmethod
    def _example(self, row: Row, ids: Sequence[TokenIds]) -> Found:
        """The row, whose texts have these ids. Raises InvalidRow for one that is empty or too long."""


def attempt(make: Callable[..., T], *arguments: object) -> T | InvalidRow:
    """What is made of the arguments, or what was raised for them."""
    try:
        return make(*arguments)
    except InvalidRow as error:
        return error


class PromptTokenizer(RowTokenizer[PromptRow, PromptExample]):
    """Encodes prompts up to the assistant's turn."""

    def __init__(self, tokenizer: Any, room: Room, cuts_prompts: bool = False) -> None:
        super().__init__(tokenizer, room.max_length, room.at_once, cuts_prompts)
        self._room = room

    def _render(self, row: PromptRow) -> Sequence[str]:
        return (self.texts.asked(row),)

    def _example(self, row: PromptRow, ids: Sequence[TokenIds]) -> PromptExample:
        (prompt,) = ids
        if not prompt:
            raise InvalidRow("`prompt` has no tokens; write the text that completions answer")
        self._room.check(len(prompt))
        return PromptExample(row.number, prompt, row.fields)


class PairTokenizer(RowTokenizer[PreferenceRow, Example]):
    """Encodes preferences.

    With a chat template the prompt is rendered up to the assistant's turn (`add_generation_prompt`) and a completion
    is what the template adds for the answer, to the end of its turn. Without one, prompt and completion are plain
    text. Either way a completion ends with a token that ends a turn, so that the model learns to stop.
    """

    def _example(self, row: PreferenceRow, ids: Sequence[TokenIds]) -> Example:
        prompt, chosen, rejected = ids
        boundary = common_start(prompt, chosen, rejected)
        if boundary < 1:
            raise InvalidRow("`prompt` has no tokens; write the text that the two completions answer")
        completions = self.texts.ended(chosen[boundary:]), self.texts.ended(rejected[boundary:])
        self._check(prompt[:boundary], completions, row.names)
        group = PromptGroup(prompt[:boundary], completions)
        return Example(row.number, group, weight=row.numbers.weight, margin=row.numbers.margin)

    def _render(self, row: PreferenceRow) -> Sequence[str]:
        texts, prompt = self.texts, self.texts.asked(row)
        answers = zip((row.chosen, row.rejected), row.names, strict=True)
        return prompt, *(texts.answered(row, prompt, answer, field) for answer, field in answers)

    def _check(self, prompt: TokenIds, completions: tuple[TokenIds, TokenIds], names: tuple[str, str]) -> None:
        for field, completion in zip(names, completions, strict=True):
            if self.texts.is_empty(completion):
                raise InvalidRow(
                    f"`{field}` is empty after the chat template. A preference needs two completions: fill it, or drop "
                    "the row"
                )
            length = len(prompt) + len(completion)
            if length > self._max_length:
                raise RowTooLong(
                    f"prompt and `{field}` are {length} tokens, more than {self._max_length} "
                    "(spec.training.maxLength); shorten the row or raise maxLength"
                )
        both = len(prompt) + sum(map(len, completions))
        if both > self._at_once:
            raise RowTooLong(
                f"prompt, `{names[0]}` and `{names[1]}` are {both} tokens, and a pair is computed at once: more than "
                f"{self._at_once} (spec.training.microBatchTokens); shorten the row or raise microBatchTokens"
            )
        if completions[0] == completions[1]:
            raise InvalidRow(
                f"`{names[0]}` and `{names[1]}` are the same tokens; a preference needs two different completions"
            )


def common_start(*sequences: TokenIds) -> int:
    """How many first tokens all share: a token that merges prompt and completion belongs to the completion."""
    whole = sequences[0]
    if all(sequence[: len(whole)] == whole for sequence in sequences):
        return len(whole)  # the usual case, at the speed of a comparison
    return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False)))
