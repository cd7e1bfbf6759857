"""FlexAttention, compiled layers and the fused head against eager attention and a CPU."""

import pytest
import torch
from tiny_runs import pairs, tiny_llama, tiny_qwen2
from torch import Tensor
from torch._dynamo.utils import counters

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import PackedBatch, pack
from alignment_trainer.model.attention import FLEX, attention_for
from alignment_trainer.model.compiled import compile_layers
from alignment_trainer.model.heads import PackedModel, scorer
from alignment_trainer.model.logprobs import token_logprobs
from alignment_trainer.model.precision import autocast

pytestmark = pytest.mark.gpu


def packed(count: int, seed: int = 0) -> PackedBatch:
    return pack([pair.group for pair in pairs(count, seed)])


def compared(model: PackedModel, batch: PackedBatch, precision: str = "fp32") -> list[Tensor]:
    """Log-probs, then the gradient of each parameter, on the CPU."""
    device = next(model.parameters()).device
    with autocast(device, precision):
        numbers = model(batch.to(device))
    numbers.sum().backward()
    return [tensor.detach().cpu() for tensor in (numbers, *(p.grad for p in model.parameters()))]


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_flex_attention_gives_the_cpu_s_log_probs_and_gradients(make, cuda):
    assert attention_for(cuda) == FLEX
    (expected, *wanted), (found, *got) = (
        compared(scorer(make()), packed(6)),
        compared(scorer(make()).to(cuda), packed(6)),
    )
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_compiled_layers_give_the_eager_ones_log_probs_and_gradients(make, recompute, cuda):
    eager, fused = scorer(make()).to(cuda), compile_layers(scorer(make(), recompute).to(cuda).train(), cuda)
    (expected, *wanted), (found, *got) = compared(eager, packed(6)), compared(fused, packed(6))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-2)


def test_compiled_layers_are_as_near_to_fp32_in_bf16_as_the_eager_ones(cuda):
    exact = compared(scorer(tiny_llama()).to(cuda), packed(6))
    eager = compared(scorer(tiny_llama()).to(cuda), packed(6), "bf16")
    fused = compared(compile_layers(scorer(tiny_llama()).to(cuda), cuda), packed(6), "bf16")
    for truth, one, other in zip(exact, eager, fused, strict=True):
        assert (other - truth).norm() <= 1.5 * (one - truth).norm() + 1e-3 * truth.norm()


@pytest.mark.parametrize("tokens", [1, 60])
def test_rows_of_few_tokens_are_computed_too(tokens, cuda):
    """torch has a kernel of its own for them, which lacks some shapes: two heads on one of keys and values is one."""
    shape = {"num_attention_heads": 2, "num_key_value_heads": 1}
    batch = pack([PromptGroup((1, 2), ((3, 4), tuple(range(tokens))))])
    with torch.no_grad():
        expected = scorer(tiny_llama(**shape))(batch)
        found = compile_layers(scorer(tiny_llama(**shape)).to(cuda).eval(), cuda)(batch.to(cuda))
    torch.testing.assert_close(found.cpu(), expected, atol=2e-4, rtol=0)


def test_other_shapes_compile_nothing(cuda):
    model = compile_layers(scorer(tiny_llama()).to(cuda).train(), cuda)
    for seed in range(2):
        compared(model, packed(12, seed))
    before = dict(counters["stats"])
    for count in (9, 14, 30):
        compared(model, packed(count, seed=count))
    assert dict(counters["stats"]) == before


def test_a_micro_batch_waits_for_nothing(cuda):
    model = compile_layers(scorer(tiny_llama()).to(cuda).train(), cuda)
    compared(model, packed(12))
    batch = packed(10, seed=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        with autocast(cuda, "fp32"):
            model(batch.to(cuda)).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_fused_op_never_holds_tokens_times_vocabulary_on_the_device(cuda):
    tokens, hidden_size, vocabulary = 16384, 256, 128_000
    hidden = torch.randn(tokens, hidden_size, device=cuda, requires_grad=True)
    weight = torch.randn(vocabulary, hidden_size, device=cuda, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,), device=cuda)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    token_logprobs(hidden, weight, targets).sum().backward()
    peak = torch.cuda.max_memory_allocated() - before
    assert peak < 0.25 * tokens * vocabulary * 4
