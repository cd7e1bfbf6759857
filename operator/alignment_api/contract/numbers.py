"""Bounded numbers that several fields share. What one tenant writes is counted in a process that all share, so
everything that is counted has an upper bound: far beyond any use, within what the operator plans in a moment."""

from typing import Annotated

from pydantic import Field

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
