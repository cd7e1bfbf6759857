"""Short runs of TRL's own trainers, for tests that compare ours with them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOConfig, CPOTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from alignment_trainer.engines.base import ADAM_BETAS, ADAM_EPSILON

Rows = Sequence[dict[str, Any]]


class CompletionOnlyORPO(ORPOTrainer):
    """Its first term is of the completion alone, a mean over its tokens, as in the paper (Hong et al. 2024, eq. 6).

    TRL takes the mean over the prompt's tokens too, and over all of the batch at once.
    """

    def concatenated_forward(self, model: Any, batch: Any) -> tuple[Any, ...]:
        found = super().concatenated_forward(model, batch)
        return (*found[:4], -found[0].mean(), *found[5:])


TRAINERS: dict[str, tuple[type, type]] = {
    "sft": (SFTTrainer, SFTConfig),
    "dpo": (DPOTrainer, DPOConfig),
    "ipo": (DPOTrainer, DPOConfig),
    "kto": (KTOTrainer, KTOConfig),
    "orpo": (CompletionOnlyORPO, ORPOConfig),
    "simpo": (CPOTrainer, CPOConfig),
    "reward": (RewardTrainer, RewardConfig),
}
"""By the key of the algorithm in our manifest."""


def losses(
    algorithm: str, folder: Path, model: Any, tokenizer: Any, rows: Rows, batch: int, rate: float, **options: Any
) -> list[float]:
    """Of each step of one pass over the rows, as they stand. model: is changed. options: of TRL's config."""
    trainer_class, config = TRAINERS[algorithm]
    given = {"per_device_train_batch_size": batch} | options
    arguments = config(
        output_dir=str(folder),
        num_train_epochs=1,
        learning_rate=rate,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        adam_epsilon=ADAM_EPSILON,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
        max_length=256,
        **given,
    )
    reference = {"ref_model": copy.deepcopy(model)} if algorithm in ("dpo", "ipo", "kto") else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list(list(rows)),
            processing_class=tokenizer,
            **reference,
        )
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
