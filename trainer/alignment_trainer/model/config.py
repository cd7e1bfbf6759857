"""A model's config as it trains: without dropout or other noise, whatever it says; the export gets its own values back.

Losses compare log-probs of the trainee with those of a reference, of sampling time and of a step before. Noise in one
of them moves the first DPO loss off ln 2 and PPO's first ratio off 1, so it is off for every kind of model.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment_trainer.model.folder import config_of

log = logging.getLogger(__name__)

_NOISE = ("dropout", "pdrop", "layerdrop", "drop_path", "jitter_noise")
"""Parts of the names of fields that make a forward pass random in training, over transformers' configs."""
Noise = Mapping[str, float]
"""Field of the config, with dots into its parts -> the value that it came with."""


def read_config(folder: Path) -> tuple[Any, Noise]:
    """The config of a Hugging Face folder with its noise turned off, and what that was."""
    config = config_of(folder)
    return config, turn_off_noise(config)


def turn_off_noise(config: Any) -> Noise:
    """Sets every rate of dropout and the like to 0 and returns those that were not."""
    found: dict[str, float] = {}
    for prefix, part in _parts(config, ""):
        for name, value in list(vars(part).items()):
            if _is_rate(name, value):
                found[prefix + name] = float(value)
                setattr(part, name, type(value)(0))  # configs check the type of what they are given
    return found


def say_noise(noise: Noise, name: str) -> None:
    """Tells the log what was turned off. name: of the model."""
    if noise:
        rates = ", ".join(f"{field} {value:g}" for field, value in sorted(noise.items()))
        log.info("%s: trained without the dropout of its config (%s); the exported config keeps it", name, rates)


def with_noise(config: Mapping[str, Any], noise: Noise) -> dict[str, Any]:
    """The config as a dictionary, with the values that it came with."""
    whole = dict(config)
    for field, value in noise.items():
        *parts, name = field.split(".")
        part = whole
        for step in parts:
            part[step] = dict(part[step])
            part = part[step]
        part[name] = value
    return whole


def _parts(config: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The config and the configs within it, each with the names that lead to it."""
    yield prefix, config
    for name in getattr(config, "sub_configs", {}):
        part = getattr(config, name, None)
        if hasattr(part, "to_dict"):
            yield from _parts(part, f"{prefix}{name}.")


def _is_rate(name: str, value: object) -> bool:
    """A field that is a number above 0 and named as noise is."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and float(value) > 0 and any(part in name for part in _NOISE)  # type: ignore[arg-type]
