import math

import pytest
import torch

from alignment_trainer.algorithms.dpo import Dpo, share_positive
from alignment_trainer.losses import PairLogprobs, dpo_loss

POLICY = PairLogprobs(torch.tensor([-1.0, -5.0], requires_grad=True), torch.tensor([-3.0, -4.0], requires_grad=True))
REFERENCE = PairLogprobs(torch.tensor([-2.0, -5.0]), torch.tensor([-2.5, -4.0]))


def test_dpo_loss_matches_values_worked_out_by_hand():
    """h = 0.1 (2 - 0.5) = 0.15 and 0.1 (-1 + 1) = 0; ln(1 + e^-0.15) = 0.620957, ln 2 = 0.693147."""
    assert dpo_loss(POLICY, REFERENCE, beta=0.1).tolist() == pytest.approx([0.620957, 0.693147], abs=1e-6)


def test_label_smoothing_mixes_in_the_flipped_loss():
    """-log s(-0.15) is 0.15 more than -log s(0.15): 0.620957 + 0.1 x 0.15."""
    assert dpo_loss(POLICY, REFERENCE, beta=0.1, label_smoothing=0.1)[0].item() == pytest.approx(0.635957, abs=1e-6)


def test_dpo_gradient_is_the_papers():
    """Rafailov 2023, section 4: beta s(-h) down for the chosen, up for the rejected; s(-0.15) = 0.462570."""
    chosen, rejected = torch.autograd.grad(
        dpo_loss(POLICY, REFERENCE, beta=0.1).sum(), [POLICY.chosen, POLICY.rejected]
    )
    assert chosen.tolist() == pytest.approx([-0.0462570, -0.05], abs=1e-6)
    assert rejected.tolist() == pytest.approx([0.0462570, 0.05], abs=1e-6)


def test_a_policy_that_equals_its_reference_starts_at_ln_2_whatever_beta():
    for beta in (0.01, 0.1, 10.0):
        assert dpo_loss(REFERENCE, REFERENCE, beta).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-7)


def test_metrics_are_the_implicit_rewards_of_each_pair():
    logprobs = torch.tensor([[-1.0, -3.0], [-5.0, -4.0]])
    reference = torch.tensor([[-2.0, -2.5], [-5.0, -4.0]])
    metrics = Dpo(beta=0.1).loss(logprobs, reference).metrics
    assert metrics["chosen_reward"].tolist() == pytest.approx([0.1, 0.0])
    assert metrics["rejected_reward"].tolist() == pytest.approx([-0.05, 0.0])
    assert metrics["reward_margin"].tolist() == pytest.approx([0.15, 0.0])
    assert metrics["accuracy"].tolist() == [1.0, 0.5]
    assert metrics["likelier_chosen"].tolist() == [1.0, 0.0]


def test_ties_count_a_half():
    assert share_positive(torch.tensor([-2.0, 0.0, 3.0])).tolist() == [0.0, 0.5, 1.0]
