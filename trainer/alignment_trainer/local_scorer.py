"""Log-probs by a frozen model on this process's own devices: for reference servers and the evaluator."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment_trainer.data.microbatches import plan_microbatches
from alignment_trainer.data.packing import PackedBatch, PromptGroup, pack
from alignment_trainer.engines.base import autocast
from alignment_trainer.models import CompletionScorer, load_model


class LocalScorer:
    """A copy of a model on every device, each scoring one micro-batch at a time. Safe to use from several threads."""

    def __init__(self, folder: Path, gpus: int, precision: str, micro_tokens: int) -> None:
        self._precision, self._micro_tokens = precision, micro_tokens
        devices = [torch.device("cuda", index) for index in range(gpus)] or [torch.device("cpu")]
        self._free: queue.SimpleQueue[tuple[torch.device, CompletionScorer]] = queue.SimpleQueue()
        for device in devices:
            model = load_model(folder)
            self.vocabulary = int(model.causal.config.vocab_size)
            self._free.put((device, model.scorer.to(device).eval()))
        self._pool = ThreadPoolExecutor(len(devices), thread_name_prefix="scorer")

    def close(self) -> None:
        """Ends the threads."""
        self._pool.shutdown()

    def token_logprobs(self, batch: Sequence[PromptGroup], ranks: int = 1) -> list[NDArray[np.float32]]:
        """For each group the log-probs (nats) of all its completion tokens, flat.

        batch: planned together, as a training step of so many ranks plans it, so that both see the same tensors.
        """
        shares = plan_microbatches([group.length for group in batch], ranks, self._micro_tokens)
        micros = [micro.places for share in shares for micro in share if micro.counts]
        results: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(batch)
        scored = self._pool.map(self._score, [pack([batch[place] for place in places]) for places in micros])
        for places, logprobs in zip(micros, scored, strict=True):
            tokens = [sum(map(len, batch[place].completions)) for place in places]
            for place, part in zip(places, torch.split(logprobs, tokens), strict=True):
                results[place] = part.numpy()
        return results

    @torch.no_grad()
    def _score(self, packed: PackedBatch) -> Tensor:
        device, scorer = self._free.get()
        try:
            with autocast(device, self._precision):
                logprobs: Tensor = scorer(packed.to(device))
            return logprobs.float().cpu()
        finally:
            self._free.put((device, scorer))


def sum_completions(group: PromptGroup, logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
    """(completion tokens,) of one group to (completions,) sums, added one by one in fp32 as in training."""
    lengths = torch.tensor([len(completion) for completion in group.completions])
    sums = torch.zeros(len(lengths)).index_add(0, torch.repeat_interleave(lengths), torch.from_numpy(logprobs))
    result: NDArray[np.float32] = sums.numpy()
    return result
