"""The sources of a spec, found by their type."""

from __future__ import annotations

from tests.unit.operator.small_cluster import make_job

from alignment_api.derived.source_fields import sources_of, sources_read


def test_every_source_is_found_wherever_it_stands() -> None:
    training = {
        "preferences": {"source": "pvc://b/pairs.jsonl", "evaluation": {"source": "pvc://b/heldout.jsonl"}},
        "model": {"source": "hf://org/base"},
    }
    rewards = [
        {"function": {"regex": {"pattern": "a"}}},
        {"train": training},
        {"function": {"python": {"entrypoint": "mine:score", "path": "file:///code"}}},
    ]
    spec = make_job(
        {
            "algorithm": {"ppo": {"rewards": rewards}},
            "checkpoint": {"resumeFrom": "pvc://other/run"},
        }
    ).spec
    reward = ("spec", "algorithm", "ppo", "rewards")
    read = {
        ("spec", "model", "source"): "pvc://models/base",
        ("spec", "data", "source"): "pvc://data/pairs.jsonl",
        (*reward, 1, "train", "preferences", "source"): "pvc://b/pairs.jsonl",
        (*reward, 1, "train", "preferences", "evaluation", "source"): "pvc://b/heldout.jsonl",
        (*reward, 1, "train", "model", "source"): "hf://org/base",
        (*reward, 2, "function", "python", "path"): "file:///code",
        ("spec", "checkpoint", "resumeFrom"): "pvc://other/run",
    }
    assert sources_read(spec) == read
    assert sources_of(spec) == read | {
        ("spec", "storage", "source"): "pvc://work/helpful",
        ("spec", "output", "destination"): "pvc://results/helpful",
    }
