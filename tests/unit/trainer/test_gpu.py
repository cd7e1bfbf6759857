"""What CPU tests cannot show: FlexAttention, bf16 and the fused op on a CUDA device. `pytest -m gpu`.

Written for a machine with a GPU and not run yet: none was at hand.
"""

import math

import pytest
import torch
from tiny_runs import Setting, pairs, tiny_llama, tiny_qwen2, tiny_run

from alignment_trainer.algorithms.dpo import Dpo
from alignment_trainer.data.packing import pack
from alignment_trainer.engines import ENGINES, OptimizerOptions
from alignment_trainer.model.attention import FLEX, attention_for
from alignment_trainer.model.heads import scorer
from alignment_trainer.model.logprobs import token_logprobs

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    if not torch.cuda.is_available():
        pytest.fail("`-m gpu` asks for a CUDA device, and there is none")
    return torch.device("cuda")


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen2])
def test_flex_attention_gives_the_cpu_s_log_probs_and_gradients(make, cuda):
    assert attention_for(cuda) == FLEX
    batch = pack([Dpo().group(pair) for pair in pairs(6)])
    here, there = scorer(make()), scorer(make()).to(cuda)
    expected, found = here(batch), there(batch.to(cuda))
    torch.testing.assert_close(found.cpu(), expected, atol=2e-4, rtol=0)
    expected.sum().backward()
    found.sum().backward()
    for ours, theirs in zip(there.parameters(), here.parameters(), strict=True):
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cuda_run_starts_at_ln_2_and_learns(precision, tmp_path, cuda):
    setting = Setting(precision=precision, steps=20, rows=8, batch_size=8, checkpoint_every=20)
    engine = ENGINES["none"](scorer(tiny_llama()), OptimizerOptions(0.0, 1.0), precision, cuda)
    run, recorder = tiny_run(tmp_path, setting, engine)
    for batch in run.batches():
        for micro in batch.micros:
            engine.backward(run.loss(micro))
        run.finish(batch)
    assert recorder.losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert recorder.losses[-1] < 0.5


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
