"""How much is computed at once: tokens of a micro-batch, and layers whose activations are made again.

What a spec leaves open (`auto`) is decided once, in `prepare`, by the model of memory, and recorded: a job that goes on
elsewhere cuts its steps as before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from alignment_api.contract.numbers import ALL_LAYERS, LEAST_TOKENS
from alignment_api.contract.spec import AlignmentJobSpec, Training
from alignment_api.contract.status import MicroBatchReport

MOST_TOKENS = 8192
"""What `auto` takes at most, unless one row may be longer. More makes products no faster: those of 8,192 tokens fill a
GPU (docs/benchmarks.md), and a CPU's caches are full long before."""
ENOUGH_TOKENS = 2048
"""Layers are recomputed, at a third more work at most, rather than that fewer are computed at once."""


class Undecided(ValueError):
    """The spec leaves open how much is computed at once, and `prepare` has not decided it yet."""


class TooLittleMemory(ValueError):
    """Not even the smallest micro-batch fits; the text says what it needs and what is there."""


@dataclass(frozen=True)
class Limit:
    """Memory that something must fit in. what: of which, in words. need: bytes, by a spec that leaves nothing open.

    bare: those without which nothing can work, whatever is computed at once. Absent: as `need`; a container is killed
    for a byte beyond its limit.
    """

    bytes: float
    what: str
    need: Callable[[AlignmentJobSpec], float]
    bare: Callable[[AlignmentJobSpec], float] | None = None

    def holds(self, spec: AlignmentJobSpec) -> bool:
        return self.need(spec) <= self.bytes

    def may_hold(self, spec: AlignmentJobSpec) -> bool:
        """Whether it is worth a try with the least that is computed at once."""
        return (self.bare or self.need)(spec) <= self.bytes


def tokens_of(training: Training) -> int:
    """Tokens of a micro-batch. Raises Undecided."""
    return _number(training.micro_batch_tokens, "microBatchTokens")


def recomputed_of(training: Training) -> int:
    """Layers that are recomputed. Raises Undecided."""
    return _number(_written_layers(training), "recomputeLayers")


def _written_layers(training: Training) -> int | Literal["auto"]:
    """What the spec says; in a job that an earlier release has stored, all or none."""
    before = (training.model_extra or {}).get("gradientCheckpointing")
    if training.recompute_layers == "auto" and isinstance(before, bool):
        return ALL_LAYERS if before else 0
    return training.recompute_layers


def longest_row(spec: AlignmentJobSpec) -> int:
    """Tokens of one row at most: it is a sequence, or a pair of them."""
    return spec.training.max_length * (1 if spec.algorithm.online else 2)


def least_tokens(spec: AlignmentJobSpec) -> int:
    """What `auto` takes at least."""
    return max(LEAST_TOKENS, longest_row(spec))


def most_tokens(spec: AlignmentJobSpec) -> int:
    """What `auto` takes at most."""
    return max(MOST_TOKENS, longest_row(spec))


def with_micro_batch(spec: AlignmentJobSpec, tokens: int, recompute_layers: int) -> AlignmentJobSpec:
    """The spec as if it named both."""
    numbers = {"micro_batch_tokens": tokens, "recompute_layers": recompute_layers}
    return spec.model_copy(update={"training": spec.training.model_copy(update=numbers)})


def assumed(spec: AlignmentJobSpec, tokens: int) -> AlignmentJobSpec:
    """The spec with so many tokens and all layers recomputed where it leaves that open."""
    training = spec.training
    return with_micro_batch(
        spec,
        tokens if training.micro_batch_tokens == "auto" else training.micro_batch_tokens,
        ALL_LAYERS if (written := _written_layers(training)) == "auto" else written,
    )


def decide(spec: AlignmentJobSpec, layers: int, limits: Iterable[Limit]) -> MicroBatchReport:
    """The least recomputed with which enough is computed at once, then the most tokens that fit.

    layers: of the model. limits: none where the memory follows from the job: then the most, with all layers recomputed.
    Raises TooLittleMemory.
    """
    limits, tokens, counts = tuple(limits), _tokens(spec), _counts(spec, layers)
    if not limits or (len(tokens) == 1 and len(counts) == 1):
        return _report(tokens[0], counts[-1], "pods are sized for it" if len(tokens) > 1 else "the spec says so")
    for count in counts:
        found = next((n for n in tokens if _fits(with_micro_batch(spec, n, count), limits)), 0)
        if found >= min(ENOUGH_TOKENS, tokens[0]) or (found and count == counts[-1]):
            return _report(found, count, _why(limits, spec, found, count))
    least, why = with_micro_batch(spec, tokens[-1], counts[-1]), _why(limits, spec, tokens[-1], counts[-1])
    if len(tokens) == 1:
        return _report(tokens[0], counts[-1], f"the spec says so; {why}")
    if all(limit.may_hold(least) for limit in limits):
        return _report(tokens[-1], counts[-1], f"the least there is; {why}, so it may be too little")
    raise TooLittleMemory(why)


def _counts(spec: AlignmentJobSpec, layers: int) -> Sequence[int]:
    """Layers to recompute that come into question, the least first."""
    written = _written_layers(spec.training)
    return range(layers + 1) if written == "auto" else (min(layers, written),)


def _tokens(spec: AlignmentJobSpec) -> tuple[int, ...]:
    """Tokens that come into question, the most first: what memory is free never decides which rows are too long."""
    written = spec.training.micro_batch_tokens
    if written != "auto":
        return (written,)
    most, least = most_tokens(spec), least_tokens(spec)
    halves = (most >> times for times in range(most.bit_length()))
    return (*(tokens for tokens in halves if tokens > least), least)


def _fits(spec: AlignmentJobSpec, limits: Iterable[Limit]) -> bool:
    return all(limit.holds(spec) for limit in limits)


def _why(limits: Iterable[Limit], spec: AlignmentJobSpec, tokens: int, count: int) -> str:
    chosen = with_micro_batch(spec, tokens, count)
    needs = (f"{limit.need(chosen) / 2**30:.1f} of {limit.bytes / 2**30:.1f} GiB {limit.what}" for limit in limits)
    return f"takes {', '.join(needs)}"


def _report(tokens: int, recompute_layers: int, why: str) -> MicroBatchReport:
    return MicroBatchReport(tokens=tokens, recompute_layers=recompute_layers, why=why)


def _number(value: int | str, field: str) -> int:
    if not isinstance(value, int):
        raise Undecided(f"spec.training.{field} is `auto`, and stage `prepare` has not decided what that is")
    return value
