"""Adapters in every family that can be trained: each is reached, and merged it says what it says beside the base."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted_runs import CPU, outline, write_folder
from test_families import GOOD, config_of
from tiny_runs import Setting, pairs

from alignment_trainer.data.examples import Example
from alignment_trainer.data.packing import pack
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.engines.merging import whole_weights
from alignment_trainer.model.cut import draw
from alignment_trainer.model.folder import causal_network
from alignment_trainer.model.heads import scorer
from alignment_trainer.model.mistakes import UnsupportedModelError

EXPERTS = ("mixtral", "qwen3_moe", "qwen2_moe", "deepseek_v2", "deepseek_v3")
REFUSED = {"gpt2": "has no linear layer in its layers", **dict.fromkeys(EXPERTS, "which is no matrix (experts,")}


WINDOW = 64
"""Tokens that some families attend to here."""


def longest_of(pair: Example) -> int:
    """Tokens of the longer sequence."""
    return len(pair.prompt) + max(map(len, pair.group.completions))


def of_family(folder: Path, family: str) -> tuple[Any, Path]:
    """A random network and its folder."""
    network = draw(causal_network(config_of(family, GOOD[family])))
    return network, write_folder(folder, copy.deepcopy(network))


@pytest.mark.parametrize("family", sorted(GOOD.keys() - REFUSED.keys()))
def test_every_adapter_learns_and_merges_into_what_it_says_beside_its_base(family, tmp_path):
    network, base = of_family(tmp_path, family)
    model = outline(base, Setting())
    engine = ENGINES["none"](model.scorer, OptimizerOptions(0.0, 1.0), "fp32", CPU, model.weights)
    matrices = {name: p for name, p in model.scorer.named_parameters() if p.requires_grad}
    torch.manual_seed(1)
    for name, matrix in matrices.items():
        if "lora_B" in name:
            matrix.data.normal_(0, 0.1)
    packed = pack([pair.group for pair in pairs(20) if longest_of(pair) <= WINDOW][:2])
    beside = engine.forward(packed)
    beside.sum().backward()
    assert [name for name, matrix in matrices.items() if matrix.grad is None or not matrix.grad.any()] == []
    before = scorer(network)(packed)
    network.load_state_dict(dict(whole_weights(model, engine)), strict=False)
    merged = scorer(network)(packed)
    assert (merged - beside).abs().max() < 2e-4
    assert (merged - before).abs().max() > 0.1


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_without_such_layers_is_refused_by_name(family, tmp_path):
    _, base = of_family(tmp_path, family)
    with pytest.raises(UnsupportedModelError) as error:
        outline(base, Setting())
    assert REFUSED[family] in str(error.value)
