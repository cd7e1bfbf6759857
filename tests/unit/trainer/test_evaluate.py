"""Held-out figures by hand."""

import numpy as np
import pytest

from alignment_api.algorithms import Algorithm, Dpo
from alignment_trainer.data.examples import PreferenceExample
from alignment_trainer.data.store import Examples, flatten
from alignment_trainer.evaluate import evaluated, heldout_evaluator
from alignment_trainer.statistics import wilson

REFERENCE = np.array([[-10, -12], [-8, -6], [-5, -5], [-7, -9]], dtype=np.float32)
POLICY = np.array([[-9, -13], [-7, -6], [-6, -4], [-7, -9]], dtype=np.float32)
# log-ratios: (1, -1), (1, 0), (-1, 1), (0, 0); margins at beta 0.5: 1, 0.5, -1, 0


def test_the_figures_of_a_policy() -> None:
    figures = evaluated(POLICY, REFERENCE, 0.5, range(4))
    assert figures["accuracy"].value == (1 + 1 + 0 + 0.5) / 4
    assert figures["margin"].value == pytest.approx(0.125)
    # sample standard deviation of 1, 0.5, -1, 0: sqrt(2.1875 / 3)
    assert figures["margin"].high - 0.125 == pytest.approx(1.96 * (2.1875 / 3) ** 0.5 / 2, rel=1e-4)
    assert figures["likelierChosen"].value == 0.5
    assert (figures["accuracy"].low, figures["accuracy"].high) == pytest.approx(wilson(0.625, 4))


def test_the_reference_itself_is_at_chance() -> None:
    figures = evaluated(REFERENCE, REFERENCE, 0.1, range(4))
    assert (figures["accuracy"].value, figures["margin"].value, figures["margin"].high) == (0.5, 0.0, 0.0)
    assert figures["likelierChosen"].value == (1 + 0 + 0.5 + 1) / 4


def test_pairs_of_one_prompt_widen_the_interval() -> None:
    own = evaluated(POLICY, REFERENCE, 0.5, range(4))["margin"]
    shared = evaluated(POLICY, REFERENCE, 0.5, ["a", "a", "b", "b"])["margin"]
    # sums of residuals by prompt: 1.25 and -1.25; sqrt(2 * 3.125) / 4
    assert (shared.high - shared.low) / 2 == pytest.approx(1.96 * 6.25**0.5 / 4, rel=1e-4)
    assert shared.high - shared.low > own.high - own.low


def test_the_loops_evaluation_scores_the_policy_anew_each_time() -> None:
    rows = Examples(flatten([PreferenceExample(n, (n,), (1,), (2,)) for n in range(1, 5)]))
    scores = iter([REFERENCE, POLICY])
    figures = heldout_evaluator(rows, REFERENCE, Algorithm(dpo=Dpo(beta=0.5)), lambda: next(scores))
    assert [figures()["accuracy"].value, figures()["accuracy"].value] == [0.5, 0.625]
