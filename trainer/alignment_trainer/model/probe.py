"""Does a model compute over packed rows what transformers computes of each text alone? Measured, before it trains.

Three things are compared on a few short rows of random tokens, in fp32: each completion in a packed row with the same
text alone in transformers' own forward (its logits or score, its own eager attention); a completion beside one
neighbour with the same beside another; and the model in training mode with the model at rest, which shows dropout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import PackedBatch, pack, pack_whole
from alignment_trainer.model.families import ADVICE
from alignment_trainer.model.heads import LogprobHead, PackedModel
from alignment_trainer.model.mistakes import UnsupportedModelError
from alignment_trainer.process.errors import describe, is_out_of_memory

TOLERANCE = 1e-3
"""Largest difference that is taken for rounding: nats of a token, and of a score the share of the largest score.

fp32 rounds to 6e-8; over 30 layers and a vocabulary that grows to about 1e-5, over 80 with the large states of trained
models to a few times 1e-4. Families that do not follow packed rows are off by 0.1 and more.
"""
LEAST_REACH = 0.1
"""What another prompt must change at least (nats, or share of the largest score) for a probe to have seen anything."""
TEMPERATURE = 0.7
"""Not 1, so that the division of logits is tried too."""
_TRIES = 2
"""Draws of tokens: two experts that score equally to seven digits may change places by rounding alone, once."""

_OF_THE_FAMILY = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, ImportError, AssertionError)
"""What a forward pass raises that is not made for such rows."""


@dataclass(frozen=True)
class Figures:
    """Largest differences, in nats of a token (of a classifier: score, as share of the largest).

    alone: packed against alone. neighbour: one completion beside another. reach: what another prompt changes.
    """

    alone: float
    neighbour: float
    reach: float

    @property
    def worst(self) -> float:
        """NaN counts as infinitely wrong."""
        return max(math.inf if math.isnan(value) else value for value in (self.alone, self.neighbour))


@dataclass(frozen=True)
class Rows:
    """Random texts. `other` stands where the first completion of `groups` stood; `elsewhere` is another prompt."""

    groups: tuple[PromptGroup, ...]
    other: tuple[int, ...]
    elsewhere: tuple[int, ...]

    @property
    def moved(self) -> PromptGroup:
        """The first row with another neighbour in it."""
        first = self.groups[0]
        return PromptGroup(first.prompt, (self.other, *first.completions[1:]))


def probe(network: Any, scorer: PackedModel, temperature: float = TEMPERATURE) -> Figures:
    """Measures a model that is in memory, in fp32 on the CPU.

    scorer: over the same parameters, with the temperature given. Afterwards the network attends by packed rows.
    Raises UnsupportedModelError for a family that cannot be computed so at all, in its own words.
    """
    best = Figures(math.inf, math.inf, 0.0)
    for seed in range(_TRIES):
        rows = _draw(network.config, seed)
        best = min(best, _measure(network, scorer, rows, temperature), key=lambda figures: figures.worst)
        if best.worst <= TOLERANCE:
            break
    return best


def check_figures(figures: Figures, family: str, what: str) -> None:
    """Raises UnsupportedModelError over the tolerance. what: was probed, in words."""
    if figures.worst <= TOLERANCE:
        return
    raise UnsupportedModelError(
        f"{family}: over packed rows it does not compute what transformers computes of each text alone: off by "
        f"{figures.alone:.2g} (nats of a token, or share of a score), and by {figures.neighbour:.2g} when another "
        f"completion stands beside it; at most {TOLERANCE:g} is rounding (measured on {what}). Training would follow "
        f"wrong numbers: {ADVICE}"
    )


def _measure(network: Any, scorer: PackedModel, rows: Rows, temperature: float) -> Figures:
    """transformers' own numbers come first: the scorer changes the network's attention."""
    family = network.config.model_type
    language = isinstance(scorer.head, LogprobHead)
    layout = pack if language else pack_whole
    oracle = _Oracle(network, temperature if language else None)
    with torch.no_grad():
        try:
            oracle.prepare()
            wanted = [oracle.numbers(group.prompt, text) for group in rows.groups for text in group.completions]
            away = oracle.numbers(rows.elsewhere, rows.groups[0].completions[1])
        except _OF_THE_FAMILY as error:
            raise _refused(family, "transformers itself cannot run it here", error) from error
        try:
            found = _packed(scorer, layout(rows.groups))
            beside = _packed(scorer, layout([rows.moved]))
        except _OF_THE_FAMILY as error:
            raise _refused(family, "it cannot be computed over packed rows", error) from error
    scale = 1.0 if language else max(1e-6, float(torch.cat(wanted).abs().max()))
    return Figures(
        alone=_largest(found, wanted) / scale,
        neighbour=_largest(beside[1:2], found[1:2]) / scale,
        reach=_largest([away], wanted[1:2]) / scale,
    )


def _refused(family: str, what: str, error: Exception) -> Exception:
    """The family's own words; want of memory says nothing about it."""
    if is_out_of_memory(error):
        return error
    return UnsupportedModelError(f"{family}: {what} ({type(error).__name__}: {describe(error)}); {ADVICE}")


@dataclass(frozen=True)
class _Oracle:
    """transformers' own forward, a text at a time. temperature: None for a classifier."""

    network: Any
    temperature: float | None

    def prepare(self) -> None:
        """Eager attention is the plain formula; the faster ones leave out what they do not know, soft caps for one."""
        self.network.eval()
        self.network.set_attn_implementation("eager")

    def numbers(self, prompt: Sequence[int], completion: Sequence[int]) -> Tensor:
        """Of each token of the completion its log-prob, or the one score of the text."""
        ids = torch.tensor([[*prompt, *completion]])
        logits: Tensor = self.network(input_ids=ids, use_cache=False).logits[0].float()
        if self.temperature is None:
            return logits.reshape(-1)[:1]
        logprobs: Tensor = (logits[:-1] / self.temperature).log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        return logprobs[len(prompt) - 1 :]


def _packed(scorer: PackedModel, batch: PackedBatch) -> list[Tensor]:
    """Numbers of each completion, in training mode: noise would show."""
    counts = torch.bincount(batch.sequence, minlength=batch.sequences).tolist()
    return list(scorer.train()(batch).split(counts))


def _largest(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    return max(float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True))


def _draw(config: Any, seed: int) -> Rows:
    """Prompts and completions of unequal length, one of a single token; no token that means something to the model."""
    generator = torch.Generator().manual_seed(seed)
    special = _special(config)
    plain = torch.tensor([token for token in range(min(config.vocab_size, 50_000)) if token not in special])

    def text(tokens: int) -> tuple[int, ...]:
        return tuple(plain[torch.randint(len(plain), (tokens,), generator=generator)].tolist())

    prompt, first, second = text(7), text(5), text(9)
    rest = PromptGroup(text(4), (text(3), text(1), text(3)))
    return Rows((PromptGroup(prompt, (first, second)), rest), text(6), text(7))


def _special(config: Any) -> set[int]:
    found: set[int] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids = getattr(config, name, None)
        found |= set(ids if isinstance(ids, list) else [ids]) - {None}
    return found
