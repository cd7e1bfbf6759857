"""What a trainee's whole model is: its own weights, or those it came with and the adapters that were trained."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from alignment_trainer.engines.base import Engine
from alignment_trainer.model.adapters import merged
from alignment_trainer.model.load import LoadedModel


def whole_weights(model: LoadedModel, engine: Engine) -> Iterator[tuple[str, Tensor | None]]:
    """Every weight in fp32 under its name in the model's folder, to rank 0, None to the others; collective.

    Adapters are merged, one weight after the other, into the numbers of the folder.
    """
    if model.adapters is None:
        yield from engine.full_weights()
        return
    trained = {name: weight for name, weight in engine.full_weights() if weight is not None}
    for name in model.adapters.shapes:
        yield name, merged(model.adapters, model.weights, trained, name) if trained else None
