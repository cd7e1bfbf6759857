"""Every family that is known to follow packed rows says on a GPU what it says on a CPU, and learns the same."""

from typing import Any

import pytest
import torch
from test_families import GOOD, config_of
from tiny_runs import pairs
from torch import Tensor

from alignment_trainer.data.packing import pack
from alignment_trainer.model.compiled import compile_layers
from alignment_trainer.model.cut import draw
from alignment_trainer.model.folder import causal_network
from alignment_trainer.model.heads import scorer
from alignment_trainer.model.precision import autocast

pytestmark = pytest.mark.gpu
LEAST_HEAD = 16
"""Numbers of a head, of FlexAttention's kernels."""
DEEPSEEK = {"hidden_size": 64, "head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": LEAST_HEAD}
WIDTHS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64},
    "opt": {"hidden_size": 64, "word_embed_proj_dim": 64},
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
}


def of_family(family: str) -> Any:
    """As the CPU's tests make it, with heads as wide as the kernels ask."""
    extra = GOOD[family]
    wide = {"hidden_size": 64} | ({"head_dim": LEAST_HEAD} if "head_dim" in extra else {})
    return draw(causal_network(config_of(family, extra | WIDTHS.get(family, wide))))


def learnt(family: str, device: torch.device, precision: str) -> list[Tensor]:
    """Log-probs of some pairs, then the gradient of each parameter, on the CPU."""
    model = compile_layers(scorer(of_family(family)).to(device), device)
    groups = [group for group in (pair.group for pair in pairs(9)) if group.length <= 64]
    with autocast(device, precision):
        numbers = model(pack(groups).to(device))
    numbers.sum().backward()
    return [tensor.detach().float().cpu() for tensor in (numbers, *(p.grad for p in model.parameters()))]


@pytest.mark.parametrize("family", GOOD)
@pytest.mark.parametrize(("precision", "digits"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_a_good_family_says_and_learns_on_a_gpu_what_it_does_on_a_cpu(family, precision, digits, cuda):
    """digits: the relative difference that is allowed, of the log-probs and of the whole gradient."""
    expected, *wanted = learnt(family, torch.device("cpu"), "fp32")
    found, *got = learnt(family, cuda, precision)
    assert (found - expected).norm() <= digits * expected.norm()
    truth, gradient = (torch.cat([part.flatten() for part in parts]) for parts in (wanted, got))
    assert (gradient - truth).norm() <= 3 * digits * truth.norm()
