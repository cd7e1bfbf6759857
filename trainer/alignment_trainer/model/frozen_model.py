"""A frozen model on this process's own devices: for reference and reward servers and the evaluator."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.micro_batch import tokens_of, with_micro_batch
from alignment_trainer.data.microbatches import cut_by_tokens
from alignment_trainer.data.packing import PackedBatch, PromptGroup
from alignment_trainer.model.compiled import compile_layers
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.load import frozen
from alignment_trainer.model.precision import autocast
from alignment_trainer.model.tasks import ModelTask


class LocalScorer:
    """A copy of a model on every device, each scoring one micro-batch at a time. Safe to use from several threads.

    spec: of the job, for the model's options, precision and micro-batches. gpus: 0 is the CPU.
    """

    def __init__(self, task: ModelTask, folder: Path, spec: AlignmentJobSpec, gpus: int = 0) -> None:
        self._task, self._tokens, self._precision = task, tokens_of(spec.training), spec.training.precision
        spec = with_micro_batch(spec, self._tokens, recompute_layers=0)  # there is no backward pass
        devices = [torch.device("cuda", index) for index in range(gpus)] or [torch.device("cpu")]
        self._free: queue.SimpleQueue[tuple[torch.device, PackedModel]] = queue.SimpleQueue()
        for device in devices:
            model = task.outline(folder, spec)
            self.vocabulary = int(model.network.config.vocab_size)
            self._free.put((device, compile_layers(frozen(model, spec.training.precision, device), device)))
        self._pool = ThreadPoolExecutor(len(devices), thread_name_prefix="scorer")

    def close(self) -> None:
        """Ends the threads with the micro-batches that they are at; who waits for others gets a CancelledError."""
        self._pool.shutdown(cancel_futures=True)

    def score(self, groups: Sequence[PromptGroup]) -> list[NDArray[np.float32]]:
        """For each group the model's numbers, flat: log-probs (nats) of completion tokens, or scores of completions.

        Micro-batches are of `training.microBatchTokens`, one completion at least; devices compute them side by side.
        """
        rows = self._task.pack.split(groups, self._tokens)
        pieces = cut_by_tokens(list(map(self._task.pack.length, rows)), self._tokens)
        packed = (self._task.pack(rows[piece.start : piece.stop]) for piece in pieces)
        numbers = torch.cat(list(self._pool.map(self._score, packed)))
        counts = [self._task.predictors(group) for group in groups]
        return [part.numpy() for part in torch.split(numbers, counts)]

    @torch.no_grad()
    def _score(self, packed: PackedBatch) -> Tensor:
        device, scorer = self._free.get()
        try:
            with autocast(device, self._precision):
                numbers: Tensor = scorer(packed.to(device))
            return numbers.float().cpu()
        finally:
            self._free.put((device, scorer))


def sum_completions(group: PromptGroup, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of one group's completion tokens to (completions,) sums, added one by one in fp32 as in training.

    Scores of whole completions are their own sums.
    """
    if len(numbers) == len(group.completions):
        return numbers
    lengths = torch.tensor([len(completion) for completion in group.completions])
    sums = torch.zeros(len(lengths)).index_add(0, torch.repeat_interleave(lengths), torch.from_numpy(numbers))
    result: NDArray[np.float32] = sums.numpy()
    return result
