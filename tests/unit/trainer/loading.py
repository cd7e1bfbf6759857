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

from alignment_trainer.checkpoint.checkpoint import write_parts
from alignment_trainer.data.packing import pack, pair_group
from alignment_trainer.engines import ENGINES, Engine, OptimizerOptions
from alignment_trainer.engines.state import SavedState, draft_state
from alignment_trainer.model.load import outline_model
from alignment_trainer.model.weights import Weights
from alignment_trainer.process import distributed

CPU = torch.device("cpu")
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


def loaded(model: str, small: str, sharding: str, scratch: str) -> dict[str, Any]:
    """Loads, takes two steps, saves, loads that, and takes the third. small: a model that warms everything up."""
    _engine(Path(small), sharding)
    begun, held = bytes_read(), _resident()
    engine = _engine(Path(model), sharding)
    read, grown = bytes_read() - begun, _resident() - held
    losses = [_step(engine) for _ in range(2)]
    folder = Path(scratch)
    folder.mkdir(exist_ok=True)
    write_parts(folder, [draft_state(engine)])
    distributed.barrier()
    again, resumed = _resumed(Path(model), sharding, folder)
    return {"read": read, "grown": grown, "losses": losses, "third": _step(engine), "again": again, "resumed": resumed}


def _resumed(model: Path, sharding: str, folder: Path) -> tuple[float, int]:
    """The loss of the step that follows a saved state, and the bytes that it took to get there."""
    begun = bytes_read()
    engine = _engine(model, sharding, SavedState(folder).weights)
    engine.load(folder)
    read = bytes_read() - begun
    return _step(engine), read


def _engine(model: Path, sharding: str, weights: Weights | None = None) -> Engine:
    outline = outline_model(model)
    return ENGINES[sharding](outline.scorer, OptimizerOptions(0.0, 1.0), "fp32", CPU, weights or outline.weights)


def _step(engine: Engine) -> float:
    """Every rank computes its part of the same loss."""
    loss = -engine.forward(pack([pair_group(pair) for pair in pairs(2)])).mean()
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
