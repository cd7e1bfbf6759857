"""Kubernetes quantities: `500m`, `4`, `16Gi`."""

import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

_UNIT = "(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?"
_PATTERN = rf"^([0-9]+(\.[0-9]+)?){_UNIT}$"
_POSITIVE_PATTERN = rf"^(0*[1-9][0-9]*(\.[0-9]+)?|0+\.0*[1-9][0-9]*){_UNIT}$"
_SCALE: dict[str | None, Decimal] = {None: Decimal(1), "m": Decimal("0.001")}
for _power, _unit in enumerate("kMGTP", 1):
    _SCALE[_unit] = Decimal(1000**_power)
    _SCALE[f"{_unit.upper()}i"] = Decimal(1024**_power)
_ABOVE_ZERO = {
    "rule": "type(self) == int ? self > 0 : isQuantity(self) && quantity(self).isGreaterThan(quantity('0'))",
    "message": "must be above zero; write cores as 4 or 500m, memory as 16Gi",
}


def quantity_value(text: str) -> Decimal:
    """The number that a quantity stands for: cores or bytes. Raises ValueError with the units understood."""
    match = re.fullmatch(_PATTERN, text)
    if match is None:
        raise ValueError(f"`{text}` is not a Kubernetes quantity; write cores as `4` or `500m`, memory as `16Gi`")
    return Decimal(match[1]) * _SCALE[match[3]]


def _check(text: str) -> str:
    if quantity_value(text) <= 0:
        raise ValueError(f"`{text}` {_ABOVE_ZERO['message']}")
    return text


def _from_integer(value: object) -> object:
    # Whole numbers alone, as everywhere in Kubernetes: the apiserver refuses `cpu: 1.5` without quotes.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


_SCHEMA = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}

_Checked = Annotated[str, BeforeValidator(_from_integer), AfterValidator(_check)]
Quantity = Annotated[
    _Checked, WithJsonSchema(_SCHEMA | {"pattern": _PATTERN, "x-kubernetes-validations": [_ABOVE_ZERO]})
]
ListedQuantity = Annotated[_Checked, WithJsonSchema(_SCHEMA | {"minimum": 1, "pattern": _POSITIVE_PATTERN})]
"""One within a list. The apiserver reckons a rule's cost by the longest string that could be there, once for each item,
and refuses a CRD that costs too much; so here the pattern says that it is above zero."""
