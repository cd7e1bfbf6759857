"""Fills the cache of the reference's log-probs by servers that come and go."""

from __future__ import annotations

import time
from itertools import accumulate

import numpy as np

from alignment_api.contract.status import Progress
from alignment_api.derived.micro_batch import tokens_of
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.prepared import PreparedData
from alignment_trainer.data.reference import Float32, ReferenceRows, ShardWriter, needed_rows, reference_cache
from alignment_trainer.experience.frozen_client import FrozenClient, GroupsToScore
from alignment_trainer.model.frozen_model import sum_completions
from alignment_trainer.process.instance import Instance
from alignment_trainer.serving.peers import resolved
from alignment_trainer.serving.pool import PoolOptions, ServerGroup
from alignment_trainer.serving.wire import LOGPROBS

_WRITING_SECONDS = 5.0
"""Of the notice, left for the last shard and the outcome."""


def fill_reference(instance: Instance, prepared: PreparedData) -> bool:
    """Until every row that is needed has its log-probs. False where this process was asked to go.

    What was answered until then is kept. Raises as `ServerPool.run` does.
    """
    cache, needed = reference_cache(prepared), needed_rows(prepared, instance.spec.training)
    cache.remove_damaged()
    missing = needed.take(cache.missing(needed))
    progress = _FillProgress(instance, total=len(needed), found=len(needed) - len(missing))
    done = not len(missing) or _ask(instance, missing, ShardWriter(cache), progress)
    if done:
        instance.board.update(state="reference complete")
    return done


def _ask(instance: Instance, rows: ReferenceRows, writer: ShardWriter, progress: _FillProgress) -> bool:
    def keep(places: range, logprobs: list[Float32]) -> None:
        sums = [_sums(rows.group(place), values) for place, values in zip(places, logprobs, strict=True)]
        writer.add(rows.keys[places.start : places.stop], np.stack(sums))
        progress.count_rows(len(places))

    work = GroupsToScore(rows.lengths.tolist(), rows.group, rows.name)
    progress.count_servers(0)
    with instance.metrics.phase("reference"):
        try:
            return _client(instance, rows, progress).ask_each(work, keep, instance.stop)
        finally:
            writer.flush()


def _client(instance: Instance, rows: ReferenceRows, progress: _FillProgress) -> FrozenClient:
    """Waits for servers for ever: a pod without a GPU costs little."""
    return FrozenClient(
        servers=ServerGroup(
            role="reference",
            peers=resolved(instance.context.peers.get("reference", ())),
            token=instance.token,
            on_count=progress.count_servers,
        ),
        answers=LOGPROBS,
        fingerprint=rows.prepared.manifest.model.fingerprint,
        request_tokens=tokens_of(instance.spec.training),
        options=PoolOptions(leave_within=max(1.0, instance.context.notice_seconds - _WRITING_SECONDS)),
    )


def _sums(group: PromptGroup, logprobs: Float32) -> Float32:
    """(completions,) of its trained tokens. logprobs: of all its completion tokens, as a server has them."""
    starts = accumulate(map(len, group.completions[:-1]), initial=0)
    spans = [(start + first, start + end) for start, of in zip(starts, group.trained, strict=True) for first, end in of]
    return sum_completions(group, np.concatenate([logprobs[first:end] for first, end in spans]))


class _FillProgress:
    """Tells how far the work is. total: rows that are needed. found: those that an earlier life computed."""

    def __init__(self, instance: Instance, total: int, found: int) -> None:
        self._instance, self._total, self._found, self._done = instance, total, found, found
        self._began = time.monotonic()
        self.count_rows(0)

    def count_rows(self, rows: int) -> None:
        """So many more are done."""
        self._done += rows
        fresh, seconds = self._done - self._found, time.monotonic() - self._began
        eta = round((self._total - self._done) * seconds / fresh) if fresh else None
        self._instance.metrics.set("rows", self._done)
        self._instance.metrics.set("rows_planned", self._total)
        self._instance.board.update(progress=Progress(step=self._done, total_steps=self._total, eta_seconds=eta))

    def count_servers(self, count: int) -> None:
        """So many answer."""
        self._instance.metrics.set("servers", count)
        state = f"computing the reference on {count} servers" if count else "waiting for reference servers"
        self._instance.board.update(state=state)
