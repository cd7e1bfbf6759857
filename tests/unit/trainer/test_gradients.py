"""The same gradient, however a step is cut, packed, spread and recomputed. In fp32; for bf16 see docs/benchmarks.md."""

from __future__ import annotations

import gradients
import pytest
from tiny_runs import Setting

pytest.importorskip("deepspeed")
TOLERANCE = 1e-6
"""Relative, in L2 over the whole gradient: a few roundings of fp32, which sums in another order."""
CASES = [name for ranks in gradients.ENGINES for name in gradients.case_names(ranks)]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, gradients.Gradient]:
    return gradients.compute_all(tmp_path_factory.mktemp("gradients"))


def plain(name: str) -> str:
    """All rows at once in plain torch."""
    algorithm, rows, _, _ = name.split(", ")
    return f"{algorithm}, {rows}, none on 1, {gradients.ALL} tokens"


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_the_same(name, found):
    assert gradients.difference(found[name], found[plain(name)]) < TOLERANCE


@pytest.mark.parametrize("algorithm", gradients.ALGORITHMS)
def test_a_shared_prompt_has_the_gradient_of_one_for_each_completion(algorithm, found):
    name = plain(f"{algorithm}, 5 rows, , ")
    setting = Setting(algorithm=algorithm, rows=5, max_grad_norm=gradients.UNCLIPPED, weight_decay=0.0)
    assert gradients.difference(found[name], gradients.unshared(setting)) < TOLERANCE


@pytest.mark.parametrize("algorithm", gradients.ALGORITHMS)
def test_gradients_of_other_rows_are_not_the_same(algorithm, found):
    """The measure sees a row that is missing."""
    five, two = (found[plain(f"{algorithm}, {rows}, , ")] for rows in ("5 rows", "2 rows"))
    assert gradients.difference(two, five) > 0.1


@pytest.mark.parametrize("tokens", [1, 150, gradients.ALL])
@pytest.mark.parametrize("algorithm", ["orpo", "simpo"])
def test_lengths_of_completions_follow_their_rows_into_any_micro_batch(algorithm, tokens, tmp_path):
    setting = Setting(
        algorithm=algorithm,
        rows=5,
        batch_size=5,
        micro_tokens=tokens,
        max_grad_norm=gradients.UNCLIPPED,
        weight_decay=0.0,
        steps=1,
    )
    found = gradients.of_step(tmp_path, setting)
    assert gradients.difference(found, gradients.unshared(setting)) < TOLERANCE
