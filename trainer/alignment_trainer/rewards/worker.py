"""The process in which reward functions run: `python -m alignment_trainer.rewards.worker IN OUT`, two descriptors.

JSON, a line each. In: first {memory, network, functions}, then batches {function, seconds, answers}. Out: {network};
for each function {} or {error: {field, message}}, which ends it; then for each answer, as soon as it is known, {value}
or {error} or {row}: a mistake of the function, of the row; or {memory}, which ends it: what is left of a function that
met the limit may be half done. It ends when its input does. A function that takes longer than `seconds` ends it by
SIGALRM, which needs nobody's help: neither a C loop that never yields nor the death of the trainer leaves a worker
behind.
"""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import IO, Any

from alignment_api.contract.rewards import RewardFunction
from alignment_trainer.rewards.answer import Answer
from alignment_trainer.rewards.functions import BadFunction, BadRow, Score, make_score
from alignment_trainer.rewards.limits import drop_privileges, leave_network, limit_memory

_TORCH_HAS_NO_MEMORY = "DefaultCPUAllocator"
"""torch raises a RuntimeError that says so."""


def main(incoming: int, outgoing: int) -> None:
    """Serves until its input ends."""
    # What a function prints goes to the log, what it starts gets neither pipe.
    os.dup2(2, 1)
    for descriptor in (incoming, outgoing):
        os.set_inheritable(descriptor, False)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with open(incoming, encoding="utf-8") as lines, open(outgoing, "w", encoding="utf-8") as out:
        first = json.loads(lines.readline())
        _say(out, {"network": None if first["network"] else leave_network()})
        limit_memory(first["memory"])
        drop_privileges()
        scores = []
        for function in first["functions"]:
            try:
                scores.append(_make(function))
            except BadFunction as error:
                _say(out, {"error": {"field": error.field, "message": str(error)}})
                return
            _say(out, {})
        for line in lines:
            batch = json.loads(line)
            for answer in batch["answers"]:
                message = _answered(scores[batch["function"]], batch["seconds"], Answer(**answer))
                _say(out, message)
                if "memory" in message:
                    return


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
        if _wants_memory(error):
            return {"memory": _origin(error)}
        return {"error": f"raised {type(error).__name__}: {error}{_origin(error)}{_offline(error)}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _as_number(found: Any) -> dict[str, Any]:
    try:
        value = math.nan if isinstance(found, str) else float(found)
    except (TypeError, ValueError):
        value = math.nan
    return {"value": value} if math.isfinite(value) else {"error": f"returned {found!r:.100}"}


def _wants_memory(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or _TORCH_HAS_NO_MEMORY in str(error)


def _origin(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f" ({Path(frame.filename).name}:{frame.lineno})"


def _offline(error: BaseException | None) -> str:
    """What to write where it failed for want of a network."""
    while error is not None:
        if isinstance(error, socket.gaierror) or getattr(error, "errno", None) == errno.ENETUNREACH:
            return "; a function has no network unless `network: true` stands beside its entrypoint"
        error = error.__cause__ or error.__context__ or _reason(error)
    return ""


def _reason(error: BaseException) -> BaseException | None:
    """urllib's errors hold their cause so."""
    reason = getattr(error, "reason", None)
    return reason if isinstance(reason, BaseException) else None


def _say(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
