"""What a trainee says of the weights that it has published: `GET /v1/weights`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from alignment_api.contract.base import Contract

WEIGHTS_PATH = "/v1/weights"


class WeightPart(Contract):
    """One safetensors file."""

    name: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]+\.safetensors$")]
    """Its file name."""
    bytes: Annotated[int, Field(ge=1)]
    """Its size."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Its checksum."""
    sources: Annotated[tuple[Annotated[str, Field(pattern=r"^(/[0-9A-Za-z._-]+)+$")], ...], Field(min_length=1)]
    """Paths of it on the server that the manifest came from, in the order to try. No URLs: who fetches them sends the
    job's token along."""


class WeightManifest(Contract):
    """One version of the weights, immutable. A version is newer by attempt first, then by version."""

    attempt: int
    """Of the trainee."""
    version: int
    """Steps that the weights have learnt from; 0 is the base model."""
    parts: tuple[WeightPart, ...]
    """Every tensor is in exactly one."""
    tensors: dict[str, tuple[str, tuple[int, ...]]]
    """Name on the hub -> dtype (`bfloat16`) and shape."""

    @property
    def key(self) -> tuple[int, int]:
        """What versions are compared by."""
        return self.attempt, self.version

    @property
    def name(self) -> str:
        """Of its folder: `2-17`."""
        return f"{self.attempt}-{self.version}"
