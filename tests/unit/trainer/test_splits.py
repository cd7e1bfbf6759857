"""Which rows are held out: by prompt, whatever their order."""

import numpy as np

from alignment_trainer.data.splits import PROMPT_KEY, PromptKeys, held_out, prompt_key


def keys(prompts: list[int], seed: int = 0) -> PromptKeys:
    """Of a row for each prompt of one token."""
    return np.array([prompt_key((prompt,), seed) for prompt in prompts], PROMPT_KEY)


def test_every_pair_of_a_prompt_is_on_the_same_side_whatever_the_order() -> None:
    prompts = [*range(50), *range(50)]
    out = held_out(keys(prompts), 0.1).tolist()
    assert (sum(out), out[:50]) == (10, out[50:])
    assert held_out(keys(prompts[::-1]), 0.1).tolist() == out[::-1]
    assert held_out(keys(prompts, seed=1), 0.1).tolist() != out


def test_a_small_share_of_few_prompts_still_holds_one_out() -> None:
    assert held_out(keys(list(range(4))), 0.02).sum() == 1


def test_a_share_grows_until_it_holds_enough_rows() -> None:
    """20 prompts of 5 rows each: 2% is one prompt, and 11 rows take three."""
    some = keys([prompt for prompt in range(20) for _ in range(5)])
    found = {least: held_out(some, 0.02, least) for least in (1, 5, 6, 11, 1000)}
    assert {least: int(out.sum()) for least, out in found.items()} == {1: 5, 5: 5, 6: 10, 11: 15, 1000: 100}
    assert (found[11] & found[1] == found[1]).all()
