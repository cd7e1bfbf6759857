"""Writes the data of examples/ppo.yaml into ppo/, beside this file: preferences and prompts.

A prompt is a remark of everyday life and the wish for a short reply, so that most replies end before maxNewTokens: to
a reward model that knows whole replies only, one that is cut off is worth little whatever it says. A hidden rule
decides which of two replies is preferred: the one that asks something back. Both are a turn, most with a reaction
before or after it; the turn is a question in the chosen one and a statement, a call or a fragment in the other (with
statements alone, the reward model takes whatever is none for a question, and PPO finds out). Many reactions and turns
are of the kind that the model itself says ("I'm sorry to hear that."): a reward model tells apart what it has read, and
where that was never the policy's way of speaking its scores are noise, which no critic explains. Remarks, reactions and
turns of the held-out side are others, no prompt stands in two files, and which reply is longer alternates, so that
length tells nothing.

    python examples/generate_ppo.py        # the same bytes every time
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from generate_preferences import ATTEMPTS, Pair, length_baseline
from ruamel.yaml import YAML

FOLDER = Path(__file__).resolve().parent / "ppo"
PAIRS = {"training": ("preferences.jsonl", 96), "heldout": ("preferences_heldout.jsonl", 200)}
PROMPTS = {"training": ("prompts.jsonl", 200), "heldout": ("prompts_heldout.jsonl", 40)}


def remarks(phrases: dict[str, Any], side: str) -> list[str]:
    """Every remark of one side, shuffled."""
    found = [
        f"{opener}{subject} {event}{when}. {phrases['request']}"
        for opener in phrases["openers"]
        for subject, events in phrases[side]["remarks"]
        for event in events
        for when in phrases["when"]
    ]
    random.Random(side).shuffle(found)
    return found


def pairs(phrases: dict[str, Any], side: str, prompts: Sequence[str]) -> Iterator[Pair]:
    """A pair for each prompt, the longer reply chosen every other time."""
    draw = random.Random(f"{side} pairs")
    for place, prompt in enumerate(prompts):
        sign = 1 if place % 2 == 0 else -1
        for _ in range(ATTEMPTS):
            pair = Pair(prompt, _reply(draw, phrases[side], asks=True), _reply(draw, phrases[side], asks=False))
            if pair.longer == (sign, sign):
                break
        else:
            raise ValueError(f"{side}: the turns give no pair whose lengths differ as they shall; add some")
        yield pair


def _reply(draw: random.Random, phrases: dict[str, Any], asks: bool) -> str:
    """A turn, a question where it asks, and two times out of three a reaction before or after it."""
    question, *others = draw.choice(phrases["turns"])
    turn, reaction = question if asks else draw.choice(others), draw.choice(phrases["reactions"])
    return draw.choice([turn, f"{turn} {reaction}", f"{reaction} {turn}"])


def _write(name: str, rows: Iterable[dict[str, str]]) -> None:
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def main() -> None:
    phrases = YAML(typ="safe").load(FOLDER / "phrases.yaml")
    for side, (name, count) in PAIRS.items():
        everything = remarks(phrases, side)
        prompts_name, prompts_count = PROMPTS[side]
        prompts, asked = everything[:prompts_count], everything[prompts_count:][:count]
        rows = list(pairs(phrases, side, asked))
        _write(name, map(asdict, rows))
        _write(prompts_name, ({"prompt": prompt} for prompt in prompts))
        print(f"{name}: {count} pairs; the longer reply is the chosen one in {length_baseline(rows):.2f} of them")
        print(f"{prompts_name}: {prompts_count} prompts")


if __name__ == "__main__":
    main()
