"""Pairs of one scored list stay together: in the order of an epoch, and on one prompt that is computed once."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import gradients
import numpy as np
import pytest
import torch
from ranks import run_ranks
from tiny_runs import offline, pairs

from alignment_trainer.data.examples import Example, PromptGroup
from alignment_trainer.data.packing import pack, pack_whole
from alignment_trainer.data.sampler import Groups, Sampler
from alignment_trainer.data.sharing import share_prompts
from alignment_trainer.loop.offline import TrainingRows

PROMPT, A, B, C = (1, 2, 3), (4, 5), (6,), (7, 8, 9)
ALL = 10**6


def groups(*completions: tuple[tuple[int, ...], ...], prompt: tuple[int, ...] = PROMPT) -> list[PromptGroup]:
    return [PromptGroup(prompt, each) for each in completions]


def test_pairs_of_a_row_are_its_prompt_and_each_completion_once() -> None:
    """3 + 1 + 0 + 2 tokens instead of 3 (3 + ...) of three pairs."""
    (shared,) = share_prompts(groups((A, B), (A, C), (B, C)), [5, 5, 5], pack, ALL)
    assert shared.group == PromptGroup(PROMPT, (A, B, C))
    assert (shared.places, shared.columns) == ((0, 1, 2), ((0, 1), (0, 2), (1, 2)))
    assert pack.length(shared.group) == 6


def test_rows_of_others_and_of_other_prompts_stay_alone() -> None:
    made = [*groups((A, B), (A, B)), *groups((A, B), prompt=(1, 2))]
    assert [one.places for one in share_prompts(made, [1, 2, 2], pack, ALL)] == [(0,), (1,), (2,)]


def test_a_group_is_cut_where_it_would_be_too_long_to_compute_at_once() -> None:
    made = groups((A, B), (A, C), (B, C), (C, B))
    assert [one.places for one in share_prompts(made, [5] * 4, pack, 5)] == [(0,), (1,), (2, 3)]
    assert [one.places for one in share_prompts(made, [5] * 4, pack_whole, 8)] == [(0,), (1,), (2, 3)]
    assert [one.places for one in share_prompts(made, [5] * 4, pack, 1)] == [(0,), (1,), (2,), (3,)]


def test_equal_completions_of_which_other_tokens_are_trained_are_two() -> None:
    first, second = PromptGroup(PROMPT, (C,), (((0, 1),),)), PromptGroup(PROMPT, (C,), (((1, 3),),))
    (shared,) = share_prompts([first, second, first], [5] * 3, pack, ALL)
    assert shared.group == PromptGroup(PROMPT, (C, C), (((0, 1),), ((1, 3),)))
    assert shared.columns == ((0,), (1,), (0,))


def test_rows_of_a_group_follow_one_another_in_every_epoch() -> None:
    numbers = np.array([7, 7, 7, 9, 12, 12, 1])
    sampler = Sampler(7, 3, 0, Groups.of(numbers))
    orders = [[row for step in range(3) for row in sampler.batch(epoch * 3 + step)] for epoch in range(20)]
    for order in orders:
        assert sorted(order) == list(range(7))
        assert order[order.index(0) :][:3] == [0, 1, 2]
        assert order[order.index(4) :][:2] == [4, 5]
    assert len(set(map(tuple, orders))) > 10
    assert sampler.seen(2).tolist() == sorted(orders[0][:6])


def test_rows_that_are_each_for_themselves_have_the_order_that_they_had() -> None:
    assert Groups.of(np.array([3, 4, 3])) is None
    assert Sampler(9, 4, 5).batch(1) == tuple(np.random.default_rng((5, 0)).permutation(9)[4:8])


def scored_rows() -> list[Example]:
    """Of three rows: 4 completions and their 6 pairs, 2 and their pair, 3 and theirs, with a weight of their own."""
    found = []
    for row, count in ((1, 4), (2, 2), (3, 3)):
        made = pairs(count, seed=row)
        completions = [one.group.completions[0] for one in made]
        for better, worse in combinations(completions, 2):
            found.append(Example(row, PromptGroup(made[0].prompt, (better, worse)), weight=0.5 * row))
    return found


def step(folder: Path, name: str, rows: list[Example], tokens: int) -> gradients.Step:
    """Over all rows at once."""
    sampler = Sampler(len(rows), len(rows), 3, Groups.of(np.array([row.row for row in rows])))
    return gradients.of_rows(folder, name, TrainingRows(rows, sampler, gradients.reference(len(rows))), tokens)


def told_apart(rows: list[Example]) -> list[Example]:
    """The same rows, none of a group."""
    return [Example(place, row.group, weight=row.weight) for place, row in enumerate(rows)]


@pytest.mark.parametrize("name", ["dpo", "reward", "orpo", "simpo", "ipo"])
def test_a_shared_prompt_changes_neither_loss_nor_gradient_but_what_is_computed(tmp_path: Path, name: str) -> None:
    rows = scored_rows()
    alone = step(tmp_path / "alone", name, told_apart(rows), ALL)
    packing = offline(name).task.pack
    once = sum(
        packing.length(one.group) for one in share_prompts([r.group for r in rows], [r.row for r in rows], packing, ALL)
    )
    for tokens in (1, 150, ALL):
        found = step(tmp_path / f"{tokens}", name, rows, tokens)
        assert found.loss == pytest.approx(alone.loss, rel=1e-6)
        assert gradients.difference(found.gradient, alone.gradient) < 1e-6
        assert found.tokens == {1: alone.tokens, ALL: once}.get(tokens, found.tokens)
    assert once < 0.6 * alone.tokens


def loss_of(folder: str) -> float:
    return step(Path(folder), "dpo", scored_rows(), 150).loss


def test_shared_prompts_are_the_same_over_two_ranks(tmp_path: Path) -> None:
    spread = run_ranks(2, "test_shared_prompts:loss_of", folder=str(tmp_path / "two"))[0]
    assert spread == pytest.approx(loss_of(str(tmp_path / "one")), rel=1e-5)


def test_the_reference_is_asked_for_the_rows_that_steps_see_in_that_order() -> None:
    numbers = np.repeat(np.arange(40), 3)
    sampler = Sampler(120, 8, 1, Groups.of(numbers))
    seen = sorted(row for step in range(4) for row in sampler.batch(step))
    assert sampler.seen(4).tolist() == seen
    assert torch.unique(torch.tensor(seen)).numel() == 32
