"""The model before anything costly loads it: is it there, is it whole, what is it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from alignment_api.inputs import Model
from alignment_api.status import ModelReport
from alignment_trainer.data.files import fingerprint
from alignment_trainer.data.sources import MODEL_FILES, Resolved
from alignment_trainer.process.errors import UserError

Check = Callable[[Any], object]
"""Makes what is trained or asked of a config's model, without memory. Raises UnsupportedModelError or UserError."""


@dataclass(frozen=True)
class Named:
    """A model as the manifest names it. field: where: `spec.model`."""

    model: Model
    field: str

    def mistake(self, found: str, reason: str = "InvalidModel") -> UserError:
        """The model is not what it should be."""
        return UserError(reason, f"{self.field}.source: `{self.model.source}`: {found}")


@dataclass(frozen=True)
class Pinned:
    """A model that was found and is what it should be."""

    named: Named
    resolved: Resolved
    report: ModelReport


def check_model(named: Named, resolved: Resolved, checks: Sequence[Check]) -> ModelReport:
    """Reads config, tokenizer and the headers of the weights; no weight is loaded. Raises UserError."""
    folder = resolved.path
    if not (folder / "config.json").is_file():
        raise named.mistake(f"{folder} has no config.json; write a Hugging Face folder: config, tokenizer, weights")
    _check_architecture(named, folder, checks)
    return ModelReport(
        parameters=count_parameters(named, folder), fingerprint=model_fingerprint(folder), revision=resolved.revision
    )


def language_model(config: Any) -> object:
    """As a language model: the policy."""
    from transformers import AutoModelForCausalLM

    from alignment_trainer.model.heads import scorer

    return scorer(AutoModelForCausalLM.from_config(config))  # type: ignore[no-untyped-call]


def value_model(config: Any) -> object:
    """As a base of critics and reward models, which get a head of one label where they have none."""
    from transformers import AutoModelForSequenceClassification

    from alignment_trainer.model.heads import value_scorer

    config.num_labels = 1
    return value_scorer(AutoModelForSequenceClassification.from_config(config))  # type: ignore[no-untyped-call]


def reward_model(config: Any) -> object:
    """As a reward model that exists: its head has been trained, for one label."""
    from alignment_trainer.model.heads import UnsupportedModelError

    architecture = (config.architectures or ["none"])[0]
    if not architecture.endswith("ForSequenceClassification"):
        raise UnsupportedModelError(
            f"it is a {architecture}, which scores nothing; write a sequence classifier with one label, or `train` to "
            "make one of it"
        )
    if config.num_labels != 1:
        raise UnsupportedModelError(
            f"it has {config.num_labels} labels, a reward is one number; write a sequence classifier with one label "
            "(num_labels: 1)"
        )
    return value_model(config)


def check_same_tokenizer(named: Named, tokenizer: Any, policy: Any) -> None:
    """Raises UserError where a model would read the policy's token ids as other texts."""
    theirs, ours = tokenizer.get_vocab(), policy.get_vocab()
    differing = sorted(token for token in theirs.keys() | ours.keys() if theirs.get(token) != ours.get(token))
    special = {
        name: (getattr(tokenizer, name), getattr(policy, name))
        for name in ("bos_token", "eos_token")
        if getattr(tokenizer, name) != getattr(policy, name)
    }
    found = [f"{len(differing)} tokens differ, for example `{differing[0]}`"] if differing else []
    found += [f"its {name} is `{its}`, the policy's `{own}`" for name, (its, own) in special.items()]
    if found:
        raise named.mistake(
            f"its tokenizer is not the policy's: {'; '.join(found)}. Rewards are asked by the policy's token ids: "
            "write a model of the same family as spec.model",
            "TokenizerMismatch",
        )


def load_tokenizer(source: str, folder: Path, field: str = "spec.model") -> Any:
    """The tokenizer of a model's folder. Raises UserError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, ImportError) as error:
        found = f"its tokenizer cannot be loaded: {_first_line(error)}"
        raise Named(Model(source=source), field).mistake(found) from error


def model_fingerprint(folder: Path) -> str:
    """SHA-256 over config, tokenizer and weights, by name and content."""
    return fingerprint([path for pattern in MODEL_FILES for path in folder.glob(pattern)], folder)


def count_parameters(named: Named, folder: Path) -> int:
    """Parameters, from the headers of the safetensors files. Raises UserError for a file that is missing or cut."""
    expected = _weight_files(named, folder)
    return sum(prod(entry["shape"]) for path in expected for entry in _tensors(named, path).values())


def _weight_files(named: Named, folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files = [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    else:
        files = [folder / "model.safetensors"]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise named.mistake(f"{folder} lacks {', '.join(missing)}; weights are read from safetensors alone")
    return files


def _tensors(named: Named, path: Path) -> dict[str, dict[str, Any]]:
    """The header: name -> dtype, shape, data_offsets (format: 8 bytes of length, JSON, data)."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size:
            raise named.mistake(f"{path} is not a safetensors file ({size} bytes); copy it again")
        header: dict[str, dict[str, Any]] = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end != size:
        raise named.mistake(f"{path} has {size} bytes, its header says {end}: it was cut off; copy it again")
    return header


def _check_architecture(named: Named, folder: Path, checks: Sequence[Check]) -> None:
    """Builds the model without memory (device `meta`), so that an unsupported one is refused before a GPU starts."""
    import torch
    from transformers import AutoConfig

    from alignment_trainer.model.heads import UnsupportedModelError

    try:
        for check in checks:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):
                check(config)
    except UnsupportedModelError as error:
        raise named.mistake(str(error), "UnsupportedModel") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise named.mistake(f"its config cannot be used: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
