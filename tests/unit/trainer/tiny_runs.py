"""Tiny random models, pairs and runs, made in milliseconds."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from alignment_api.contract.algorithms import Algorithm
from alignment_trainer.algorithms import OfflineAlgorithm, make_algorithm
from alignment_trainer.algorithms.schedule import WarmupCosine
from alignment_trainer.checkpoint.checkpoint import Checkpoint, list_checkpoints, verify
from alignment_trainer.checkpoint.run_state import Checkpoints
from alignment_trainer.data.examples import Example, PromptGroup
from alignment_trainer.data.packing import pack, pack_whole
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.data.storage import Folder
from alignment_trainer.engines import ENGINES, Engine, OptimizerOptions
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop.offline import Learner, LoopOptions, Run, RunHooks, StepReport, TrainingRows
from alignment_trainer.model.heads import scorer, value_scorer
from alignment_trainer.model.weights import Weights
from alignment_trainer.process import distributed

VOCABULARY = 97
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.1,
}


def newest_saved(folder: Path) -> Checkpoint:
    """Of the first term below a run's folder, proven."""
    term = Folder(folder / "0001")
    return verify(term.within(list_checkpoints(term)[0]))


def tiny_llama(seed: int = 0, **overrides: Any) -> Any:
    """Tied embeddings, as SmolLM2 has them."""
    torch.manual_seed(seed)
    config = LlamaConfig(**(SHAPE | {"tie_word_embeddings": True} | overrides))
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def tiny_qwen2(seed: int = 0) -> Any:
    """Biases in attention and a head of its own."""
    torch.manual_seed(seed)
    config = Qwen2Config(**(SHAPE | {"tie_word_embeddings": False}))
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


def pairs(count: int, seed: int = 0) -> list[Example]:
    """Random pairs of 3 to 40 tokens a part."""
    generator = torch.Generator().manual_seed(seed)

    def tokens() -> tuple[int, ...]:
        length = int(torch.randint(3, 40, (), generator=generator))
        return tuple(torch.randint(VOCABULARY, (length,), generator=generator).tolist())

    return [Example(row, PromptGroup(tokens(), (tokens(), tokens()))) for row in range(1, count + 1)]


VALUE_GROUPS = [*(pair.group for pair in pairs(4)), PromptGroup((1, 2), ((3,), (4, 5), (6, 7, 8)))]


def tiny_classifier(family: str = "llama", labels: int = 1, **overrides: Any) -> Any:
    """A random sequence classifier."""
    config, network = {
        "llama": (LlamaConfig, LlamaForSequenceClassification),
        "qwen2": (Qwen2Config, Qwen2ForSequenceClassification),
    }[family]
    torch.manual_seed(5)
    return network(config(**(SHAPE | overrides), num_labels=labels, pad_token_id=None))


def trained_values(classifier: Any, sharding: str = "none") -> Engine:
    """After three steps towards the scores 0, 1, 2, ...; every rank computes its part of the same loss."""
    engine = ENGINES[sharding](value_scorer(classifier), OptimizerOptions(0.01, 1.0), "fp32", torch.device("cpu"))
    for _ in range(3):
        scores = engine.forward(pack_whole(VALUE_GROUPS))
        engine.backward((scores - torch.arange(len(scores))).square().mean() / distributed.world_size())
        engine.step(1e-3)
    return engine


def offline(name: str, **options: Any) -> OfflineAlgorithm:
    """An algorithm by its key in the spec, with options as a manifest writes them."""
    return make_algorithm(Algorithm.model_validate({name: options}))


@dataclass
class Recorder:
    """Remembers what a run reported."""

    reports: list[StepReport] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    versions: list[int] = field(default_factory=list)
    """Of weights that an online run has published."""
    waits: list[bool] = field(default_factory=list)
    """Of each pause to save, whether it was also for the checkpoint before."""

    def stepped(self, report: StepReport) -> None:
        self.reports.append(report)

    def saved(self, checkpoint: Checkpoint) -> None:
        self.checkpoints.append(checkpoint)

    def paused(self, seconds: float, waited: bool) -> None:
        self.waits.append(waited)

    @property
    def losses(self) -> list[float]:
        return [report.metrics["loss"] for report in self.reports]


@dataclass(frozen=True)
class Setting:
    """What a test varies of a tiny run."""

    algorithm: str = "dpo"
    sharding: str = "none"
    precision: str = "fp32"
    rows: int = 12
    batch_size: int = 4
    steps: int = 6
    micro_tokens: int = 300
    recompute: int = 0
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    learning_rate: float = 1e-3
    dropout: float = 0.0
    checkpoint_every: int = 2


def tiny_engine(setting: Setting, causal: Any | None = None, weights: Weights | None = None) -> Engine:
    options = OptimizerOptions(setting.weight_decay, setting.max_grad_norm)
    if setting.algorithm == "reward":
        model = value_scorer(tiny_classifier(), setting.recompute)
    else:
        model = scorer(causal or tiny_llama(attention_dropout=setting.dropout), setting.recompute)
    return ENGINES[setting.sharding](model, options, setting.precision, torch.device("cpu"), weights)


def tiny_run(
    folder: Path,
    setting: Setting,
    engine: Engine | None = None,
    stop: Callable[[], bool] = lambda: False,
    reference: torch.Tensor | None = None,
) -> tuple[Run, Recorder]:
    """A run whose reference, if it has one, is the policy as it is now, unless given."""
    engine = engine or tiny_engine(setting)
    algorithm, sampler = offline(setting.algorithm), Sampler(setting.rows, setting.batch_size, seed=3)
    rows = pairs(setting.rows)
    if reference is None:
        reference = _reference(algorithm, engine, sampler, rows, setting.micro_tokens)
    recorder = Recorder()
    run = Run(
        learner=Learner(engine, algorithm),
        rows=TrainingRows(rows, sampler, reference),
        options=LoopOptions(
            setting.micro_tokens,
            setting.steps,
            WarmupCosine(setting.learning_rate, setting.steps, 0.2),
            checkpoint_every=setting.checkpoint_every,
            evaluate_every=10**9,
        ),
        checkpoints=Checkpoints(Folder(folder), term=1, keep=3),
        hooks=RunHooks(recorder, stop=stop),
    )
    return run, recorder


def _reference(
    algorithm: OfflineAlgorithm, engine: Engine, sampler: Sampler, rows: list[Example], micro_tokens: int
) -> torch.Tensor:
    if not algorithm.needs_reference:
        return torch.zeros(len(rows), 2)
    return epoch_reference(engine, sampler, rows, micro_tokens)


def epoch_reference(engine: Engine, sampler: Sampler, rows: list[Example], micro_tokens: int) -> torch.Tensor:
    """Reference log-probs of all rows, computed in the batches of the first epoch."""
    order = [sampler.batch(step) for step in range(sampler.steps_per_epoch)]
    groups = [[rows[index].group for index in batch] for batch in order]
    scored = torch.cat([score_sequences(engine.forward, pack, batch, micro_tokens) for batch in groups])
    reference = torch.empty_like(scored)
    reference[[index for batch in order for index in batch]] = scored
    return reference
