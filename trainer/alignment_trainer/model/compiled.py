"""A model's layers, each compiled as one region: norms, rotary embedding and gated units fused around the products.

Attention is in the same graph, so that nothing between two products goes through memory twice. What the backward pass
can make again from what it keeps anyway (a norm, a gate) is not kept. The eager layers are the oracle of the tests.
"""

import torch
from torch._dynamo import config as compiler

from alignment_trainer.model.attention import FLEX, attention_for
from alignment_trainer.model.heads import PackedModel

GRAPHS = 16
"""Of a function on one device: for kinds of layers, and for shapes that torch compiles apart."""


def compile_for(devices: int) -> None:
    """Lets the thread that calls it compile a function for each of so many devices.

    Torch keeps 8 graphs of a function in all, and calls it eagerly where it would need more: attention holds a number
    for each pair of tokens then. It keeps this setting by thread.
    """
    compiler.recompile_limit = GRAPHS * devices


def compile_layers(model: PackedModel, device: torch.device) -> PackedModel:
    """The same model; where `device` takes FlexAttention, its layers are compiled at their first call.

    One graph serves every layer and any number of tokens. For models that one process holds whole: engines that gather
    weights when a layer is called do so in Python, which a graph does not run.
    """
    if attention_for(device) == FLEX:
        kinds = set(model.body._no_split_modules or ())
        for module in model.body.modules():
            if type(module).__name__ in kinds:
                module.compile(dynamic=True)
    return model
