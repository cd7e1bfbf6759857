"""The reference's log-probs of prepared rows, kept by what they mean: the model and the row's own tokens.

Neither batches, seed, epochs, micro-batches nor precision are part of the key (docs/adr/0022-the-reference-by-row.md).
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from alignment_api.contract.spec import Training
from alignment_trainer.data.examples import Example, PromptGroup
from alignment_trainer.data.prepared import ROW_KEY, SPLITS, PreparedData
from alignment_trainer.data.sampler import Groups, Sampler
from alignment_trainer.data.storage import Storage

log = logging.getLogger(__name__)

Float32 = NDArray[np.float32]
RowKeys = NDArray[np.bytes_]
Places = NDArray[np.int64]
_SUFFIX = ".safetensors"
SHARD_SECONDS = 30.0
"""Between two shards: what a lost process costs, whatever the model's speed. A million rows at 100 a second are 330
files."""


class IncompleteReferenceError(ValueError):
    """The cache lacks log-probs of rows that are needed."""


@dataclass(frozen=True)
class ReferenceRows:
    """Rows of both splits whose log-probs are needed. All arrays are of the same length.

    split: 0 for training rows, 1 for held-out ones. places: in their split. keys: what the cache knows them by.
    lengths: tokens of each once it is packed.
    """

    prepared: PreparedData
    split: NDArray[np.int8]
    places: Places
    keys: RowKeys
    lengths: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def completions(self) -> int:
        """Of each row."""
        return self.prepared.train.completions

    def group(self, index: int) -> PromptGroup:
        """The prompt with its completions."""
        return self._example(index).group

    def name(self, index: int) -> str:
        """For messages: where the user finds it."""
        return f"row {self.number(index)} ({SPLITS[self.split[index]]})"

    def number(self, index: int) -> int:
        """The row's number in the user's data."""
        return self._example(index).row

    def take(self, indices: Places) -> ReferenceRows:
        """Some of them."""
        return replace(
            self,
            split=self.split[indices],
            places=self.places[indices],
            keys=self.keys[indices],
            lengths=self.lengths[indices],
        )

    def _example(self, index: int) -> Example:
        return self.prepared.split(SPLITS[self.split[index]])[int(self.places[index])]


def needed_rows(prepared: PreparedData, training: Training) -> ReferenceRows:
    """Training rows that a step will see, then all held-out rows, each in the order of its split."""
    chosen = {
        "train": seen_rows(len(prepared.train), training, prepared.train.groups),
        "evaluation": np.arange(len(prepared.evaluation)),
    }
    found = [(prepared.split(split), chosen[split]) for split in SPLITS]
    return ReferenceRows(
        prepared=prepared,
        split=np.repeat(np.arange(len(SPLITS), dtype=np.int8), [len(places) for _, places in found]),
        places=np.concatenate([places for _, places in found]),
        keys=np.concatenate([rows.keys()[places] for rows, places in found]),
        lengths=np.concatenate([rows.packed_lengths()[places] for rows, places in found]),
    )


def seen_rows(rows: int, training: Training, groups: Groups | None = None) -> Places:
    """Places of the training rows that are seen: all of them, or fewer where `maxSteps` ends the first epoch."""
    sampler = Sampler(rows, training.batch_size, training.seed, groups)
    return sampler.seen(sampler.total_steps(training.epochs, training.max_steps))


@dataclass(frozen=True)
class ReferenceCache:
    """Summed log-probs (nats) of the rows of one model, in shards.

    A shard is a file of `keys` uint8 (rows, 16) and `logprobs` float32 (rows, completions), which is named by its own
    SHA-256: one that was cut or damaged is not what its name says, and its rows are computed again. Shards of rows with
    more or fewer completions are passed over.
    """

    place: Storage

    def write(self, keys: RowKeys, logprobs: Float32) -> None:
        """Adds a shard. logprobs: (rows, completions). Raises ValueError for what is not finite."""
        if logprobs.ndim != 2 or len(logprobs) != len(keys) or not np.isfinite(logprobs).all():
            raise ValueError(f"{logprobs.shape} log-probs of {len(keys)} rows, or some that are not finite")
        body = save(
            {
                "keys": keys.astype(ROW_KEY).view(np.uint8).reshape(len(keys), ROW_KEY.itemsize),
                "logprobs": logprobs.astype(np.float32),
            }
        )
        self.place.put(f"{hashlib.sha256(body).hexdigest()}{_SUFFIX}", [body])

    def read(self, keys: RowKeys, completions: int) -> Float32:
        """(rows, completions); NaN for rows that no whole shard holds."""
        shards = [shard for shard in self._shards() if shard.logprobs.shape[1] == completions]
        if not shards:
            return np.full((len(keys), completions), np.nan, dtype=np.float32)
        held, logprobs = _joined(shards)
        order = np.argsort(held, kind="stable")
        places = order[np.searchsorted(held, keys, side="right", sorter=order) - 1]
        return np.where((held[places] == keys)[:, None], logprobs[places], np.float32(np.nan))

    def missing(self, rows: ReferenceRows) -> Places:
        """Indices of the rows that are to be computed, each row once, however often it is written."""
        _, first = np.unique(rows.keys, return_index=True)
        lacking = np.isnan(self.read(rows.keys, rows.completions)[:, 0])
        return np.sort(first[lacking[first]])

    def remove_damaged(self) -> None:
        """Removes shards that are not what their names say."""
        for name, body in self._bodies():
            if not _is_whole(name, body):
                log.warning("%s/%s is damaged; its rows are computed again", self.place, name)
                self.place.remove(name)

    def _shards(self) -> Iterator[_Shard]:
        for name, body in self._bodies():
            if _is_whole(name, body):
                arrays = load(body)
                yield _Shard(arrays["keys"].view(ROW_KEY)[:, 0], arrays["logprobs"])

    def _bodies(self) -> Iterator[tuple[str, bytes]]:
        names = (name for name in self.place.list("") if name.endswith(_SUFFIX) and not name.startswith("."))
        return ((name, self.place.get(name)) for name in names)


def _is_whole(name: str, body: bytes) -> bool:
    return hashlib.sha256(body).hexdigest() == name.removesuffix(_SUFFIX)


class _Shard(NamedTuple):
    keys: RowKeys
    logprobs: Float32


class ShardWriter:
    """Keeps what was computed until it is time for a shard. `flush` it at the end, also after an interruption."""

    def __init__(
        self, cache: ReferenceCache, every: float = SHARD_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cache, self._every, self._clock = cache, every, clock
        self._held: list[_Shard] = []
        self._written = clock()

    def add(self, keys: RowKeys, logprobs: Float32) -> None:
        """Rows that were computed. logprobs: (rows, completions). Raises as `ReferenceCache.write` does."""
        self._held.append(_Shard(keys, logprobs))
        if self._clock() - self._written >= self._every:
            self.flush()

    def flush(self) -> None:
        """Writes what is held."""
        if self._held:
            self._cache.write(*_joined(self._held))
            self._held.clear()
        self._written = self._clock()


def _joined(shards: Sequence[_Shard]) -> _Shard:
    return _Shard(np.concatenate([one.keys for one in shards]), np.concatenate([one.logprobs for one in shards]))


def reference_cache(prepared: PreparedData) -> ReferenceCache:
    """The cache of the model that these rows were prepared for; it outlives them."""
    return ReferenceCache(prepared.place.within(f"reference/{prepared.manifest.model.fingerprint}"))


def read_reference(prepared: PreparedData, training: Training, split: str, needed: bool) -> Float32:
    """The reference's log-probs of a split, (rows, completions); zeros where the algorithm needs none.

    NaN for rows that no step sees. Raises IncompleteReferenceError where one that is needed is not there.
    """
    rows = prepared.split(split)
    if not needed:
        return np.zeros((len(rows), rows.completions), np.float32)
    cache = reference_cache(prepared)
    logprobs = cache.read(rows.keys(), rows.completions)
    places = seen_rows(len(rows), training, rows.groups) if split == "train" else np.arange(len(rows))
    lacking = places[np.isnan(logprobs[places, 0])]
    if len(lacking):
        raise IncompleteReferenceError(
            f"{cache.place}: no log-probs of {len(lacking)} rows of split {split}, the first is row "
            f"{rows[int(lacking[0])].row}; stage `prepare` has not finished here, or its files were removed"
        )
    return logprobs
