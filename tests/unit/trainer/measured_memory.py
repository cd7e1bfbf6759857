"""The peak of small training runs, measured, beside what the model of memory says of them.

`python tests/unit/trainer/measured_memory.py` prints both for every case (docs/benchmarks.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from adapted_runs import outline, write_tiny
from live_memory import LiveMemory
from online_runs import NEW_TOKENS, HereAndNow, OnlineSetting, online_run, prompts
from ranks import run_ranks
from tiny_runs import Setting, pairs, tiny_classifier, tiny_llama, tiny_run

from alignment_api.contract.spec import Lora, Training
from alignment_api.derived.adapters import trained_parameters
from alignment_api.derived.decoder import Decoder, shape_in
from alignment_api.derived.memory import FP32, Holder, Memory, Work, trained
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.engines.state import draft_state
from alignment_trainer.loop.offline import Run
from alignment_trainer.model.heads import PackedModel, scorer, value_scorer
from alignment_trainer.model.weights import Weights
from alignment_trainer.process import distributed

SHAPE = {"vocab_size": 1024, "intermediate_size": 192, "num_hidden_layers": 4}
ROWS = 12


@dataclass(frozen=True)
class Case:
    """One run. snapshot: whether a checkpoint is on its way in its last step. rank: of adapters; 0 where there are
    none."""

    algorithm: str = "dpo"
    sharding: str = "none"
    ranks: int = 1
    precision: str = "fp32"
    recompute: int = 0
    snapshot: bool = False
    rank: int = 0

    @property
    def name(self) -> str:
        extras = [f"{self.recompute} recomputed"] * (self.recompute > 0) + ["snapshot"] * self.snapshot
        extras += [f"lora {self.rank}"] * (self.rank > 0)
        return " ".join([self.algorithm, self.sharding, f"on {self.ranks}", self.precision, *extras])


CASES = (
    Case(),
    Case(recompute=2),
    Case(recompute=4),
    Case(precision="bf16"),
    Case(snapshot=True),
    Case("reward"),
    Case("ppo"),
    *(Case(sharding=sharding, ranks=ranks) for sharding in ("fsdp2", "zero2", "zero3") for ranks in (1, 2)),
    Case(sharding="fsdp2", ranks=2, recompute=4),
    Case("reward", sharding="fsdp2", ranks=2, snapshot=True),
    Case("ppo", sharding="zero2", ranks=2),
    Case(rank=4),
    Case(rank=32),
    Case(rank=4, recompute=4),
    Case(rank=4, precision="bf16"),
    Case(rank=32, snapshot=True),
    Case("reward", rank=4),
    *(Case(sharding="fsdp2", ranks=ranks, rank=4) for ranks in (1, 2)),
)


@dataclass(frozen=True)
class Found:
    """Bytes of rank 0: measured, and by the model of memory."""

    measured: int
    computed: float


def compare_all() -> dict[str, Found]:
    """Every case by name; those of as many ranks run in one gang."""
    gangs = (run_ranks(ranks, "measured_memory:of_gang")[0] for ranks in (1, 2))
    return {name: found for gang in gangs for name, found in gang.items()}


def of_gang() -> dict[str, Found]:
    """What this rank finds, by name."""
    return {case.name: _compare(case) for case in CASES if case.ranks == distributed.world_size()}


def _compare(case: Case) -> Found:
    with TemporaryDirectory() as folder:
        return _online(Path(folder), case) if case.algorithm == "ppo" else _offline(Path(folder), case)


def _offline(folder: Path, case: Case) -> Found:
    """Two steps of a few micro-batches each: in the second every part of the state is there."""
    live, (model, weights) = LiveMemory(), _model(case, folder)
    decoder = _decoder(model)
    with live:
        live.see([parameter for parameter in model.parameters() if not parameter.is_meta])
        options = OptimizerOptions(0.01, 1.0)
        engine = ENGINES[case.sharding](model, options, case.precision, torch.device("cpu"), weights)
        run, _ = tiny_run(folder, _setting(case), engine, reference=torch.zeros(ROWS, 2))
        tokens = _steps(run, case)
    lengths = [len(row.prompt) + max(map(len, row.group.completions)) for row in pairs(ROWS)]
    memory = trained(decoder, _holder(case, decoder), Work(tokens, sum(lengths) // ROWS, recompute=case.recompute))
    return Found(live.peak, memory.total if case.snapshot else memory.on_device)


def _model(case: Case, folder: Path) -> tuple[PackedModel, Weights | None]:
    """With its numbers; one with adapters without, and where they are."""
    if not case.rank:
        return _whole_model(case), None
    base = distributed.ask_first_rank(lambda: write_tiny(folder / "base", case.algorithm, **SHAPE))
    model = outline(base, _setting(case), Lora(rank=case.rank))
    return model.scorer, model.weights


def _whole_model(case: Case) -> PackedModel:
    if case.algorithm == "reward":
        return value_scorer(tiny_classifier(**SHAPE), case.recompute)
    return scorer(tiny_llama(**SHAPE), case.recompute)


def _decoder(model: PackedModel) -> Decoder:
    shape = shape_in(model.body.config.to_dict())
    assert shape is not None
    has_head = model.head.weight.shape[0] > 1
    if not has_head:
        shape = shape.model_copy(update={"embeddings": shape.vocabulary * shape.hidden, "tied": False})
    base = (parameter for name, parameter in model.named_parameters() if "lora_" not in name)
    return Decoder(sum(parameter.numel() for parameter in base), shape, has_head)


def _setting(case: Case) -> Setting:
    return Setting(
        case.algorithm,
        case.sharding,
        case.precision,
        ROWS,
        batch_size=ROWS,
        steps=2,
        micro_tokens=300,
        recompute=case.recompute,
    )


def _holder(case: Case, model: Decoder) -> Holder:
    adapters = trained_parameters(Training(lora=Lora(rank=case.rank)), model) if case.rank else None
    return Holder(case.precision, False, case.sharding, case.ranks, adapters)  # type: ignore[arg-type]


def _steps(run: Run, case: Case) -> int:
    """Tokens of the largest micro-batch that this rank computed."""
    tokens, kept = 0, list[object]()
    for batch in run.batches():
        for micro in batch.micros:
            run.engine.backward(run.loss(micro))
            tokens = max(tokens, micro.packed.input_ids.numel())
        run.finish(batch)
        if case.snapshot:
            kept.append(draft_state(run.engine)) if not kept else None
    return tokens


def _online(folder: Path, case: Case) -> Found:
    """A step of actor and critic in one process, which also has the reference, and the model that samples."""
    live = LiveMemory()
    setting = OnlineSetting(steps=1, batch_size=16, epochs=2, sharding=case.sharding, frozen_sampler=True)
    with live:
        run, _ = online_run(folder, setting)
        clients = run.services.clients
        assert isinstance(clients, HereAndNow)
        clients.never_ends = True
    rollout = run.rollout(next(iter(run.batches())))
    with live:
        for minibatch in run.minibatches(run.learn_from(run.score(rollout))):
            run.update(minibatch)
    actor = _decoder(clients.judge)
    longest = len(prompts(1)[0].prompt) + NEW_TOKENS
    row = longest - NEW_TOKENS + setting.samples * (NEW_TOKENS - 1)
    tokens = setting.batch_size // setting.samples * row // case.ranks
    work = Work(tokens, longest, setting.samples)
    critic = Decoder(actor.parameters, actor.shape, has_head=False)
    others = Memory(weights=2 * FP32 * actor.parameters)
    memory = (
        trained(actor, _holder(case, actor), work).in_turn(trained(critic, _holder(case, critic), work)).plus(others)
    )
    return Found(live.peak, memory.on_device)


def main() -> None:
    for name, found in compare_all().items():
        print(f"{name}: {found.measured:,} measured, {found.computed / found.measured - 1:+.1%}")


if __name__ == "__main__":
    main()
