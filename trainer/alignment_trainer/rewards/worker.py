"""The process in which reward functions run: `python -m alignment_trainer.rewards.worker IN OUT`, two descriptors.

JSON, a line each. In: first the functions, then batches {function, seconds, answers}. Out: for each function {} or
{error: {field, message}}, which ends it; then for each answer, as soon as it is known, {value} or {error} or {row}: a
mistake of the function, of the row. It ends when its input does. A function that takes longer than `seconds` ends it by
SIGALRM, which needs nobody's help: neither a C loop that never yields nor the death of the trainer leaves a worker
behind.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from alignment_api.contract.rewards import RewardFunction
from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.functions import BadFunction, BadRow, Score, make_score


def main(incoming: int, outgoing: int) -> None:
    """Serves until its input ends."""
    # What a function prints goes to the log, what it starts gets neither pipe.
    os.dup2(2, 1)
    for descriptor in (incoming, outgoing):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with open(incoming, encoding="utf-8") as lines, open(outgoing, "w", encoding="utf-8") as out:
        scores = []
        for function in json.loads(lines.readline()):
            try:
                scores.append(_make(function))
            except BadFunction as error:
                _say(out, {"error": {"field": error.field, "message": str(error)}})
                return
            _say(out, {})
        for line in lines:
            batch = json.loads(line)
            for answer in batch["answers"]:
                _say(out, _answered(scores[batch["function"]], batch["seconds"], Answer(**answer)))


def _make(function: dict[str, Any]) -> Score:
    path = Path(function["path"]) if function["path"] is not None else None
    return make_score(RewardFunction.model_validate(function["spec"]), path)


def _answered(score: Score, limit: float, answer: Answer) -> dict[str, Any]:
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        return _as_number(score(answer))
    except BadRow as error:
        return {"row": str(error)}
    except (Exception, SystemExit) as error:
        return {"error": f"raised {type(error).__name__}: {error}{_origin(error)}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _as_number(found: Any) -> dict[str, Any]:
    try:
        value = math.nan if isinstance(found, str) else float(found)
    except (TypeError, ValueError):
        value = math.nan
    return {"value": value} if math.isfinite(value) else {"error": f"returned {found!r:.100}"}


def _origin(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(frame.filename).name}:{frame.lineno})"


def _say(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
