"""Where a GPU role keeps what it compiled: in its job's storage, so that later roles and attempts compile nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from alignment_api.contract.context import Context

FOLDER = "compiled"
_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Inductor's, which puts Triton's kernels there, too."""


def keep_compiled_code(context: Context) -> None:
    """For roles with GPUs and a folder as storage; the others keep it in their own /tmp.

    Compiled code is loaded unseen, so the folder must be this user's own, no link, and closed to all others.
    """
    if not context.gpus or context.storage is None or _VARIABLE in os.environ:
        return
    if not os.access(context.storage, os.W_OK):
        return
    folder = Path(context.storage) / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    if _is_ours_alone(folder):
        os.environ[_VARIABLE] = str(folder)


def _is_ours_alone(folder: Path) -> bool:
    found = folder.lstat()
    closed = not found.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    return stat.S_ISDIR(found.st_mode) and closed and found.st_uid == os.getuid()
