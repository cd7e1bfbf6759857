"""Writes the data of examples/grpo.yaml into grpo/, beside this file: sums, each with its answer.

Held-out sums are of other numbers: where 3 + 8 is held out, neither it nor 8 + 3 is trained on, in any wording.

    python examples/generate_grpo.py       # the same bytes every time
"""

from __future__ import annotations

import json
import random
from itertools import combinations_with_replacement
from pathlib import Path

FOLDER = Path(__file__).resolve().parent / "grpo"
FILES = {"train.jsonl": 300, "heldout.jsonl": 64}
LARGEST = 10
HELD_OUT_SUMS = 12
WORDINGS = (
    "Question: {a} + {b} = ? Answer with a number.",
    "Calculate {a} + {b}. Answer with a number only.",
    "What is {a} + {b}? Reply with the number only.",
    "Work out {a} plus {b}. Give only the number.",
)


def questions(sums: list[tuple[int, int]]) -> list[dict[str, str | int]]:
    """Every wording of every sum, both ways round."""
    ways = sorted({way for a, b in sums for way in ((a, b), (b, a))})
    return [{"prompt": wording.format(a=a, b=b), "answer": a + b} for a, b in ways for wording in WORDINGS]


def main() -> None:
    draw = random.Random(0)
    sums = list(combinations_with_replacement(range(1, LARGEST + 1), 2))
    draw.shuffle(sums)
    sides = (sums[HELD_OUT_SUMS:], sums[:HELD_OUT_SUMS])
    for (name, count), side in zip(FILES.items(), sides, strict=True):
        rows = draw.sample(questions(side), count)
        (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{name}: {count} questions on {len(side)} sums")


if __name__ == "__main__":
    main()
