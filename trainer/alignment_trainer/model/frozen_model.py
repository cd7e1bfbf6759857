"""A frozen model on this process's own devices: for reference and reward servers and the evaluator."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.micro_batch import tokens_of, with_micro_batch
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.microbatches import cut_by_tokens
from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.model.compiled import compile_for, compile_layers
from alignment_trainer.model.copies import ON_CPU, Copies
from alignment_trainer.model.load import LoadedModel, frozen
from alignment_trainer.model.precision import autocast
from alignment_trainer.model.spread import spread
from alignment_trainer.model.tasks import ModelTask

Scorer = Callable[[PackedBatch], Tensor]
"""Of a batch on the CPU the numbers, (n,), on any device."""


class LocalScorer:
    """Copies of a model, which score as many micro-batches at a time as they have devices. Safe for several threads.

    spec: of the job, for the model's options, precision and micro-batches.
    """

    def __init__(self, task: ModelTask, folder: Path, spec: AlignmentJobSpec, copies: Copies = ON_CPU) -> None:
        self._task, self._tokens, self._precision = task, tokens_of(spec.training), spec.training.precision
        self._device = copies[0][0]
        spec = with_micro_batch(spec, self._tokens, recompute_layers=0)  # there is no backward pass
        outlines = [task.outline(folder, spec) for _ in copies]
        self.vocabulary = int(outlines[0].network.config.vocab_size)
        scorers = [_loaded(model, self._precision, devices) for model, devices in zip(outlines, copies, strict=True)]
        self._free: queue.SimpleQueue[Scorer] = queue.SimpleQueue()
        for scorer in scorers * len(copies[0]):
            self._free.put(scorer)
        at_once = self._free.qsize()
        self._pool = ThreadPoolExecutor(at_once, "scorer", compile_for, (at_once,))

    def close(self) -> None:
        """Ends the threads with the micro-batches that they are at; who waits for others gets a CancelledError."""
        self._pool.shutdown(cancel_futures=True)

    def score(self, groups: Sequence[PromptGroup]) -> list[NDArray[np.float32]]:
        """For each group the model's numbers, flat: log-probs (nats) of completion tokens, or scores of completions.

        Micro-batches are of `training.microBatchTokens`, one completion at least, side by side.
        """
        rows = self._task.pack.split(groups, self._tokens)
        pieces = cut_by_tokens(list(map(self._task.pack.length, rows)), self._tokens)
        packed = (self._task.pack(rows[piece.start : piece.stop]) for piece in pieces)
        numbers = torch.cat(list(self._pool.map(self._score, packed)))
        counts = [self._task.predictors(group) for group in groups]
        return [part.numpy() for part in torch.split(numbers, counts)]

    @torch.no_grad()
    def _score(self, packed: PackedBatch) -> Tensor:
        scorer = self._free.get()
        try:
            with autocast(self._device, self._precision):
                return scorer(packed).float().cpu()
        finally:
            self._free.put(scorer)


def _loaded(model: LoadedModel, precision: str, devices: Sequence[torch.device]) -> Scorer:
    if len(devices) > 1:
        return spread(model, precision, devices)
    [device] = devices
    whole = compile_layers(frozen(model, precision, device), device)
    return lambda packed: whole(packed.to(device))


def sum_completions(group: PromptGroup, numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The numbers of one group's trained tokens to (completions,) sums, added one by one in fp32 as in training.

    Scores of whole completions are their own sums.
    """
    if len(numbers) == len(group.completions):
        return numbers
    lengths = torch.tensor(group.trained_lengths)
    sums = torch.zeros(len(lengths)).index_add(0, torch.repeat_interleave(lengths), torch.from_numpy(numbers))
    result: NDArray[np.float32] = sums.numpy()
    return result
