import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from alignment_trainer.model.logprobs import token_logprobs

TOKENS, HIDDEN, VOCABULARY = 23, 8, 301


class LargestTensor(TorchDispatchMode):
    """The most elements that any tensor made under it had."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, list | tuple) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def inputs(dtype: torch.dtype = torch.float32, vocabulary: int = VOCABULARY):
    torch.manual_seed(0)
    hidden = torch.randn(TOKENS, HIDDEN, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, HIDDEN, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocabulary, (TOKENS,))


def naive(hidden, weight, targets):
    logits = torch.nn.functional.linear(hidden, weight)
    return logits.float().log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def with_gradients(op, hidden, weight, targets):
    out = op(hidden, weight, targets)
    upstream = torch.linspace(-1, 2, TOKENS)
    return out, *torch.autograd.grad((out * upstream).sum(), [hidden, weight])


@pytest.mark.parametrize("chunk", [1, 7, 23, 512])
def test_equals_the_naive_op_whatever_the_chunk(chunk):
    expected = with_gradients(naive, *inputs())
    found = with_gradients(lambda *args: token_logprobs(*args, chunk_tokens=chunk), *inputs())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=2e-6, rtol=1e-5)


def test_gradients_pass_gradcheck_in_double():
    hidden, weight, targets = inputs(torch.float64, vocabulary=11)
    assert torch.autograd.gradcheck(lambda h, w: token_logprobs(h, w, targets, 5), (hidden, weight))


def test_under_bf16_autocast_it_equals_the_naive_op_under_bf16_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = with_gradients(naive, *inputs())
        found = with_gradients(lambda *args: token_logprobs(*args, chunk_tokens=23), *inputs())
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
    for a, b in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)
        assert a.dtype == torch.float32


def test_no_tensor_of_tokens_by_vocabulary_is_ever_made():
    hidden, weight, targets = inputs()
    with LargestTensor() as fused:
        token_logprobs(hidden, weight, targets, chunk_tokens=4).sum().backward()
    with LargestTensor() as whole:
        naive(*inputs()).sum().backward()
    assert fused.elements == VOCABULARY * HIDDEN  # the weight's gradient; 4 rows of logits are fewer
    assert whole.elements == VOCABULARY * TOKENS


def test_a_frozen_weight_gets_no_gradient_and_the_states_still_do():
    hidden, weight, targets = inputs()
    token_logprobs(hidden, weight.requires_grad_(False), targets).sum().backward()
    assert weight.grad is None
    assert hidden.grad.abs().sum() > 0
