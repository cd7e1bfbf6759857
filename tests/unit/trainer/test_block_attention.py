"""Every family takes FlexAttention with its blocks, which torch computes on a CPU by all pairs of tokens."""

import pytest
import torch
from test_families import GOOD, config_of
from test_frozen_models import GROUPS
from tiny_runs import tiny_llama
from torch import Tensor

from alignment_trainer.data.packing import pack
from alignment_trainer.model.attention import FLEX
from alignment_trainer.model.block_mask import block_mask
from alignment_trainer.model.cut import draw, layers_of
from alignment_trainer.model.folder import causal_network
from alignment_trainer.model.heads import PackedModel, scorer

BATCH = pack(GROUPS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


def by_blocks(model: PackedModel) -> Tensor:
    """The last hidden states, (tokens, hidden size), as a GPU is asked for them."""
    model.body.set_attn_implementation(FLEX)
    asked = {"input_ids": BATCH.input_ids, "position_ids": BATCH.position_ids, "use_cache": False}
    states: Tensor = model.body(**asked, blocks=block_mask(BATCH)).last_hidden_state
    return states[0]


@torch.no_grad()
@pytest.mark.parametrize("family", GOOD)
def test_a_good_family_computes_by_blocks_what_it_computes_piece_by_piece(family: str) -> None:
    model = scorer(draw(causal_network(config_of(family, GOOD[family]))).eval())
    expected = model.states(BATCH)
    with torch.compiler.set_stance("force_eager"):
        found = by_blocks(model)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_layer_and_its_attention_by_blocks_are_one_graph() -> None:
    """Traced as for a GPU, where the graph is compiled, too."""
    model = scorer(tiny_llama().eval())
    expected = model.states(BATCH)
    for layer in layers_of(model.body, model.body.config):
        layer.compile(dynamic=True, fullgraph=True, backend="eager")
    torch.testing.assert_close(by_blocks(model), expected, atol=1e-4, rtol=1e-4)
