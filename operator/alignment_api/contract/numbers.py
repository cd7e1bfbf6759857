"""Bounded numbers that several fields share. What one tenant writes is counted in a process that all share, so
everything that is counted has an upper bound: far beyond any use, within what the operator plans in a moment."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
"""Of sequences, prompts, tokens, passes."""
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
"""Of an optimizer: more than any model has been trained for."""
Samples = Annotated[int, Field(ge=1, le=1024)]
"""Completions of one prompt: as many as a rollout server takes in one request."""
GangPods = Annotated[int, Field(ge=1, le=4096)]
"""Pods that train together: 32,768 GPUs at eight a pod, planned in a fraction of a second."""
Servers = Annotated[int, Field(ge=0, le=256)]
"""Pods that serve: each is asked for its state, and its name resolved."""
Ranks = Annotated[int, Field(ge=1, le=256)]
"""Processes of one pod: no machine has more GPUs, few have more cores."""
Tolerated = Annotated[int, Field(ge=0, le=1_000_000)]
"""Of what may go wrong."""


LEAST_TOKENS = 64
"""Of a micro-batch; fewer hold no row."""
ALL_LAYERS = 10_000
"""More than any model has."""


def _auto_or_whole(value: object) -> object:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ValueError("is neither `auto` nor a whole number; write one of them, without quotes")


def _within(low: int, high: int) -> tuple[AfterValidator, WithJsonSchema]:
    def check(value: int | str) -> int | str:
        if isinstance(value, int) and not low <= value <= high:
            raise ValueError(f"found `{value}`; write `auto` or a number from {low} to {high}")
        return value

    # The apiserver takes a pattern for a text's and bounds for a number's.
    kinds = {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]}
    return AfterValidator(check), WithJsonSchema(kinds | {"pattern": "^auto$", "minimum": low, "maximum": high})


_AutoOrWhole = Annotated[int | Literal["auto"], BeforeValidator(_auto_or_whole)]
TokensAtOnce = Annotated[_AutoOrWhole, *_within(LEAST_TOKENS, 100_000_000)]
"""Of a micro-batch."""
LayersAgain = Annotated[_AutoOrWhole, *_within(0, ALL_LAYERS)]
"""Layers that are recomputed."""
