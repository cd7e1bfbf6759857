"""Which weights autocast casts whole at each use: those of products."""

from __future__ import annotations

from torch import nn

from alignment_trainer.model.heads import LogprobHead


def trained_products(module: nn.Module) -> list[nn.Parameter]:
    """Parameters of linear layers and of no other module, as far as they are trained. Experts are none: their products
    are grouped, which autocast leaves in fp32."""
    return [parameter for parameter in _of_alone(module, (nn.Linear,)) if parameter.requires_grad]


def untrained_products(module: nn.Module) -> list[nn.Parameter]:
    """Of a trainee with adapters what it holds as a frozen model does."""
    return [parameter for parameter in frozen_products(module) if not parameter.requires_grad]


def frozen_products(module: nn.Module) -> list[nn.Parameter]:
    """Of linear layers and of a language model's head that is no embedding too: a trainee sums that one's gradient in
    fp32."""
    return _of_alone(module, (nn.Linear, LogprobHead))


def _of_alone(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> list[nn.Parameter]:
    owned = [(isinstance(part, kinds), p) for part in module.modules() for p in part.parameters(recurse=False)]
    others = {parameter for of_kinds, parameter in owned if not of_kinds}
    return [parameter for of_kinds, parameter in owned if of_kinds and parameter not in others]
