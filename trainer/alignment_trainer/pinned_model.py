"""The model before anything costly loads it: is it there, is it whole, what is it."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

from alignment_api.status import ModelReport
from alignment_trainer.data.files import fingerprint
from alignment_trainer.errors import UserError
from alignment_trainer.sources import MODEL_FILES, Resolved


def check_model(source: str, resolved: Resolved) -> ModelReport:
    """Reads config, tokenizer and the headers of the weights; no weight is loaded. Raises UserError."""
    folder = resolved.path
    if not (folder / "config.json").is_file():
        raise _mistake(source, f"{folder} has no config.json; write a Hugging Face folder: config, tokenizer, weights")
    _check_architecture(source, folder)
    return ModelReport(
        parameters=count_parameters(source, folder), fingerprint=model_fingerprint(folder), revision=resolved.revision
    )


def load_tokenizer(source: str, folder: Path) -> Any:
    """The tokenizer of a model's folder. Raises UserError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        raise _mistake(source, f"its tokenizer cannot be loaded: {_first_line(error)}") from error


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over config, tokenizer and weights, by name and content."""
    return fingerprint([path for pattern in MODEL_FILES for path in folder.glob(pattern)], folder)


def count_parameters(source: str, folder: Path) -> int:
    """Parameters, from the headers of the safetensors files. Raises UserError for a file that is missing or cut."""
    expected = _weight_files(source, folder)
    return sum(prod(entry["shape"]) for path in expected for entry in _tensors(source, path).values())


def _weight_files(source: str, folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = [folder / "model.safetensors"]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise _mistake(source, f"{folder} lacks {', '.join(missing)}; weights are read from safetensors alone")
    return files


def _tensors(source: str, path: Path) -> dict[str, dict[str, Any]]:
    """The header: name -> dtype, shape, data_offsets (format: 8 bytes of length, JSON, data)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size:
            raise _mistake(source, f"{path} is not a safetensors file ({size} bytes); copy it again")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise _mistake(source, f"{path} has {size} bytes, its header says {end}: it was cut off; copy it again")
    return header


def _check_architecture(source: str, folder: Path) -> None:
    """Builds the model without memory (device `meta`), so that an unsupported one is refused before a GPU starts."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from alignment_trainer.models import UnsupportedModelError, scorer

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        with torch.device("meta"):
            scorer(AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]
    except UnsupportedModelError as error:
        raise UserError("UnsupportedModel", f"spec.model.source: `{source}`: {error}") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise _mistake(source, f"its config cannot be used: {_first_line(error)}") from error


def _mistake(source: str, found: str) -> UserError:
    return UserError("InvalidModel", f"spec.model.source: `{source}`: {found}")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
