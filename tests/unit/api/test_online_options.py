"""Options of PPO and GRPO that depend on each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from alignment_api.contract.algorithms import Grpo, Ppo
from alignment_api.rules.rule import broken
from alignment_api.rules.table import RULES

FUNCTION = {"function": {"regex": {"pattern": "kind"}}}
MODEL = {"model": {"source": "pvc://models/helpfulness"}}
TRAINED = {"train": {"preferences": {"source": "pvc://data/pairs.jsonl"}}}


def ppo(*rewards: dict[str, Any], **options: Any) -> Ppo:
    return Ppo.model_validate({"rewards": list(rewards), **options})


def grpo(**options: Any) -> Grpo:
    return Grpo.model_validate({"rewards": [FUNCTION], **options})


@pytest.mark.parametrize(
    ("rewards", "penalty"),
    [((FUNCTION,), 0.0), ((MODEL,), 1.0), ((FUNCTION, TRAINED), 1.0), ((FUNCTION, {**MODEL, "weight": 0}), 0.0)],
)
def test_a_missing_end_costs_where_a_reward_model_judges(rewards: tuple[dict[str, Any], ...], penalty: float) -> None:
    assert ppo(*rewards).eos_penalty == penalty
    assert ppo(*rewards, missingEosPenalty=0.25).eos_penalty == 0.25
    assert ppo(*rewards, missingEosPenalty=0).eos_penalty == 0
    assert ppo(*rewards, truncated="mask").eos_penalty == 0
    assert ppo(*rewards, truncated="bootstrap").eos_penalty == 0
    assert ppo(*rewards, truncated="bootstrap", missingEosPenalty=0.5).eos_penalty == 0.5


def test_grpo_has_no_critic_to_bootstrap_from() -> None:
    assert ppo(MODEL, truncated="bootstrap").truncated == "bootstrap"
    with pytest.raises(ValidationError, match="'score' or 'mask'"):
        grpo(truncated="bootstrap")


@pytest.mark.parametrize(
    ("rewards", "component"),
    [
        ((TRAINED,), "trained"),
        ((MODEL, TRAINED), "trained"),
        ((FUNCTION, MODEL), "model"),
        ((MODEL, {**MODEL, "name": "second"}), None),
        (({**TRAINED, "weight": 0}, FUNCTION), None),
        ((FUNCTION,), None),
    ],
)
def test_a_critic_starts_from_the_reward_model_where_there_is_one(
    rewards: tuple[dict[str, Any], ...], component: str | None
) -> None:
    found = ppo(*rewards).critic_reward
    assert (found.component if found is not None else None) == component
    assert ppo(*rewards, critic={"from": "model"}).critic_reward is None
    asked = ppo(*rewards, critic={"from": "rewardModel"})
    assert asked.critic_reward == found
    refusal = "found rewardModel; no reward of a weight above 0 says train, and not exactly one is a model"
    assert any(message.startswith(refusal) for _, message in broken(RULES, asked)) == (component is None)


def test_what_is_let_in_is_let_in_after_defaults_were_written_out() -> None:
    """The apiserver stores defaults; the job is read again with them."""
    for options in (ppo(MODEL, truncated="mask"), ppo(TRAINED), ppo(MODEL, missingEosPenalty=0.0, truncated="mask")):
        written = Ppo.model_validate(options.model_dump(mode="json", by_alias=True))
        assert written == options
        assert broken(RULES, written) == []
