"""One copy of a frozen model over several devices of one process: each holds a run of its layers.

A micro-batch passes from device to device; weights never do. Each device computes one at a time, so that as many are on
their way as there are devices, each with the activations of one layer. What passes on comes from the device before:
torch lets a stream that is copied from wait for the one that is copied to, and no device may wait for a far one.

Layers are not compiled, as a graph cannot wait for its turn. Run on CPUs, and without numbers on devices that torch
imagines (tests/unit/trainer/test_spread.py); on several GPUs not yet.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._pytree import tree_map

from alignment_api.derived.even_runs import even_runs
from alignment_trainer.data.packing import PackedBatch
from alignment_trainer.model.block_mask import mask_on
from alignment_trainer.model.cut import layers_of
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.load import LoadedModel, products_of
from alignment_trainer.model.weights import fill
from alignment_trainer.process.turns import Turns


class SpreadModel:
    """Safe to call from several threads.

    places: of each module that holds weights or buffers of its own, and of each layer: its device's place.
    """

    def __init__(self, scorer: PackedModel, places: Mapping[nn.Module, int], devices: Sequence[torch.device]) -> None:
        self._scorer, self._devices, self.places = scorer.eval(), devices, places
        self._turns, self._here = Turns(len(devices)), threading.local()
        for module, place in places.items():
            module.register_forward_pre_hook(partial(self._enter, place), with_kwargs=True)

    def __call__(self, packed: PackedBatch) -> Tensor:
        """As of `PackedModel`, on the last device."""
        self._here.carried = {}
        try:
            hidden = self._scorer.states(packed.to(self._devices[0]))
            return self._scorer.predict(hidden, packed.to(hidden.device))
        finally:
            self._turns.leave()
            self._here.carried = {}

    def _enter(self, place: int, _module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        device = self._devices[place]
        with self._turns.entering(place):
            return _mapped(partial(_moved, device=device), args), _mapped(partial(self._carry, device=device), kwargs)

    def _carry(self, value: Any, device: torch.device) -> Any:
        """The value there. Every layer is given the same ones: they pass on once, from the device before."""
        if not isinstance(value, Tensor | BlockMask):
            return value
        _, latest = self._here.carried.get(id(value), (value, value))
        moved = _moved(latest, device)
        self._here.carried[id(value)] = value, moved
        return moved


def spread(model: LoadedModel, precision: str, devices: Sequence[torch.device]) -> SpreadModel:
    """What `frozen` makes, over several devices, so that the fullest holds as little as whole layers allow.

    What is no layer is on the first device, the last norm and the head on the last. A head that is the embedding is
    there a second time.
    """
    scorer = model.scorer
    _untie(scorer)
    halves = set(products_of(scorer, precision))
    units = list(_units(scorer))
    runs = even_runs([sum(_bytes(module, halves) for module in unit) for unit in units], len(devices))
    parts = [units[run.start : run.stop] for run in runs]
    places = {module: place for place, part in enumerate(parts) for unit in part for module in unit}
    where = {parameter: devices[place] for module, place in places.items() for parameter in module.parameters()}
    fill((scorer,), scorer.hub_names, model.weights, where.__getitem__, halves)
    for module, place in places.items():
        _move_buffers(module, devices[place])
    return SpreadModel(scorer, places, devices)


def _units(scorer: PackedModel) -> Iterator[list[nn.Module]]:
    """What lies on one device, in the order of computation: what is before the layers, each layer, what is after them.

    Of the body's own modules those are after them whose weights are vectors: a norm.
    """
    layers = list(layers_of(scorer.body, scorer.body.config))
    inside = {module for layer in layers for module in layer.modules()}
    others = [module for module in scorer.body.modules() if module not in inside and _has_own(module)]
    norms = [module for module in others if {p.dim() for p in module.parameters(recurse=False)} == {1}]
    yield [module for module in others if module not in norms]
    yield from ([layer] for layer in layers)
    yield [*norms, scorer.head]


def _move_buffers(module: nn.Module, device: torch.device) -> None:
    for part in module.modules():
        for key, buffer in part.named_buffers(recurse=False):
            part._buffers[key] = buffer.to(device)


def _has_own(module: nn.Module) -> bool:
    return any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))


def _bytes(module: nn.Module, halves: set[nn.Parameter]) -> int:
    dtypes = ((p, torch.bfloat16 if p in halves else torch.float32) for p in module.parameters())
    return sum(parameter.numel() * dtype.itemsize for parameter, dtype in dtypes)


def _untie(scorer: PackedModel) -> None:
    """Gives the head a weight of its own, read from the same tensor of the files."""
    weight = scorer.head.weight
    shared = next((name for name, p in scorer.body.named_parameters(prefix="body") if p is weight), None)
    if shared is not None:
        scorer.head.weight = nn.Parameter(torch.empty_like(weight))
        scorer.hub_names["head.weight"] = scorer.hub_names[shared]


def _mapped(move: Any, tree: Any) -> Any:
    return tree_map(move, tree, is_leaf=lambda value: isinstance(value, BlockMask))


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, BlockMask):
        return mask_on(value, device)
    return value.to(device) if isinstance(value, Tensor) else value
