"""What vLLM's worker processes need of us: new weights in place, and an end when the role's process is gone.

vLLM imports this module in its workers by name and mixes WeightsExtension into its own worker class.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import Any

from safetensors import safe_open
from torch import Tensor

ROLE_PID = "ALIGNMENT_ROLE_PID"
"""Environment variable: the process of the role, whose end ends vLLM's processes."""


class WeightsExtension:
    """Methods that the role calls in every worker."""

    model_runner: Any

    def apply_weights(self, paths: list[str]) -> None:
        """Loads every tensor of these safetensors files over the model's own, as checkpoints are loaded.

        Raises as vLLM does; the model is then neither the old nor the new one until a later call succeeds.
        """
        self.reload_weights(weights_iterator=_tensors(paths))  # type: ignore[attr-defined]
        self._repack_heads()

    def _repack_heads(self) -> None:
        """A head tied to the embedding gets no weights of its own, so vLLM leaves the copy that CPUs packed of it."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        for module in self.model_runner.get_model().modules():
            if isinstance(module, ParallelLMHead):
                module.quant_method.process_weights_after_loading(module)


def _tensors(paths: list[str]) -> Iterator[tuple[str, Tensor]]:
    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                yield name, file.get_tensor(name)


def _end_with(role: int, parent: int) -> None:
    """Kills this process, and vLLM's engine core where that is its parent, once the role's process is gone.

    vLLM's engine core notices nothing when the process that started it is killed.
    """
    try:
        descriptor = os.pidfd_open(role)
        select.select([descriptor], [], [])
    except ProcessLookupError:
        pass  # it went before we could look
    if parent != role and os.getppid() == parent:
        os.kill(parent, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def _watch_role() -> None:
    # When this module is imported, not when it is called: while a large model is loaded, the role may die.
    watched = int(os.environ[ROLE_PID]), os.getppid()
    threading.Thread(target=_end_with, args=watched, name="role-watch", daemon=True).start()


if ROLE_PID in os.environ:
    _watch_role()
