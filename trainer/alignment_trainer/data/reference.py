"""The reference's log-probs of the prepared rows: in which pieces they are computed, and the cache that keeps them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from alignment_api.spec import AlignmentJobSpec, Training
from alignment_trainer.data.files import sha256, write_atomically, write_text_atomically
from alignment_trainer.data.prepared import PreparedData, digest
from alignment_trainer.data.sampler import Sampler

Float32 = NDArray[np.float32]
Batch = tuple[int, ...]
ROWS_PER_SHARD = 32
"""A shard is what one request computes and what a lost server costs. It ends with a batch, so it may hold more."""


class IncompleteReferenceError(ValueError):
    """The cache lacks log-probs, or has some of another model or of other rows."""


@dataclass(frozen=True)
class Shard:
    """Rows of a split that are computed by one request.

    first: their place in the order of work. batches: indices of rows; each batch is computed as training computes it.
    """

    split: str
    first: int
    batches: tuple[Batch, ...]

    @property
    def indices(self) -> tuple[int, ...]:
        return tuple(chain.from_iterable(self.batches))

    @property
    def name(self) -> str:
        return f"{self.split}-{self.first:08d}-{self.first + len(self.indices) - 1:08d}"


def plan_shards(prepared: PreparedData, training: Training, rows_per_shard: int = ROWS_PER_SHARD) -> list[Shard]:
    """All the work. Training rows come in the batches of the first epoch, held-out rows in batches in their order.

    bf16 rounds by the shape of a batch; with the very batches that training uses, a policy that equals its reference
    differs from it by nothing. Rows that `maxSteps` keeps from being seen are left out.
    """
    train = train_batches(len(prepared.train), training)
    return [
        *_group("train", train, rows_per_shard),
        *_group("evaluation", evaluation_batches(len(prepared.evaluation), training), rows_per_shard),
    ]


def train_batches(rows: int, training: Training) -> list[Batch]:
    """The batches of the first epoch, as far as training goes."""
    sampler = Sampler(rows, training.batch_size, training.seed)
    steps = min(sampler.steps_per_epoch, sampler.total_steps(training.epochs, training.max_steps))
    return [sampler.batch(step) for step in range(steps)]


def evaluation_batches(rows: int, training: Training) -> list[Batch]:
    """Held-out rows in their order, as many at once as a training step has."""
    return [tuple(range(s, min(s + training.batch_size, rows))) for s in range(0, rows, training.batch_size)]


def _group(split: str, batches: Sequence[Batch], rows_per_shard: int) -> Iterator[Shard]:
    first, held = 0, tuple[Batch, ...]()
    for batch in batches:
        held = (*held, batch)
        if sum(map(len, held)) >= rows_per_shard:
            yield Shard(split, first, held)
            first, held = first + sum(map(len, held)), ()
    if held:
        yield Shard(split, first, held)


def policy_ranks(spec: AlignmentJobSpec) -> int:
    """Ranks that the policy will train with; its rows are cut into micro-batches by them."""
    policy = spec.roles.policy
    return policy.replicas * (policy.gpus or policy.processes or 1)


def reference_key(prepared: PreparedData, training: Training) -> str:
    """Identifies what the cache depends on: model, rows, and how they are computed."""
    return digest(
        {
            "model": prepared.manifest.model.fingerprint,
            "data": prepared.manifest.data.fingerprint,
            "training": training.model_dump(
                include={"batch_size", "seed", "epochs", "max_steps", "precision", "micro_batch_tokens"}
            ),
        }
    )


@dataclass(frozen=True)
class ReferenceCache:
    """Shards of summed log-probs (nats), float32 (pairs, 2), chosen then rejected; a manifest says that all are there.

    A shard is a file with the rows' indices and log-probs and a file with its SHA-256, which is written last. One of
    another key or with another checksum does not count and is computed again.
    """

    folder: Path
    key: str

    def holds(self, shard: Shard) -> bool:
        """Whether the shard is there and whole."""
        path = self._path(shard.name)
        try:
            if path.with_suffix(".sha256").read_text() != sha256(path):
                return False
            with safe_open(path, framework="numpy") as file:
                return (file.metadata() or {}).get("key") == self.key
        except (OSError, SafetensorError):
            return False

    def write(self, shard: Shard, logprobs: Float32) -> None:
        """logprobs: (rows of the shard, 2)."""
        if logprobs.shape != (len(shard.indices), 2) or not np.isfinite(logprobs).all():
            raise IncompleteReferenceError(f"{shard.name}: {logprobs.shape} log-probs, or some that are not finite")
        arrays: dict[str, NDArray[Any]] = {
            "logprobs": logprobs.astype(np.float32),
            "index": np.array(shard.indices, dtype=np.int64),
        }
        path = write_atomically(
            self._path(shard.name), lambda temporary: save_file(arrays, temporary, metadata={"key": self.key})
        )
        write_text_atomically(path.with_suffix(".sha256"), sha256(path))

    def complete(self, shards: Sequence[Shard]) -> None:
        """Declares the cache complete. Raises IncompleteReferenceError where a shard is not there."""
        missing = [shard.name for shard in shards if not self.holds(shard)]
        if missing:
            raise IncompleteReferenceError(f"{self.folder}: {len(missing)} shards are missing, the first: {missing[0]}")
        checksums = {shard.name: self._path(shard.name).with_suffix(".sha256").read_text() for shard in shards}
        manifest = {"key": self.key, "shards": checksums}
        write_text_atomically(self.folder / "manifest.json", json.dumps(manifest, indent=1))

    def is_complete(self, shards: Sequence[Shard]) -> bool:
        """Whether the manifest is there and every shard is whole."""
        return (self.folder / "manifest.json").is_file() and all(self.holds(shard) for shard in shards)

    def read(self, split: str, rows: int) -> Float32:
        """The log-probs of a split, (rows, 2); NaN for rows that no training step sees. Checks every shard."""
        try:
            manifest = json.loads((self.folder / "manifest.json").read_text())
        except FileNotFoundError as error:
            raise IncompleteReferenceError(f"{self.folder}: the reference log-probs are not complete") from error
        if manifest["key"] != self.key:
            raise IncompleteReferenceError(f"{self.folder}: of another model, other rows or another training")
        logprobs = np.full((rows, 2), np.nan, dtype=np.float32)
        for name, checksum in manifest["shards"].items():
            if name.startswith(f"{split}-"):
                index, values = self._read_shard(name, checksum)
                logprobs[index] = values
        return logprobs

    def _read_shard(self, name: str, checksum: str) -> tuple[NDArray[np.int64], Float32]:
        path = self._path(name)
        if not path.is_file() or sha256(path) != checksum:
            raise IncompleteReferenceError(f"{path}: missing, or not what the manifest says")
        with safe_open(path, framework="numpy") as file:
            return file.get_tensor("index"), file.get_tensor("logprobs")

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"


def read_reference(prepared: PreparedData, training: Training, split: str, needed: bool) -> Float32:
    """The reference's log-probs of a split, (rows, 2); zeros where the algorithm needs none."""
    rows = len(prepared.split(split))
    return reference_cache(prepared, training).read(split, rows) if needed else np.zeros((rows, 2), np.float32)


def reference_cache(prepared: PreparedData, training: Training) -> ReferenceCache:
    """The cache of a job's prepared rows."""
    return ReferenceCache(prepared.folder / "reference", reference_key(prepared, training))
