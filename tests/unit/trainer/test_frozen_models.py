"""What serves holds its weights in what they are computed in, and says what it said before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_families import GOOD, config_of
from tests.tiny import tiny_tokenizer
from tiny_runs import pairs

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import Packing, pack, pack_whole
from alignment_trainer.model.cut import draw
from alignment_trainer.model.folder import causal_network
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.load import filled, frozen, outline_model, outline_value_model
from alignment_trainer.model.precision import autocast

CPU = torch.device("cpu")


def short(group: PromptGroup) -> bool:
    """Within the windows of the families that have one."""
    return len(group.prompt) + max(map(len, group.completions)) <= 64


GROUPS = [group for group in (pair.group for pair in pairs(9)) if short(group)]


def folder_of(family: str, folder: Path, **extra: int) -> Path:
    draw(causal_network(config_of(family, GOOD[family] | extra))).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def scores(model: PackedModel, packing: Packing = pack) -> torch.Tensor:
    with torch.no_grad(), autocast(CPU, "bf16"):
        numbers: torch.Tensor = model(packing(GROUPS))
    return numbers


def held(model: PackedModel) -> dict[torch.dtype, int]:
    """Parameters by dtype."""
    counts = dict.fromkeys((torch.bfloat16, torch.float32), 0)
    for parameter in model.parameters():
        counts[parameter.dtype] += parameter.numel()
    return counts


@pytest.mark.parametrize("family", GOOD)
def test_a_frozen_model_held_in_bf16_says_to_the_bit_what_fp32_weights_say_under_autocast(
    family: str, tmp_path: Path
) -> None:
    folder = folder_of(family, tmp_path)
    assert torch.equal(scores(frozen(outline_model(folder), "bf16", CPU)), scores(filled(outline_model(folder)).scorer))


def test_a_frozen_reward_model_held_in_bf16_scores_to_the_bit_what_fp32_weights_score(tmp_path: Path) -> None:
    """Its head is in fp32 whatever the precision."""
    folder = folder_of("llama", tmp_path)
    mine, whole = frozen(outline_value_model(folder), "bf16", CPU), filled(outline_value_model(folder)).scorer
    assert mine.head.weight.dtype == torch.float32
    assert torch.equal(scores(mine, pack_whole), scores(whole, pack_whole))


@pytest.mark.parametrize("tied", [True, False])
def test_all_but_embeddings_and_norms_of_a_frozen_model_is_held_in_bf16(tied: bool, tmp_path: Path) -> None:
    folder = folder_of("llama", tmp_path, tie_word_embeddings=tied)
    model = frozen(outline_model(folder), "bf16", CPU)
    config, counts = model.body.config, held(model)
    norms = (2 * config.num_hidden_layers + 1) * config.hidden_size
    assert counts[torch.float32] == config.vocab_size * config.hidden_size + norms
    assert counts[torch.bfloat16] == sum(p.numel() for p in model.parameters()) - counts[torch.float32]
    assert held(frozen(outline_model(folder), "fp32", CPU))[torch.bfloat16] == 0
