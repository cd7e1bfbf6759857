"""Which rows are held out: by prompt, so that no prompt is on both sides."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from alignment_trainer.data.examples import TokenIds

PROMPT_KEY = np.dtype("S16")
PromptKeys = NDArray[np.bytes_]
Mask = NDArray[np.bool_]


def prompt_key(prompt: TokenIds, seed: int) -> bytes:
    """What a prompt is known by, and its place in a seeded order: 16 bytes of a hash."""
    return hashlib.sha256(f"{seed}:{prompt}".encode()).digest()[: PROMPT_KEY.itemsize]


def held_out(keys: PromptKeys, fraction: float, least: int = 1) -> Mask:
    """Which rows are, (rows,): those of `fraction` of the distinct prompts, the ones with the lowest keys.

    At least one prompt, and as many more as it takes for `least` rows. Independent of the order of rows.
    keys: (rows,) of each row's prompt.
    """
    distinct, number, rows = np.unique(keys, return_inverse=True, return_counts=True)
    count = max(1, round(fraction * len(distinct)))
    enough = int(np.searchsorted(np.cumsum(rows), least)) + 1
    return number < max(count, enough)
