"""The value model of PPO at work: values of tokens, updates, its part of a checkpoint. In the critic's process, or the
actor's (`placement: withActor`); every method is collective over the ranks that share it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alignment_trainer.algorithms.advantages import explained_variance
from alignment_trainer.algorithms.losses import value_loss
from alignment_trainer.checkpoint.checkpoint import Part
from alignment_trainer.checkpoint.run_state import write_state
from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PromptGroup, pack
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.scoring import completion_spans, token_values
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.process import distributed

PREFIX = "critic-"
"""Of the critic's parts in a checkpoint that it shares with the actor."""


@dataclass(frozen=True)
class ValueBatch:
    """Completions of one update; values, returns and weights of their tokens, (tokens,), one after the other.

    values: as they were when the completions were sampled. weights: of the tokens' losses; they add up to 1.
    """

    groups: tuple[PromptGroup, ...]
    values: Tensor
    returns: Tensor
    weights: Tensor


class ValueTrainer:
    """An engine over a value model. clip: of value changes, None for none."""

    def __init__(self, engine: Engine, micro_tokens: int, clip: float | None) -> None:
        self._engine, self._micro_tokens, self._clip = engine, micro_tokens, clip
        self._last: tuple[UpdateKey, dict[str, float]] | None = None

    def values(self, groups: tuple[PromptGroup, ...]) -> Tensor:
        """V(s_t) before each completion token, (tokens,), on every rank."""
        return token_values(self._engine.forward, groups, self._micro_tokens)

    def update(self, key: UpdateKey, learning_rate: float, batch: ValueBatch) -> dict[str, float]:
        """One optimizer step; a repeat of the last one changes nothing and says the same."""
        if self._last is None or self._last[0] != key:
            self._last = key, self._step(learning_rate, batch)
        return self._last[1]

    def _step(self, learning_rate: float, batch: ValueBatch) -> dict[str, float]:
        shares = plan_microbatches([g.length for g in batch.groups], distributed.world_size(), self._micro_tokens)
        spans = completion_spans(batch.groups)
        device = self._engine.device
        sums = torch.zeros(2, dtype=torch.float64)
        for micro in shares[distributed.rank()]:
            tokens = torch.cat([torch.arange(spans[place].start, spans[place].stop) for place in micro.places])
            old, returns, weights = (t[tokens].to(device) for t in (batch.values, batch.returns, batch.weights))
            packed = pack([batch.groups[place] for place in micro.places]).to(device)
            loss, clipped = value_loss(self._engine.forward(packed), old, returns, self._clip)
            weights = weights * micro.counts
            self._engine.backward((loss * weights).sum())
            sums += torch.stack([(loss.detach() * weights).sum(), (clipped * weights).sum()]).double().cpu()
        norm = self._engine.step(learning_rate)
        total = distributed.sum_over_ranks(sums).tolist()
        return {
            "value_loss": total[0],
            "value_clip_ratio": total[1],
            "value_gradient_norm": norm,
            "explained_variance": explained_variance(batch.values, batch.returns, torch.ones_like(batch.values)).item(),
        }

    @property
    def steps(self) -> int:
        """Optimizer steps done."""
        return self._engine.steps

    def write(self, folder: Path) -> list[Part]:
        """This rank's part of a checkpoint."""
        return write_state(self._engine, folder, PREFIX)
