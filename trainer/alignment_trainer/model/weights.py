"""A model's weights by slice: of a tensor of the architecture, the numbers that are asked for and no others.

transformers renames tensors while it loads and makes some of several (experts that lie apart become one). Its own rules
say here which tensors of the files make which of the architecture. One that is only renamed is read by slice. Of joined
experts those are read that the slice touches; what is made in any other way is made whole, alone, and cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from math import prod
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from alignment_trainer.model.weight_files import Stored, StoredTensor

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""As safetensors names them -> torch's."""
Sources = Mapping[str, Sequence[str]]
"""Pattern of a rule of transformers -> the tensors in the files that it matched, in their order."""


class Weights(Protocol):
    """Where a model's numbers are read."""

    def read(self, name: str, begin: int, end: int) -> Tensor:
        """Numbers `begin` to `end` of a tensor laid flat, (end - begin,), fp32, on the CPU.

        name: in the model's folder.
        """


def read_slice(tensor: StoredTensor, begin: int, end: int) -> Tensor:
    """Numbers `begin` to `end` of a stored tensor laid flat, in fp32. No other byte of its file is read.

    Raises EOFError where the file ends before them.
    """
    dtype = DTYPES[tensor.dtype]
    numbers = torch.empty(end - begin, dtype=dtype)
    place = tensor.begin + begin * dtype.itemsize
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(place)
        into = memoryview(numbers.view(torch.uint8).numpy())  # type: ignore[arg-type]
        while into:
            count = file.readinto(into)
            if not count:
                raise EOFError(f"{tensor.file} ends within numbers {begin} to {end} of a tensor; copy it again")
            into = into[count:]
    return numbers.float()


@dataclass(frozen=True)
class _Recipe:
    """How one tensor is made. first: the name by which transformers' rule calls all that it makes."""

    first: str
    sources: dict[str, list[str]] = field(default_factory=dict)
    rule: WeightConverter | None = None

    @property
    def joins_rows(self) -> bool:
        """Whether tensor i of every source becomes row i, whatever the other rows are."""
        if self.rule is None or len(self.rule.target_patterns) != 1:
            return False
        first, *rest = self.rule.operations
        return isinstance(first, MergeModulelist) and first.dim == 0 and all(map(_keeps_rows, rest))

    def only(self, begin: int, end: int) -> Sources:
        """Of the sources those that make rows `begin` to `end`."""
        return {pattern: names[begin:end] for pattern, names in self.sources.items()}


class FolderWeights:
    """The weights of a model's folder, by the names of its architecture.

    network: transformers' model of the config, on any device. new: tensors that the files lack and this job makes.
    """

    def __init__(self, network: Any, stored: Stored, new: Mapping[str, Tensor]) -> None:
        self._network, self._stored, self._new = network, stored, new
        self._shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
        self._recipes = _named_as_tied(network, _recipes(network, stored))

    def read(self, name: str, begin: int, end: int) -> Tensor:
        if name in self._new:
            return self._new[name].flatten()[begin:end].float()
        recipe = self._recipes[name]
        if recipe.rule is None:
            return read_slice(self._stored[recipe.first], begin, end)
        width = prod(self._shapes[name][1:]) if recipe.joins_rows else prod(self._shapes[name])
        first, last = begin // width, -(-end // width)
        sources = recipe.only(first, last) if recipe.joins_rows else recipe.sources
        made = _made(self._network, recipe, sources, self._whole)[name].flatten()
        return made[begin - first * width : end - first * width].clone()

    def _whole(self, name: str) -> Tensor:
        tensor = self._stored[name]
        return read_slice(tensor, 0, prod(tensor.shape)).view(tensor.shape)


def fill(
    modules: Sequence[nn.Module],
    names: Mapping[str, str],
    weights: Weights,
    where: Callable[[nn.Parameter], torch.device],
    in_bf16: Iterable[nn.Parameter] = (),
) -> None:
    """Gives every parameter its numbers, one after the other. Tied ones stay one.

    modules: the first has all parameters, others may share them. names: of the first -> in the model's folder.
    where: the device of each. in_bf16: those that are held in bf16; the others are in fp32.
    """
    halves = set(in_bf16)

    def filled(name: str, parameter: nn.Parameter) -> nn.Parameter:
        dtype = torch.bfloat16 if parameter in halves else torch.float32
        numbers = weights.read(names[name], 0, parameter.numel()).view(parameter.shape)
        return nn.Parameter(numbers.to(where(parameter), dtype), parameter.requires_grad)

    replace_parameters(modules, filled)


def replace_parameters(modules: Sequence[nn.Module], made: Callable[[str, nn.Parameter], nn.Parameter]) -> None:
    """Puts what `made` returns of each parameter of the first, and of its name, wherever that parameter stands."""
    places: dict[nn.Parameter, list[tuple[nn.Module, str]]] = {}
    for part in {part: None for module in modules for part in module.modules()}:
        for key, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            places.setdefault(parameter, []).append((part, key))
    for name, parameter in list(modules[0].named_parameters()):
        new = made(name, parameter)
        for part, key in places.pop(parameter):
            part.register_parameter(key, new)


def _recipes(network: Any, stored: Stored) -> dict[str, _Recipe]:
    """Of every tensor of the architecture that the files make."""
    found: dict[str, _Recipe] = {}
    for source, name, rule, pattern in _matches(network, stored):
        recipe = found.setdefault(name, _Recipe(name if rule else source, rule=rule))
        recipe.sources.setdefault(pattern, []).append(source)
    for recipe in [recipe for recipe in found.values() if recipe.rule is not None]:
        empty = _made(network, recipe, recipe.sources, lambda name: torch.empty(stored[name].shape, device="meta"))
        found |= dict.fromkeys(empty, recipe)
    return found


def _matches(network: Any, stored: Stored) -> Iterator[tuple[str, str, WeightConverter | None, str]]:
    """Each tensor of the files that is used: its name, that of what it makes or is part of, the rule, its pattern.

    In transformers' order: rules number what they join by it.
    """
    rules, own = get_model_conversion_mapping(network), network.state_dict()
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    rule_of = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    for source in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(source, renamings, converters, network.base_model_prefix, own)
        if name not in own and source in own:
            name, pattern = rename_source_key(source, [], [], network.base_model_prefix, own)
        if name in own:
            yield source, name, rule_of.get(pattern or ""), pattern or source


def _made(network: Any, recipe: _Recipe, sources: Sources, read: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """What transformers' rule makes of these sources, by name."""
    rule = deepcopy(recipe.rule)
    if rule is None:
        raise ValueError(f"`{recipe.first}` is read as it is, by no rule")
    for pattern, names in sources.items():
        for name in names:
            rule.add_tensor(recipe.first, name, pattern, read(name))  # type: ignore[arg-type]
    made = rule.convert(recipe.first, model=network, config=network.config)
    return {name: tensor[0] if isinstance(tensor, list) else tensor for name, tensor in made.items()}


def _named_as_tied(network: Any, recipes: dict[str, _Recipe]) -> dict[str, _Recipe]:
    """With every name of a tensor that has several, whichever of them the files know."""
    names: dict[int, list[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    tied = {name: recipes[one] for group in names.values() for one in group if one in recipes for name in group}
    return tied | recipes


def _keeps_rows(operation: Any) -> bool:
    """Whether an operation of a rule leaves the first dimension alone, so that rows do not see each other."""
    if isinstance(operation, Concatenate):
        return operation.dim != 0
    if isinstance(operation, Transpose):
        return not operation.check_dims and 0 not in (operation.dim0, operation.dim1)
    return False
