"""Every option of every algorithm that learns from pairs changes its loss beside any others, or is refused."""

from __future__ import annotations

import json
from itertools import combinations
from typing import Any

import pytest
import torch
from tests.rule_examples import JOB
from tiny_runs import offline

from alignment_api.contract.algorithms import OPTIONS
from alignment_api.yaml.manifest import InvalidManifest, read_manifest
from alignment_trainer.algorithms import OFFLINE, ScoredRows

Options = dict[str, Any]
OTHERS: dict[str, Options] = {
    "sft": {},
    "kto": {"beta": 0.3, "desirableWeight": 1.5, "undesirableWeight": 0.5},
    "dpo": {
        "beta": 0.3,
        "labelSmoothing": 0.2,
        "robust": True,
        "rpoAlpha": 0.5,
        "lengthNormalized": True,
        "referenceFree": True,
    },
    "ipo": {"beta": 0.3, "lengthNormalized": True},
    "orpo": {"oddsWeight": 0.3},
    "simpo": {"beta": 3.0, "gamma": 0.5},
    "reward": {"margin": 0.5, "centerCoef": 0.1},
}
"""Algorithm -> each of its options with another value than its default."""
SCORES = torch.tensor([[-12.5, -30.25], [-3.5, -2.0], [-9.0, -9.5]])
REFERENCE = torch.tensor([[-14.0, -28.5], [-3.0, -2.5], [-8.0, -9.0]])
LENGTHS = torch.tensor([[7, 11], [3, 2], [4, 6]])
LABELS = torch.tensor([1, 0, 1])


def is_refused(name: str, options: Options) -> bool:
    job = JOB | {"spec": JOB["spec"] | {"algorithm": {name: options}}}
    try:
        read_manifest(json.dumps(job))
    except InvalidManifest:
        return True
    return False


def losses(name: str, options: Options) -> list[float]:
    algorithm = offline(name, **options)
    reference = REFERENCE if algorithm.needs_reference else torch.zeros_like(REFERENCE)
    return algorithm.loss(ScoredRows(SCORES, reference, LENGTHS, LABELS)).loss.tolist()


def choices(name: str) -> list[Options]:
    """Every choice of options that are written with their other value."""
    others = OTHERS[name]
    return [
        {option: others[option] for option in chosen}
        for count in range(len(others) + 1)
        for chosen in combinations(others, count)
    ]


@pytest.mark.parametrize("name", OFFLINE)
def test_every_option_is_walked(name: str) -> None:
    defaults = OPTIONS[name]().model_dump(mode="json")
    assert defaults.keys() == OTHERS[name].keys()
    assert all(OTHERS[name][option] != default for option, default in defaults.items())


@pytest.mark.parametrize("name", OFFLINE)
def test_an_option_changes_a_loss_beside_any_others_or_is_refused(name: str) -> None:
    accepted = {frozenset(options): losses(name, options) for options in choices(name) if not is_refused(name, options)}
    assert frozenset() in accepted
    silent = [
        (option, set(with_it - {option}))
        for with_it, changed in accepted.items()
        for option in with_it
        if (without := accepted.get(with_it - {option})) is not None
        if changed == pytest.approx(without, rel=1e-4)
    ]
    assert silent == []
    assert {option for with_it in accepted for option in with_it} == set(OTHERS[name])


@pytest.mark.parametrize("name", OFFLINE)
def test_what_is_refused_would_have_changed_nothing(name: str) -> None:
    for options in choices(name):
        if is_refused(name, options):
            fewer = [{key: options[key] for key in options if key != option} for option in options]
            assert losses(name, options) in [losses(name, other) for other in fewer if not is_refused(name, other)]
