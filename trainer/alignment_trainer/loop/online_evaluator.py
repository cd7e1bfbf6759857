"""The evaluator of PPO and GRPO: the model as it came and the exported one, sampled by the same servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from alignment_api.contract.status import Evaluated, EvaluationReport, Progress
from alignment_trainer.checkpoint.export import DTYPES
from alignment_trainer.data.prepared import PreparedPrompts, open_prompts
from alignment_trainer.data.sources import resolve_model
from alignment_trainer.data.storage import storage_of
from alignment_trainer.experience.clients import OnlineClients, PinnedPolicy, make_clients, make_functions
from alignment_trainer.loop.online_evaluation import judge_held_out
from alignment_trainer.model.inspect import load_tokenizer
from alignment_trainer.process.instance import Instance
from alignment_trainer.weights.publisher import WeightPublisher


def evaluate_online(instance: Instance, exported: Path) -> EvaluationReport | None:
    """Held-out figures of both models; None where this process was asked to go.

    The servers get either by the same delivery as in training: version 0 is the model as it came, 1 the exported one.
    """
    prepared = open_prompts(storage_of(instance))
    base = resolve_model(instance.spec.model, instance.context.sources, prepared.manifest.model.revision).path
    with WeightPublisher(instance) as publisher, make_functions(instance) as functions:
        instance.board.update(state="waiting for rollout servers", ready=True)
        tokenizer = load_tokenizer(instance.spec.model.source, base)
        pinned = PinnedPolicy(prepared.manifest.model.fingerprint, base, tokenizer)
        clients = make_clients(instance, publisher, functions, pinned)
        clients.wait_for_servers()
        found: list[Evaluated] = []
        for version, folder in enumerate((base, exported)):
            figures = _evaluate(instance, prepared, clients, publisher, version, folder)
            if figures is None:
                return None
            found.append(figures)
    return EvaluationReport(before=found[0], after=found[1])


def _evaluate(
    instance: Instance,
    prepared: PreparedPrompts,
    clients: OnlineClients,
    publisher: WeightPublisher,
    version: int,
    folder: Path,
) -> Evaluated | None:
    publisher.publish(version, folder_tensors(folder, DTYPES[instance.spec.training.precision]))
    which = ("the model as it came", "the exported model")[version]
    instance.board.update(state=f"sampling from {which}", progress=Progress(step=version, total_steps=2))
    return judge_held_out(prepared.evaluation, clients, version, with_kl=True)


def folder_tensors(folder: Path, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights of a Hugging Face folder, one at a time."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 (not a mapping)
                yield name, file.get_tensor(name).to(dtype)
