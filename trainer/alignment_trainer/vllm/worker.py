"""New weights in place: vLLM imports this module in its workers, and mixes WeightsExtension into its worker class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safetensors import safe_open
from torch import Tensor


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
