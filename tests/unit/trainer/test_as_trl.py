"""Short runs against TRL's own: the same rows in the same order, the same weights and optimizer, the same losses.

Where TRL departs from an algorithm's paper and we do not, its side is told to follow the paper (trl_runs), or the
options are those that make both the same; each such place is said below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
import trl_runs
from tests.tiny import CHAT_TEMPLATE, pairs, tiny_tokenizer, write_model
from tiny_runs import Recorder, epoch_reference, offline
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment_trainer.algorithms import OfflineAlgorithm
from alignment_trainer.checkpoint.run_state import Checkpoints
from alignment_trainer.data.demonstrations import DemonstrationTokenizer
from alignment_trainer.data.examples import Example, PromptGroup
from alignment_trainer.data.feedback import FeedbackTokenizer
from alignment_trainer.data.layouts.parsers import PARSERS
from alignment_trainer.data.rows import RawRow
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.data.storage import Folder
from alignment_trainer.data.tokenize import PairTokenizer
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.loop.offline import Learner, LoopOptions, Run, RunHooks, TrainingRows
from alignment_trainer.loop.train import train
from alignment_trainer.model.heads import scorer, value_scorer
from alignment_trainer.model.tasks import REWARD

ROWS, BATCH, RATE = 24, 4, 1e-3
SAMPLER = Sampler(ROWS, BATCH, seed=3)
ORDER = list(chain.from_iterable(SAMPLER.batch(step) for step in range(ROWS // BATCH)))
TOKENIZERS = {"preferences": PairTokenizer, "demonstrations": DemonstrationTokenizer, "feedback": FeedbackTokenizer}
TEMPLATE = CHAT_TEMPLATE.replace("<|im_end|>\n", "<|im_end|>")
"""A turn ends with its end-of-turn token: TRL trains on what a template writes behind that, and we do not."""

ONE_BY_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": BATCH}


def turn(role: str, text: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def preference(pair: dict[str, str], row: int) -> dict[str, Any]:
    chosen, rejected = (turn("assistant", pair[key]) for key in ("chosen", "rejected"))
    return {"prompt": turn("user", pair["prompt"]), "chosen": chosen, "rejected": rejected}


def demonstration(pair: dict[str, str], row: int) -> dict[str, Any]:
    return {"prompt": turn("user", pair["prompt"]), "completion": turn("assistant", pair["chosen"])}


def opinion(pair: dict[str, str], row: int) -> dict[str, Any]:
    key = "rejected" if row % 3 == 0 else "chosen"
    prompt, completion = turn("user", pair["prompt"]), turn("assistant", pair[key])
    return {"prompt": prompt, "completion": completion, "label": key == "chosen"}


MAKE: dict[str, Callable[[dict[str, str], int], dict[str, Any]]] = {
    "preferences": preference,
    "demonstrations": demonstration,
    "feedback": opinion,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = write_model(tmp_path_factory.mktemp("as-trl") / "model", chat_template=TEMPLATE)
    torch.manual_seed(7)
    classifier = AutoModelForSequenceClassification.from_pretrained(made, num_labels=1)
    classifier.save_pretrained(made.parent / "classifier")
    return made.parent


def network(folder: Path, name: str) -> Any:
    """In fp32, as both sides start from it."""
    if name == "reward":
        return AutoModelForSequenceClassification.from_pretrained(folder / "classifier", dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)


def encoded(algorithm: OfflineAlgorithm, rows: list[dict[str, Any]]) -> list[Example]:
    """As `prepare` reads and tokenizes them."""
    kind = algorithm.options.rows
    parsed = [PARSERS[kind].parse(RawRow(place + 1, "rows", row))[0] for place, row in enumerate(rows)]
    found = TOKENIZERS[kind](tiny_tokenizer(TEMPLATE), 256, 1000).encode_each(parsed)
    return with_others_of_the_step(found) if kind == "feedback" else found


def with_others_of_the_step(examples: list[Example]) -> list[Example]:
    """TRL's mismatched completion is that of the row before it in its step; ours, of the row before it in the file."""
    found = list(examples)
    for start in range(0, ROWS, BATCH):
        places = ORDER[start : start + BATCH]
        for place, before in zip(places, [places[-1], *places], strict=False):
            own, other = (examples[one].group.completions[0] for one in (place, before))
            found[place] = replace(examples[place], group=PromptGroup(examples[place].prompt, (own, other)))
    return found


def ours(start: Any, algorithm: OfflineAlgorithm, examples: list[Example], scratch: Path) -> list[float]:
    """The loss of each step of the first pass. start: the network, which is changed."""
    model = (value_scorer if algorithm.task is REWARD else scorer)(start)
    engine = ENGINES["none"](model, OptimizerOptions(0.0, 1.0), "fp32", torch.device("cpu"))
    reference = torch.zeros(ROWS, len(examples[0].group.completions))
    if algorithm.needs_reference:
        reference = epoch_reference(engine, SAMPLER, examples, 300)
    rows, recorder = TrainingRows(examples, SAMPLER, reference), Recorder()
    options = LoopOptions(300, ROWS // BATCH, lambda step: RATE, checkpoint_every=10**9, evaluate_every=10**9)
    checkpoints = Checkpoints(Folder(scratch / "run"), term=1, keep=1)
    train(Run(Learner(engine, algorithm), rows, options, checkpoints, RunHooks(recorder)))
    return recorder.losses


@pytest.mark.filterwarnings("ignore")  # TRL's own
@pytest.mark.parametrize(
    ("name", "options", "of_trl"),
    [
        ("sft", {}, {}),
        ("dpo", {}, {}),
        ("dpo", {"labelSmoothing": 0.2, "robust": True}, {"loss_type": ["robust"], "label_smoothing": 0.2}),
        # TRL's sigmoid loss does not read label_smoothing; its aot does, and sorts nothing in a batch of one.
        (
            "dpo",
            {"beta": 0.5, "labelSmoothing": 0.1},
            {"beta": 0.5, "label_smoothing": 0.1, "loss_type": ["aot"]} | ONE_BY_ONE,
        ),
        # Each row's mean over its own tokens (Pang et al. 2024); TRL's is over those of a batch.
        ("dpo", {"rpoAlpha": 0.7}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]} | ONE_BY_ONE),
        ("dpo", {"lengthNormalized": True}, {"loss_type": ["sigmoid_norm"]}),
        # TRL's ipo is always per token; the paper's sum over tokens it has not.
        ("ipo", {"lengthNormalized": True}, {"loss_type": ["ipo"]}),
        ("kto", {"desirableWeight": 0.6}, {"desirable_weight": 0.6}),
        ("orpo", {"oddsWeight": 0.3}, {"beta": 0.3}),
        ("simpo", {}, {"beta": 2.0, "simpo_gamma": 1.0, "loss_type": "simpo", "cpo_alpha": 0.0}),
        ("reward", {}, {}),
        ("reward", {"centerCoef": 0.01}, {"center_rewards_coefficient": 0.01}),
    ],
)
def test_a_short_run_has_the_losses_of_trl(name, options, of_trl, folder, tmp_path):
    algorithm = offline(name, **options)
    rows = [MAKE[algorithm.options.rows](pair, place) for place, pair in enumerate(pairs(ROWS))]
    found = ours(network(folder, name), algorithm, encoded(algorithm, rows), tmp_path)
    in_order = [rows[place] for place in ORDER]
    wanted = trl_runs.losses(
        name, tmp_path, network(folder, name), tiny_tokenizer(TEMPLATE), in_order, BATCH, RATE, **of_trl
    )
    assert found == pytest.approx(wanted, rel=1e-3)
    assert len(set(wanted)) == ROWS // BATCH, "a run that learns nothing would hide a mistake"
