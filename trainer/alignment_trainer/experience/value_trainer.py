"""The value model of PPO at work: values of tokens, updates, its part of a checkpoint. In the critic's process, or the
actor's (`placement: withActor`); every method is collective over the ranks that share it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alignment_trainer.algorithms.advantages import explained_variance
from alignment_trainer.algorithms.losses import value_loss
from alignment_trainer.checkpoint.run_state import draft_trainee
from alignment_trainer.data.drafts import Draft, TextDraft
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import pack
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.scoring import completion_spans, token_values
from alignment_trainer.experience.minibatches import UpdateKey
from alignment_trainer.process import distributed

PREFIX = "critic-"
"""Of the critic's parts in a checkpoint that it shares with the actor."""
_UNIT_FILE = f"{PREFIX}unit.json"


@dataclass(frozen=True)
class ValueBatch:
    """Completions of one update; values, returns and weights of their tokens, (tokens,), one after the other.

    values: as they were when the completions were sampled. weights: of the tokens' losses; they add up to 1.
    scale: units of the score that make one unit of the loss, the running deviation of the scores; 1 scales nothing.
    """

    groups: tuple[PromptGroup, ...]
    values: Tensor
    returns: Tensor
    weights: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class ValueOptions:
    """micro_tokens: that one rank computes at once. clip: of value changes, in deviations of the scores; None for none.

    unit: units of the score that one unit of the network's output stands for. Absent, for a head of zeros: the
    deviation of the scores of the first update, so that a network learns numbers around 1 whatever the rewards are.
    """

    micro_tokens: int
    clip: float | None = None
    unit: float | None = None


class ValueTrainer:
    """An engine over a value model, which says and learns values in units of the score.

    V = unit f(s), and the loss is that of V / scale: rewards divided by a running deviation, and a network whose values
    stay what they were when the deviation moves on (the aim of PopArt, van Hasselt et al. 2016, without its rescaling).
    """

    def __init__(self, engine: Engine, options: ValueOptions) -> None:
        self._engine, self._micro_tokens, self._clip = engine, options.micro_tokens, options.clip
        self._unit = options.unit
        self._last: tuple[UpdateKey, dict[str, float]] | None = None

    def values(self, groups: tuple[PromptGroup, ...]) -> Tensor:
        """V(s_t) before each completion token, (tokens,), on every rank."""
        found = token_values(self._engine.forward, groups, self._micro_tokens)
        return found if self._unit is None else found * self._unit

    def update(self, key: UpdateKey, learning_rate: float, batch: ValueBatch) -> dict[str, float]:
        """One optimizer step; a repeat of the last one changes nothing and says the same."""
        if self._last is None or self._last[0] != key:
            self._last = key, self._step(learning_rate, batch)
        return self._last[1]

    def _step(self, learning_rate: float, batch: ValueBatch) -> dict[str, float]:
        if self._unit is None:
            self._unit = batch.scale
        groups = pack.split(batch.groups, self._micro_tokens)
        shares = plan_microbatches([group.length for group in groups], distributed.world_size(), self._micro_tokens)
        spans = completion_spans(groups)
        device = self._engine.device
        sums = torch.zeros(2, dtype=torch.float64)
        for micro in shares[distributed.rank()]:
            tokens = torch.cat([torch.arange(spans[place].start, spans[place].stop) for place in micro.places])
            old, returns, weights = (t[tokens].to(device) for t in (batch.values, batch.returns, batch.weights))
            packed = pack([groups[place] for place in micro.places]).to(device)
            values = self._engine.forward(packed) * (self._unit / batch.scale)
            loss, clipped = value_loss(values, old / batch.scale, returns / batch.scale, self._clip)
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

    def drafts(self) -> list[Draft]:
        """A snapshot of this rank's part of a checkpoint."""
        unit = [TextDraft(_UNIT_FILE, json.dumps({"unit": self._unit}))] if distributed.rank() == 0 else []
        return [*draft_trainee(self._engine, PREFIX), *unit]

    def restore_unit(self, folder: Path) -> None:
        """Takes up the unit of a checkpoint whose state its engine has taken up."""
        file = folder / _UNIT_FILE
        self._unit = json.loads(file.read_text())["unit"] if file.is_file() else 1.0  # of before critics had a unit
