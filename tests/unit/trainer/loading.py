"""What a rank reads and holds while it loads its share of a model, by the kernel's own count."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from tests.tiny import tiny_tokenizer
from tiny_runs import pairs
from transformers import LlamaConfig, LlamaForCausalLM

from alignment_api.contract.context import Context
from alignment_api.yaml.manifest import read_manifest
from alignment_trainer.checkpoint.attempt import claim_attempt, find_start, make_checkpoints
from alignment_trainer.checkpoint.run_state import Position
from alignment_trainer.data.packing import pack
from alignment_trainer.engines import ENGINES, Engine, OptimizerOptions
from alignment_trainer.loop.build import Origin, load_trainee
from alignment_trainer.model.load import outline_model
from alignment_trainer.process import distributed
from alignment_trainer.process.instance import Instance
from alignment_trainer.process.interruption import Interruption
from alignment_trainer.process.metrics import Metrics
from alignment_trainer.process.status_board import StatusBoard

CPU = torch.device("cpu")
OPTIONS = OptimizerOptions(weight_decay=1.0, max_grad_norm=1.0)
SHAPE: dict[str, Any] = {
    "vocab_size": 400,
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "bos_token_id": None,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}


def write_model(folder: Path) -> int:
    """In fp32; returns its parameters."""
    torch.manual_seed(0)
    network = LlamaForCausalLM(LlamaConfig(**SHAPE))
    network.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return sum(parameter.numel() for parameter in network.parameters())


def loaded(model: str, small: str, job: str, sharding: str, scratch: str) -> dict[str, Any]:
    """Loads, takes two steps, saves; then another attempt goes on from there, and both take the third step.

    small: a model that warms everything up.
    """
    _engine(Path(small), sharding)
    begun, held = bytes_read(), _resident()
    engine = _engine(Path(model), sharding)
    read, grown = bytes_read() - begun, _resident() - held
    losses = [_step(engine) for _ in range(2)]
    instance = _instance(Path(job), sharding, Path(scratch))
    checkpoints = make_checkpoints(instance, claim_attempt(instance))
    checkpoints.save(engine, Position(step=2))
    checkpoints.settle()
    again, resumed = _resumed(instance, Path(model))
    return {"read": read, "grown": grown, "losses": losses, "third": _step(engine), "again": again, "resumed": resumed}


def _resumed(instance: Instance, model: Path) -> tuple[float, int]:
    """The loss of the first step of another attempt, and the bytes that it took to get there."""
    begun = bytes_read()
    start = find_start(instance, claim_attempt(instance))
    engine = load_trainee(instance.spec, Origin(model), start, CPU).engine
    read = bytes_read() - begun
    return _step(engine), read


def _instance(job: Path, sharding: str, storage: Path) -> Instance:
    """A trainee of the job in a folder (a TinyJob's), with a storage and a sharding of its own."""
    manifest = json.loads((job / "job.yaml").read_text())
    manifest["spec"]["training"] |= {"sharding": sharding, "weightDecay": OPTIONS.weight_decay}
    context = Context.model_validate_json((job / "context.json").read_text())
    return Instance(
        context.model_copy(update={"storage": str(storage)}),
        read_manifest(json.dumps(manifest)),
        StatusBoard(),
        Metrics("tiny", "policy"),
        Interruption(),
    )


def _engine(model: Path, sharding: str) -> Engine:
    outline = outline_model(model)
    return ENGINES[sharding](outline.scorer, OPTIONS, "fp32", CPU, outline.weights)


def _step(engine: Engine) -> float:
    """Every rank computes its part of the same loss."""
    loss = -engine.forward(pack([pair.group for pair in pairs(2)])).mean()
    engine.backward(loss / distributed.world_size())
    engine.step(1e-3)
    return loss.item()


def seventy_billion(folder: str, rank: int, of: int) -> dict[str, int]:
    """One rank of so many, alone: the others are made up, for loading asks nothing of them."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    write_holes(Path(folder))
    outline = outline_model(Path(folder))
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=of)
    begun, held = bytes_read(), _resident()
    engine = ENGINES["fsdp2"](outline.scorer, OptimizerOptions(0.0, 1.0), "bf16", CPU, outline.weights)
    read, grown = bytes_read() - begun, _resident() - held
    parameters = sum(parameter.numel() for parameter in outline.network.parameters())
    dist.destroy_process_group()
    return {"parameters": parameters, "read": read, "grown": grown, "steps": engine.steps}


def write_holes(folder: Path) -> None:
    """Llama 3 70B's folder in bf16, whose weights are one hole: 141 GB that take no room on the disk."""
    config = LlamaConfig(
        vocab_size=128_256,
        hidden_size=8192,
        intermediate_size=28_672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        bos_token_id=None,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    entries, end = {}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * shape.numel()
        entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    header = json.dumps(entries).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)


def bytes_read() -> int:
    """Of files and pipes, since this process began."""
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
