"""Attention over packed rows: no padding, no branch that sees another, no (tokens x tokens) mask of the whole batch.

Everywhere: scaled dot-product attention piece by piece (`branch_attention`), which transformers calls by name.
On CUDA with FlexAttention: one kernel over the whole batch with a block mask (model/block_mask.py).
"""

import os
import shutil
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward

BRANCHES, FLEX = "alignment_branches", "alignment_blocks"
_FLEX_CAPABILITY = (8, 0)
"""Ampere: the oldest architecture that FlexAttention's kernels are tuned for."""
_KERNEL = {"BACKEND": "TRITON"}
"""Never the kernel for decoding, which torch takes below 128 tokens and for which some shapes have no configuration."""


def attention_for(device: torch.device) -> str:
    """The name of the fastest attention that works on `device`."""
    flex = device.type == "cuda" and torch.cuda.get_device_capability(device) >= _FLEX_CAPABILITY
    return FLEX if flex and has_compiler() else BRANCHES


@lru_cache(maxsize=1)
def has_compiler() -> bool:
    """Whether Triton finds what it compiles the launchers of its kernels with: CC, gcc or clang."""
    return bool(os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    layout: tuple[tuple[int, ...], ...],
    **_: Any,
) -> tuple[Tensor, None]:
    """Prompts attend to themselves; each branch attends to its prompt and itself, causally.

    query, key, value: (1, heads, tokens, head size). layout: of each row the tokens of prompt and branches.
    Returns (1, tokens, heads, head size). The signature is that of transformers' attention functions.
    """
    _check_no_mask(attention_mask)
    groups = query.shape[1] // key.shape[1]
    pieces = [length for row in layout for length in row]
    queries = torch.split(query, pieces, dim=2)
    keys = torch.split(key.repeat_interleave(groups, dim=1), pieces, dim=2)
    values = torch.split(value.repeat_interleave(groups, dim=1), pieces, dim=2)
    options = {"scale": scaling, "dropout_p": dropout if module.training else 0.0}
    out: list[Tensor] = []
    for row in layout:
        prompt = len(out)
        out.append(
            scaled_dot_product_attention(queries[prompt], keys[prompt], values[prompt], is_causal=True, **options)  # type: ignore[arg-type]
        )
        for branch in range(prompt + 1, prompt + len(row)):
            seen = torch.cat([keys[prompt], keys[branch]], dim=2), torch.cat([values[prompt], values[branch]], dim=2)
            mask = _causal_after(row[0], row[branch - prompt], query.device)
            out.append(scaled_dot_product_attention(queries[branch], *seen, attn_mask=mask, **options))  # type: ignore[arg-type]
    return torch.cat(out, dim=2).transpose(1, 2), None


@lru_cache(maxsize=64)
def _causal_after(prompt: int, branch: int, device: torch.device) -> Tensor:
    """(branch, prompt + branch) bool: the whole prompt and the branch's earlier tokens."""
    return torch.ones(branch, prompt + branch, dtype=torch.bool, device=device).tril(prompt)


def block_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    blocks: BlockMask,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """FlexAttention by the blocks of the batch. Shapes and result as in `branch_attention`.

    They come past attention_mask, since some families look at its dimensions.
    """
    _check_no_mask(attention_mask)
    result: tuple[Tensor, Tensor | None] = flex_attention_forward(
        module, query, key, value, blocks, kernel_options=_KERNEL, **options
    )
    return result


def _check_no_mask(attention_mask: Tensor | None) -> None:
    if attention_mask is not None:
        raise ValueError("packed rows carry their own mask, found another one")


AttentionInterface.register(BRANCHES, branch_attention)
AttentionInterface.register(FLEX, block_attention)
