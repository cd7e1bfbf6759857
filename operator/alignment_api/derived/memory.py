"""Bytes that a model takes in one process, by component: the one model of memory (docs/adr/0039).

Arithmetic over a model's shape that follows what the trainer's engines allocate. A test holds it against measured runs
(tests/unit/trainer/test_memory.py). Not counted is what no tensor of torch's holds: the process itself, fragments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from alignment_api.contract.spec import Sharding
from alignment_api.contract.status import ModelShape, Precision
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.even_runs import even_runs

FP32, BF16 = 4, 2
"""Bytes of a number."""
MOMENTS = 2
"""Of AdamW, for each weight."""
SNAPSHOT = 3
"""Numbers of a weight in a checkpoint: itself and its moments."""
CHUNK = 512
"""Tokens whose logits exist at once (`model/logprobs.py`, which knows tensors alone)."""
BUCKET = 500_000_000
"""Numbers of gradients that ranks of DeepSpeed reduce at once, at most: its default."""
MAX_LIVE = 1_000_000_000
"""Weights that ZeRO-3 keeps gathered, at most: DeepSpeed's stage3_max_live_parameters."""
_WIDTHS: dict[Precision, int] = {"bf16": BF16, "fp32": FP32}
_LAST = 5
"""Rows of the last hidden states that are kept: three of the norm, those that predict, and their gradient."""


@dataclass(frozen=True)
class Holder:
    """Who holds a model. sharding: of a trainee. gpu: whether on one of compute capability 8.0 and up.

    ranks: of a trainee; of a frozen copy the GPUs that hold it together. adapters: numbers that a trainee trains beside
    the model, which is frozen then; None where it trains the model.
    """

    precision: Precision
    gpu: bool = False
    sharding: Sharding = "none"
    ranks: int = 1
    adapters: int | None = None

    def trains(self, model: Decoder) -> int:
        """Numbers that have a gradient and moments."""
        return model.parameters if self.adapters is None else self.adapters


@dataclass(frozen=True)
class Work:
    """What is computed at once. tokens: of a micro-batch. longest: of one of its rows. branches: completions in it.

    recompute: layers whose activations are made again in the backward pass.
    """

    tokens: int
    longest: int
    branches: int = 2
    recompute: int = 0

    @property
    def share(self) -> float:
        """Of a row the share that is completions, where prompt and completions are equally long."""
        return self.branches / (1 + self.branches)


@dataclass(frozen=True)
class Memory:
    """Bytes of one process at its peak."""

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    """AdamW's moments."""
    copies: float = 0
    """Second copies of weights: bf16 for products, fp32 masters of DeepSpeed."""
    gathered: float = 0
    """What ranks lend each other: gathered weights, whole gradients on their way."""
    activations: float = 0
    head: float = 0
    """Logits of a chunk of tokens, and the gradient of the matrix that makes them."""
    snapshot: float = 0
    """A checkpoint on its way to storage, in host memory."""

    @property
    def state(self) -> float:
        """What is there whatever is computed at once, a checkpoint on its way apart."""
        return self.weights + self.gradients + self.optimizer + self.copies

    @property
    def on_device(self) -> float:
        """What a GPU must hold."""
        return self.total - self.snapshot

    @property
    def total(self) -> float:
        """On a CPU all of it."""
        return float(sum(vars(self).values()))

    def plus(self, *others: Memory) -> Memory:
        """Of several models that are there and at work at once."""
        return Memory(**{name: sum(vars(each)[name] for each in (self, *others)) for name in vars(self)})

    def in_turn(self, other: Memory) -> Memory:
        """Of two trainees in one process, of which one computes at a time: the other one has no gradients then."""
        busy, idle = (self, other) if self.activations + self.head >= other.activations + other.head else (other, self)
        return busy.plus(replace(idle, activations=0, head=0, gradients=0))


@dataclass(frozen=True)
class _Phase:
    """A moment of a step that may be its peak."""

    activations: float
    head: float
    gathered: float

    @property
    def total(self) -> float:
        return self.activations + self.head + self.gathered


def trained(model: Decoder, holder: Holder, work: Work) -> Memory:
    """Of one rank of a trainee, in the last micro-batch of a step, with a checkpoint on its way."""
    peak = max(_phases(model, holder, work), key=lambda phase: phase.total)
    return replace(
        _state(model, holder),
        snapshot=SNAPSHOT * FP32 * holder.trains(model) / holder.ranks,
        activations=peak.activations,
        head=peak.head,
        gathered=peak.gathered,
    )


def frozen(model: Decoder, holder: Holder, work: Work) -> Memory:
    """Of a model that is asked: a reference, a reward model, the evaluator. Of GPUs that hold it together the fullest.

    Of the activations those of a layer are there at once. In bf16 the weights of products are held in it, and no other
    (docs/adr/0040): the head that is the embedding is cast, unless another GPU holds it.
    """
    shape, alone = model.shape, holder.ranks == 1
    activations = work.tokens * (3 * FP32 * shape.hidden + _width(holder) * (5 * shape.queries + 2 * shape.inner))
    logits = min(CHUNK, work.tokens * work.share) * 2 * FP32 * shape.vocabulary if model.has_head else 0
    cast = BF16 * model.head if alone and shape.tied and holder.precision == "bf16" else 0
    units = _whole(model, holder) if alone else _units(model, holder)
    *others, last = (sum(units[run.start : run.stop]) for run in even_runs(units, holder.ranks))
    with_head = Memory(weights=last, copies=cast, activations=activations, head=logits)
    return max([with_head, *(Memory(weights=held, activations=activations) for held in others)], key=_total)


def _whole(model: Decoder, holder: Holder) -> list[int]:
    in_products = _in_products(model) + (0 if model.shape.tied else model.head)
    return [FP32 * model.parameters - (BF16 * in_products if holder.precision == "bf16" else 0)]


def _units(model: Decoder, holder: Holder) -> list[int]:
    """Bytes of what lies on one GPU: the embedding, each layer, the head, of which a tied one is there twice."""
    shape, saved = model.shape, BF16 if holder.precision == "bf16" else 0
    layers = FP32 * model.in_layers - saved * _in_products(model)
    embedding = FP32 * (shape.embeddings - (0 if shape.tied else model.head))
    return [embedding, *[-(-layers // shape.layers)] * shape.layers, (FP32 - saved) * model.head]


def _in_products(model: Decoder) -> int:
    """Weights of the layers' linear maps. What layers have beyond those are experts, which are none."""
    shape = model.shape
    a_layer = shape.hidden * (2 * shape.queries + 2 * shape.keys + 3 * shape.inner)
    return min(model.in_layers, shape.layers * a_layer)


def sampled(model: Decoder, precision: Precision) -> Memory:
    """Of a model in vLLM, keys and values apart."""
    return Memory(weights=_WIDTHS[precision] * model.parameters)


def _state(model: Decoder, holder: Holder) -> Memory:
    """Weights, gradients and moments by engine (`engines/`); what is spread over ranks has a rank's share."""
    if holder.adapters is not None:
        return _adapted_state(model, holder, FP32 * holder.adapters / holder.ranks)
    whole, share = FP32 * model.parameters, FP32 * model.parameters / holder.ranks
    if holder.sharding == "none":
        casts = BF16 * model.in_layers if holder.precision == "bf16" else 0
        return Memory(weights=whole, gradients=whole, optimizer=MOMENTS * whole, copies=casts)
    if holder.sharding == "fsdp2":
        return Memory(weights=share, gradients=share, optimizer=MOMENTS * share)
    weights = whole if holder.sharding == "zero2" else share
    return Memory(weights=weights, gradients=share, optimizer=MOMENTS * share, copies=share)


def _adapted_state(model: Decoder, holder: Holder, share: float) -> Memory:
    """The base as a frozen model has it, in a rank's share. share: bytes of the rank's adapters in fp32."""
    [base] = _whole(model, holder)
    casts = share * BF16 / FP32 if holder.precision == "bf16" and holder.sharding == "none" else 0
    return Memory(base / holder.ranks + share, gradients=share, optimizer=MOMENTS * share, copies=casts)


def _phases(model: Decoder, holder: Holder, work: Work) -> tuple[_Phase, ...]:
    """The head's backward pass, that of the last layer that is recomputed, and the exchange of gradients after it."""
    shape, recomputed = model.shape, min(work.recompute, model.shape.layers)
    kept, inputs = _kept(model, holder, work), FP32 * shape.hidden
    a_layer = kept + 2 * _width(holder) * shape.inner + FP32 * shape.hidden
    all_kept = (shape.layers - recomputed) * kept + recomputed * inputs + _LAST * FP32 * shape.hidden
    again = recomputed * inputs + a_layer + shape.hidden * FP32
    gradient = FP32 * model.head if holder.adapters is None else 0
    logits = 2 * FP32 * shape.vocabulary * min(CHUNK, work.tokens * work.share) if model.has_head else 0
    is_cast = holder.precision == "bf16" and (shape.tied or holder.adapters is None)
    casts = BF16 * model.head if is_cast else 0
    at_head, in_layers, after = _gathered(model, holder)
    return (
        _Phase(work.tokens * all_kept, gradient + logits + casts, at_head),
        _Phase(work.tokens * again if recomputed else 0, gradient if shape.tied else 0, in_layers),
        _Phase(0, gradient if shape.tied else 0, after),
    )


def _kept(model: Decoder, holder: Holder, work: Work) -> float:
    """Bytes that a layer keeps of a token for its backward pass, by what transformers' decoder layers save there.

    Eager: of two norms input, normed input and output (bf16: its casts for the products that read it); queries, keys
    and values for all heads, the attention's output twice; gate, its activation, up and their product. Compiled: what
    the backward pass can make again is not kept, and keys are not repeated for all heads.
    """
    shape, width = model.shape, _width(holder)
    if holder.gpu and holder.sharding == "none" and holder.precision == "bf16":
        return 12 * shape.hidden + width * (2 * shape.queries + 2 * shape.keys + 3 * shape.inner)
    of_hidden = 6 * FP32 if holder.precision == "fp32" else 4 * FP32 + 5 * BF16
    eager = of_hidden * shape.hidden + width * 4 * shape.inner
    if holder.gpu:
        return eager + width * (3 * shape.queries + 2 * shape.keys)
    return eager + width * (5 * shape.queries + _branched(shape, work))


def _branched(shape: ModelShape, work: Work) -> float:
    """Numbers a token more of attention piece by piece: each branch has its prompt's keys and values again, and a mask.

    Prompt and completions are taken to be equally long, half of the longest sequence each.
    """
    return work.share * (4 * shape.queries + work.longest)


def _gathered(model: Decoder, holder: Holder) -> tuple[float, float, float]:
    """Bytes that ranks lend each other in the three phases."""
    gathered = _WIDTHS[holder.precision]
    bucket = FP32 * min(model.parameters, BUCKET)
    if holder.sharding == "zero2":
        return 0, 0, bucket
    if holder.sharding == "zero3":
        live = bucket + gathered * min(model.parameters, MAX_LIVE)
        return live, live, live
    if holder.sharding == "none":
        return 0, 0, 0
    root, a_layer = FP32 * model.shape.embeddings, model.in_layers / model.shape.layers if holder.ranks > 1 else 0
    if holder.adapters is not None:
        return root + gathered * a_layer, root + gathered * a_layer, root
    return root + gathered * a_layer, root + (gathered + FP32) * a_layer, 2 * root


def _total(memory: Memory) -> float:
    return memory.total


def _width(holder: Holder) -> int:
    """Bytes of a number that a product reads or makes."""
    return _WIDTHS[holder.precision]
