"""Log-probabilities of given tokens without a (tokens x vocabulary) tensor. Imports only torch."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

CHUNK_TOKENS = 512


def token_logprobs(hidden: Tensor, weight: Tensor, targets: Tensor, chunk_tokens: int = CHUNK_TOKENS) -> Tensor:
    """log softmax(hidden @ weight.T)[targets], a chunk of tokens at a time, recomputed in backward.

    At most `chunk_tokens` rows of logits exist at any moment, in forward and in backward. The product runs in the
    autocast dtype where autocast is on, else in the dtype of `hidden`; the softmax is always at least fp32.

    hidden: (tokens, hidden size), the states that predict `targets`.
    weight: (vocabulary, hidden size) of the language-model head; its gradient is summed in its own dtype.
    targets: (tokens,) token ids.
    Returns nats, shape (tokens,), fp32 (fp64 for fp64 inputs).
    """
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    with torch.autocast(device, enabled=False):
        result: Tensor = _TokenLogprobs.apply(hidden, weight, targets, dtype, chunk_tokens)  # type: ignore[no-untyped-call]
    return result


class _TokenLogprobs(torch.autograd.Function):
    """Keeps the inputs alone for backward: logits cost one more product there and no memory in between."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, dtype: torch.dtype, chunk_tokens: int
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, targets)
        ctx.dtype, ctx.chunk_tokens = dtype, chunk_tokens
        head = weight.to(dtype)
        out = hidden.new_empty(len(targets), dtype=_at_least_fp32(dtype))
        for rows in _chunks(len(targets), chunk_tokens):
            logits = _logits(hidden[rows].to(dtype), head)
            picked = logits.gather(1, targets[rows, None]).squeeze(1)
            out[rows] = picked - logits.logsumexp(dim=1)
        return out

    @staticmethod
    def backward(ctx: FunctionCtx, *grad_outputs: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grad_outputs
        hidden, weight, targets = ctx.saved_tensors  # type: ignore[attr-defined]
        dtype, chunk_tokens = ctx.dtype, ctx.chunk_tokens  # type: ignore[attr-defined]
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]  # type: ignore[attr-defined]
        head = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        for rows in _chunks(len(targets), chunk_tokens):
            states = hidden[rows].to(dtype)
            grad_logits = _grad_logits(states, head, targets[rows], grad[rows]).to(dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ head).to(hidden.dtype)
            if grad_weight is not None:
                _add_product(grad_weight, grad_logits.t(), states)
        return grad_hidden, grad_weight, None, None, None


def _grad_logits(states: Tensor, head: Tensor, targets: Tensor, grad: Tensor) -> Tensor:
    """d log p(target) / d logits = onehot(target) - softmax(logits), times the gradient that comes from above."""
    out = _logits(states, head).softmax(dim=1).mul_(-grad[:, None])
    return out.scatter_add_(1, targets[:, None], grad[:, None].to(out.dtype))


def _logits(states: Tensor, head: Tensor) -> Tensor:
    return (states @ head.t()).to(_at_least_fp32(states.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in one pass where the dtypes agree."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)


def _at_least_fp32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _chunks(tokens: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]
