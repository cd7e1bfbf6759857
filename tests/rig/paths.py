"""Where the rig keeps things: a cache that outlives clones, and a work folder that outlives nothing."""

from __future__ import annotations

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY_SETS = Path(__file__).resolve().parent / "binaries"
ASSETS = Path(__file__).resolve().parent / "assets"


class RigUnavailable(RuntimeError):
    """This machine cannot run the rig (no root, no Go, ...); the message says what to do about it."""


def cache_folder() -> Path:
    """Binaries and images, shared by every clone of this user; `ALIGNMENT_RIG_CACHE` moves it."""
    chosen = os.environ.get("ALIGNMENT_RIG_CACHE")
    if chosen:
        return Path(chosen).resolve()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "alignment-operator" / "rig"
