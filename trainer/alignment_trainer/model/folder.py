"""What transformers makes of a model's folder. Code that a folder brings with it is never run."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment_trainer.model.mistakes import InvalidModelError, UnsupportedModelError
from alignment_trainer.process.errors import describe


def config_of(folder: Path) -> Any:
    """The config as it is written. Raises UnsupportedModelError where it is code, else what transformers raises."""
    from transformers import AutoConfig

    with no_code("config"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def tokenizer_of(folder: Path) -> Any:
    """The tokenizer. Raises UnsupportedModelError where it is code, else what transformers and its library raise."""
    from transformers import AutoTokenizer

    with no_code("tokenizer"):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def causal_network(config: Any) -> Any:
    """A language model of that config, with random weights, on torch's default device."""
    from transformers import AutoModelForCausalLM

    with no_code("architecture"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]


def classifier_network(config: Any) -> Any:
    """The same as a sequence classifier."""
    from transformers import AutoModelForSequenceClassification

    auto: Any = AutoModelForSequenceClassification
    with no_code("architecture"):
        return auto.from_config(config, trust_remote_code=False)


def read_json(file: Path) -> dict[str, Any]:
    """What a JSON file of the folder says. Raises InvalidModelError with the line where it is none."""
    try:
        said = json.loads(file.read_bytes())
    except ValueError as error:
        raise InvalidModelError(f"{file.name} cannot be read: {describe(error)}; copy it again") from error
    if not isinstance(said, dict):
        raise InvalidModelError(f"{file.name} holds no JSON object; copy it again")
    return said


@contextmanager
def no_code(part: str) -> Iterator[None]:
    """Turns transformers' advice to run a folder's code into our refusal. part: of the model, for the message."""
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise UnsupportedModelError(
            f"its {part} is code in its folder (auto_map in its JSON files), and such code is never run; write a model "
            "whose architecture and tokenizer transformers has itself"
        ) from error
