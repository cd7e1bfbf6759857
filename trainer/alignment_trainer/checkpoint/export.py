"""The result as a Hugging Face folder that transformers and vLLM load."""

from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from alignment_trainer.checkpoint.output import Output
from alignment_trainer.engines.base import Engine
from alignment_trainer.engines.merging import whole_weights
from alignment_trainer.engines.state import refuse_not_finite
from alignment_trainer.model.adapters import write_adapters
from alignment_trainer.model.description import write_description
from alignment_trainer.model.load import LoadedModel
from alignment_trainer.process import distributed

ADAPTER = "adapter"
"""Folder within the exported model that has what was trained beside it, for peft."""
READABLE = 0o644
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def export_model(model: LoadedModel, engine: Engine, output: Output, precision: str) -> None:
    """Writes weights (safetensors, in the dtype of `precision`), config and tokenizer; collective.

    A language model comes with its generation config, adapters with a folder of their own, in fp32. A model that was
    there before is replaced. Raises UserError, and leaves what is there, where a weight is not finite.
    """
    dtype = DTYPES[precision]
    weights = {name: tensor.to(dtype) for name, tensor in whole_weights(model, engine) if tensor is not None}
    refuse_not_finite(weights)
    trained = dict(engine.full_weights()) if model.adapters is not None else {}
    if distributed.rank() == 0:
        output.replace_model(lambda folder: _write(model, weights, trained, folder, dtype))
    distributed.barrier()


def _write(
    model: LoadedModel, weights: dict[str, Tensor], trained: dict[str, Tensor | None], folder: Path, dtype: torch.dtype
) -> None:
    save_torch_state_dict(_as_they_came(model, weights), folder)
    if model.adapters is not None:
        write_adapters(model.adapters, {name: t for name, t in trained.items() if t is not None}, folder / ADAPTER)
    write_description(model.network, model.noise, model.tokenizer, folder, str(dtype).removeprefix("torch."))
    for path in filter(Path.is_file, folder.rglob("*")):
        path.chmod(READABLE)  # safetensors makes its files for their owner alone, and that is a pod's user


def _as_they_came(model: LoadedModel, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """By the names of the model's files: transformers joins experts while it loads, and vLLM wants them apart."""
    named: dict[str, Tensor] = revert_weight_conversion(model.network, weights)
    return {name: tensor if tensor is weights.get(name) else tensor.clone() for name, tensor in named.items()}
