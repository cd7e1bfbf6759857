"""What `POST /v1/completions` of a rollout server carries: JSON in, JSON out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alignment_trainer.process.errors import WireError

COMPLETIONS_PATH = "/v1/completions"
EXAMPLE = (
    '{"versions": [16, 17], "prompt": [1, 2], "n": 4, "seed": 7, "max_tokens": 64, "temperature": 1.0, '
    '"stop_token_ids": [2]}'
)
TokenId = Annotated[int, Field(ge=0)]
MAX_REQUEST_BYTES = 4 * 2**20
"""One prompt of half a million tokens."""
MAX_STOPS = 256
"""Ids at which a completion ends; families have one to five."""


class CompletionsRequest(BaseModel):
    """Completions of one prompt, by weights whose version is within `versions`, oldest and newest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    versions: tuple[int, int]
    prompt: Annotated[tuple[TokenId, ...], Field(min_length=1)]
    n: Annotated[int, Field(ge=1, le=1024)]
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    stop_token_ids: Annotated[tuple[TokenId, ...], Field(max_length=MAX_STOPS)]


@dataclass(frozen=True)
class Completion:
    """logprobs: nats, of each token, by logits divided by the temperature. finished: a stop token ended it."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    finished: bool


def parse_request(body: bytes, vocabulary: int, max_length: int) -> CompletionsRequest:
    """Raises WireError that says what was found and what belongs there."""
    try:
        asked = CompletionsRequest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "body"
        raise WireError(f"`{field}`: {first['msg']}; send for example {EXAMPLE}") from error
    if max(asked.prompt) >= vocabulary:
        raise WireError(f"`prompt` holds ids outside 0..{vocabulary - 1}; tokenize with this model's tokenizer")
    if len(asked.prompt) >= max_length:
        raise WireError(
            f"`prompt` has {len(asked.prompt)} tokens, which leaves none of {max_length} (training.maxLength) to sample"
        )
    return asked


def encode_completions(version: int, completions: tuple[Completion, ...]) -> bytes:
    """The answer: who sampled, and what."""
    entries = [{"tokens": c.tokens, "logprobs": c.logprobs, "finished": c.finished} for c in completions]
    return json.dumps({"version": version, "completions": entries}).encode()
