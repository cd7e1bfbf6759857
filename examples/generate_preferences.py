"""Writes the quick start's preference data: quickstart/train.jsonl and quickstart/heldout.jsonl, beside this file.

A pair is a customer's question with two replies: one answers it and says what happens next, the other is as polite and
as long but commits to nothing (see quickstart/phrases.yaml). Training and held-out pairs come from different situations
and different sentences. Which reply is longer alternates, so length tells nothing.

    python examples/generate_preferences.py        # the same bytes every time
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FOLDER = Path(__file__).resolve().parent / "quickstart"
PAIRS = {"training": ("train.jsonl", 96), "heldout": ("heldout.jsonl", 96)}
ATTEMPTS = 1000
PIECE = re.compile(r"[^\W\d]{1,8}|\d|[^\w\s]|\s(?=\d)")


@dataclass(frozen=True)
class Pair:
    """A row of preference data."""

    prompt: str
    chosen: str
    rejected: str

    @property
    def longer(self) -> tuple[int, int]:
        """Which reply is longer, in letters and in pieces (much as tokenizers count): 1 the chosen, -1 the other."""
        return _sign(len(self.chosen) - len(self.rejected)), _sign(_pieces(self.chosen) - _pieces(self.rejected))


def _pieces(text: str) -> int:
    return len(PIECE.findall(text))


def _sign(difference: int) -> int:
    return (difference > 0) - (difference < 0)


def pairs(phrases: dict[str, Any], side: str, count: int) -> Iterator[Pair]:
    """`count` pairs of one side: cases in turn, no prompt twice, the longer reply chosen every other time."""
    draw = random.Random(side)
    prompts: set[str] = set()
    cases = [(situation["topic"], case) for situation in phrases[side]["situations"] for case in situation["cases"]]
    for place in range(count):
        topic, case = cases[place % len(cases)]
        sign = 1 if (place + place // len(cases)) % 2 == 0 else -1
        for _ in range(ATTEMPTS):
            pair = _pair(draw, phrases, side, topic, case)
            if pair.prompt not in prompts and pair.longer == (sign, sign):
                break
        else:
            raise ValueError(
                f"{topic}: `{case[0]}` gives too few different pairs for {count}; add a slot or a greeting"
            )
        prompts.add(pair.prompt)
        yield pair


def _pair(draw: random.Random, phrases: dict[str, Any], side: str, topic: str, case: Sequence[str]) -> Pair:
    evasions, greetings = phrases[side]["evasions"], phrases[side]["greetings"]
    question, answer, step = case
    evasive = f"{draw.choice(evasions['openings'])} {draw.choice(evasions['endings'])}"
    texts = (draw.choice(greetings) + question, f"{answer} {step}", evasive)
    filling = {slot: draw.choice(values) for slot, values in phrases["slots"].items()}
    return Pair(*(text.format(topic=topic, **filling) for text in texts))


def length_baseline(rows: Sequence[Pair]) -> float:
    """How often the longer reply, in pieces, is the chosen one, ties a half: the accuracy of length alone."""
    return sum(0.5 + 0.5 * row.longer[1] for row in rows) / len(rows)


def main() -> None:
    phrases = YAML(typ="safe").load(FOLDER / "phrases.yaml")
    for side, (name, count) in PAIRS.items():
        rows = list(pairs(phrases, side, count))
        (FOLDER / name).write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))
        print(f"{name}: {count} pairs; the longer reply is the chosen one in {length_baseline(rows):.2f} of them")


if __name__ == "__main__":
    main()
