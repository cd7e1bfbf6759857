"""A trainee that does nothing but publish weights, for tests of those that take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from roles import TinyJob
from torch import Tensor

from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.model.load import LoadedModel
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard
from alignment_trainer.process.status_server import StatusServer
from alignment_trainer.weights.publisher import WeightPublisher


@contextmanager
def trainee(job: TinyJob, attempt: int) -> Iterator[WeightPublisher]:
    """Serves at the port of the job's actor."""
    context = job.context("actor", life=attempt)
    board, metrics = StatusBoard(), Metrics("tiny", "actor")
    with StatusServer((context.host, context.port), "secret", board, metrics.registry) as server:
        manifest = read_manifest((job.folder / "job.yaml").read_text(), "job.yaml")
        with WeightPublisher(Instance(context, manifest, board, metrics, Interruption(), server)) as publisher:
            yield publisher


def move(model: LoadedModel, seed: int) -> None:
    """Changes every weight a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


def weights_of(model: LoadedModel) -> Mapping[str, Tensor]:
    """By their names on the hub, as engines name them."""
    return {model.scorer.hub_names[name]: parameter.detach() for name, parameter in model.scorer.named_parameters()}
