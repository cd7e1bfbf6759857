"""How many copies of its models a process with several GPUs has, and which GPUs hold each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from alignment_api.derived.decoder import Decoder
from alignment_api.derived.sizing import gpus_of_a_copy
from alignment_trainer.model.inspect import shape_of
from alignment_trainer.model.load import LoadedModel
from alignment_trainer.model.tasks import ModelTask
from alignment_trainer.process.instance import Instance

Copies = tuple[tuple[torch.device, ...], ...]
"""Of each copy the devices that hold it together."""
ON_CPU: Copies = ((torch.device("cpu"),),)


def copies_of(instance: Instance, task: ModelTask, folders: Sequence[Path]) -> Copies:
    """Of all models of these folders, each copy on as few GPUs as have room for it, by the model of memory."""
    gpus = instance.context.gpus
    if gpus <= 1:
        return copies_on(gpus, 1)
    largest = max((_decoder(task.outline(f, instance.spec)) for f in folders), key=lambda model: model.parameters)
    memory = min(torch.cuda.get_device_properties(gpu).total_memory for gpu in range(gpus))
    return copies_on(gpus, gpus_of_a_copy(instance.spec, instance.context.role, largest, gpus, memory))


def copies_on(gpus: int, together: int) -> Copies:
    """together: GPUs that hold a copy, by which they divide evenly. No GPU is the CPU."""
    devices = [torch.device("cuda", gpu) for gpu in range(gpus)]
    return tuple(tuple(devices[first : first + together]) for first in range(0, gpus, together)) or ON_CPU


def _decoder(model: LoadedModel) -> Decoder:
    return Decoder.of(sum(p.numel() for p in model.network.parameters()), shape_of(model.network))
