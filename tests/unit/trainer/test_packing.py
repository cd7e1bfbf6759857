import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_runs import pairs, tiny_llama, tiny_qwen2
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.packing import pack
from alignment_trainer.engines.scoring import score_sequences, token_values
from alignment_trainer.experience.minibatches import plan_micros
from alignment_trainer.model.block_mask import BLOCK, block_mask
from alignment_trainer.model.heads import scorer
from alignment_trainer.model.mistakes import UnsupportedModelError


def separate_logprobs(causal, groups):
    """Each completion alone behind its prompt, by the model's own forward."""
    out = []
    for group in groups:
        for completion in group.completions:
            logits = causal(torch.tensor([group.prompt + completion])).logits[0]
            before = logits[len(group.prompt) - 1 : -1].log_softmax(-1)
            out.append(before.gather(1, torch.tensor(completion)[:, None]).squeeze(1))
    return torch.cat(out)


def test_a_pair_is_laid_out_prompt_once_and_last_tokens_left_out():
    batch = pack([PromptGroup((5, 6), ((7, 8, 9), (10, 11)))])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.layout == ((2, 2, 1),)
    assert batch.predictors.tolist() == [1, 2, 3, 1, 4]
    assert batch.targets.tolist() == [7, 8, 9, 10, 11]
    assert batch.sequence.tolist() == [0, 0, 0, 1, 1]


def test_rows_follow_one_another_without_padding():
    batch = pack([PromptGroup((1,), ((2,),)), PromptGroup((3, 4), ((5, 6),))])
    assert batch.input_ids.tolist() == [[1, 3, 4, 5]]
    assert batch.position_ids.tolist() == [[0, 0, 1, 2]]
    assert batch.layout == ((1, 0), (2, 1))
    assert batch.predictors.tolist() == [0, 2, 3]


def test_the_block_mask_shows_a_branch_its_prompt_and_itself_and_nothing_else():
    batch = pack([PromptGroup((5, 6), ((7, 8, 9), (10, 11))), PromptGroup((1,), ((2, 3),))])
    rule = block_mask(batch).mask_mod
    place = torch.arange(7)
    assert rule(0, 0, place[:, None], place[None, :]).int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1, 1],
    ]


LENGTHS = st.integers(1, 3) | st.integers(1, 3 * BLOCK)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(LENGTHS, st.lists(LENGTHS, min_size=1, max_size=4)), min_size=1, max_size=4))
def test_the_block_mask_is_the_one_that_torch_finds_from_every_pair_of_tokens(rows):
    batch = pack([PromptGroup((1,) * prompt, tuple((1,) * length for length in lengths)) for prompt, lengths in rows])
    found, tokens = block_mask(batch), batch.input_ids.shape[1]
    oracle = create_block_mask(found.mask_mod, None, None, tokens, tokens, device="cpu")
    for part in ("kv", "full_kv", "q", "full_q"):
        counts, wanted = (getattr(mask, f"{part}_num_blocks") for mask in (found, oracle))
        assert torch.equal(counts, wanted), part
        places, their_places = (getattr(mask, f"{part}_indices") for mask in (found, oracle))
        for block, count in enumerate(counts.flatten().tolist()):
            assert torch.equal(places[0, 0, block, :count], their_places[0, 0, block, :count]), (part, block)
    assert found.shape == oracle.shape


class Largest(TorchDispatchMode):
    """The largest tensor that is made."""

    numbers = 0

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        made = function(*arguments, **(named or {}))
        self.numbers = max([self.numbers, *(leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor))])
        return made


def test_the_block_mask_of_a_long_row_makes_nothing_of_pairs_of_tokens():
    batch = pack([PromptGroup((1,) * 2000, ((1,) * 32_000, (1,) * 32_000))])
    tokens = batch.input_ids.shape[1]
    with Largest() as largest:
        block_mask(batch)
    assert tokens <= largest.numbers <= (tokens / BLOCK + 1) ** 2


def test_rows_that_are_packed_together_do_not_see_each_other():
    groups = [pair.group for pair in pairs(3)]
    alone = torch.cat([scorer(tiny_llama())(pack([group])) for group in groups])
    torch.testing.assert_close(scorer(tiny_llama())(pack(groups)), alone, atol=1e-5, rtol=0)


def test_a_sequence_beyond_the_sliding_window_is_refused():
    causal = tiny_llama()
    causal.config.sliding_window = 8
    scored = scorer(causal)
    assert scored(pack([PromptGroup((1, 2, 3, 4), ((5, 6, 7, 8),) * 3)])).isfinite().all()
    with pytest.raises(UnsupportedModelError, match="attends to 8 tokens at most, found 9"):
        scored(pack([PromptGroup((1, 2, 3, 4, 5), ((5, 6, 7, 8, 9),))]))


@pytest.mark.parametrize("model", [tiny_llama, tiny_qwen2])
def test_packed_logprobs_and_gradients_equal_separate_forward_passes(model):
    groups = [
        *(pair.group for pair in pairs(4)),
        PromptGroup((1, 2), ((3,), (4, 5), (6, 7, 8))),
        PromptGroup((9,), ((10,),)),
    ]
    causal = model().train()
    expected = separate_logprobs(causal, groups)
    expected.sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in causal.named_parameters()}
    causal.zero_grad()
    found = scorer(causal)(pack(groups))
    found.sum().backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    for name, parameter in causal.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layers", [1, 2, 3, 10_000])
def test_recomputed_layers_change_no_gradient(layers):
    batch = pack([pair.group for pair in pairs(3)])
    gradients = []
    for recompute in (0, layers):
        causal = tiny_llama(num_hidden_layers=3)
        scorer(causal, recompute).train()(batch).sum().backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in causal.parameters()]))
    assert torch.equal(*gradients)


def test_sums_per_sequence_keep_chosen_and_rejected_apart():
    batch = pack([PromptGroup((5, 6), ((7, 8, 9), (10, 11))), PromptGroup((1,), ((2,), (3,)))])
    values = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
    assert batch.sum_per_sequence(values).tolist() == [7.0, 24.0, 32.0, 64.0]


@pytest.mark.parametrize(("prompt", "completions"), [((), ((1,),)), ((1,), ()), ((1,), ((2,), ()))])
def test_an_empty_prompt_or_completion_is_refused(prompt, completions):
    with pytest.raises(ValueError, match="at least one token"):
        PromptGroup(prompt, completions)


def test_a_group_that_is_larger_than_a_micro_batch_is_split_behind_its_prompt():
    group = PromptGroup((1, 2), ((3, 4, 5), (6,), (7, 8), (9, 9, 9, 9)))
    assert [row.completions for row in pack.split([group], 5)] == [((3, 4, 5), (6,), (7, 8)), ((9, 9, 9, 9),)]
    assert [row.length for row in pack.split([group], 5)] == [5, 5]
    assert [len(row.completions) for row in pack.split([group, group], 1)] == [1] * 8, "one completion at least"
    assert pack.split([group], group.length) == [group]


def test_no_micro_batch_of_an_update_is_larger_than_the_budget():
    group = PromptGroup(tuple(range(512)), tuple((7,) * 2048 for _ in range(8)))
    shares = plan_micros([group], range(8), ranks=1, micro_tokens=8192)
    rows = [group for micro in shares[0] for group in micro.groups]
    assert [index for micro in shares[0] for index in micro.indices] == list(range(8))
    assert [row.length for row in rows] == [512 + 3 * 2047, 512 + 3 * 2047, 512 + 2 * 2047]


@pytest.mark.parametrize("micro_tokens", [1, 9, 1000])
def test_whatever_is_split_gets_the_same_numbers(micro_tokens):
    causal = tiny_llama()
    groups = [PromptGroup((1, 2, 3), ((4, 5), (6, 7, 8))), PromptGroup((9,), ((10, 11, 12, 13), (14,)))]
    forward = scorer(tiny_llama())
    assert torch.allclose(token_values(forward, groups, micro_tokens), separate_logprobs(causal, groups), atol=1e-5)
    sums = score_sequences(forward, pack, groups, micro_tokens)
    separate = [separate_logprobs(causal, [PromptGroup(g.prompt, (c,))]).sum() for g in groups for c in g.completions]
    assert torch.allclose(sums.flatten(), torch.stack(separate), atol=1e-5)
