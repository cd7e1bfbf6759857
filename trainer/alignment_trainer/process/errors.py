"""How an error becomes a Failure: a user's mistake, memory, room, or a bug that the next attempt may survive."""

from __future__ import annotations

import errno
import json
import os
import re
import traceback
from collections.abc import Sequence

from pydantic import ValidationError

from alignment_api.contract.context import Failure

_OUT_OF_MEMORY = ("CUDA out of memory", "DefaultCPUAllocator: can't allocate memory", "DefaultCPUAllocator: not enough")

_LONGEST = 400
"""Characters of a message that is not ours."""
_VALUE = re.compile(
    "|".join(
        (
            r"""(?<=value:\s)(?:'[^']*'|"[^"]*")|(?<=with\svalue\s)(?:'[^']*'|"[^"]*")""",  # of a config's fields
            r"""(?<=string\s)"(?:[^"\\]|\\.)*"|(?<=unknown\svariant\s)`[^`]*`""",  # tokenizers
            r"""(?<=unknown\sfield\s)`[^`]*`""",
            r"""(?<=to\sfloat:\s)'[^']*'|(?<=with\sbase\s10:\s)'[^']*'""",  # Python's numbers
            r"""(?<=input_value=).*?(?=,\sinput_type=)""",  # pydantic
        )
    )
)
"""What the errors of libraries quote of a file's content."""


class UserError(Exception):
    """A mistake that only the user can mend; the job fails at once.

    reason: CamelCase word for programs. message: the field or row, what was found, what to write instead.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class WireError(ValueError):
    """A body, of a request, an answer or a file, that is not what it should be: whoever sent it is told, and nobody
    else ends by it. The message never quotes the body."""


def name_rows(rows: Sequence[int], most: int = 12) -> str:
    """Rows in words, the first of many."""
    more = f" and {len(rows) - most} more" if len(rows) > most else ""
    return ", ".join(map(str, rows[:most])) + more


def failure_of(error: BaseException) -> Failure:
    """What a runtime is told of an exception that ended a role."""
    if isinstance(error, UserError):
        return Failure(reason=error.reason, message=str(error), retryable=False)
    if is_out_of_memory(error):
        advice = "lower spec.training.microBatchTokens, raise recomputeLayers, or give the role more memory"
        return Failure(reason="OutOfMemory", message=f"{_first_line(error)}; {advice}", retryable=True)
    if isinstance(error, PermissionError):
        advice = f"user {os.getuid()} may not do this: change the mode or owner there, or the volume's fsGroup"
        return Failure(reason="PermissionDenied", message=f"{_first_line(error)}; {advice}", retryable=False)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "make the volume of spec.storage larger, or lower spec.checkpoint.keep"
        return Failure(reason="StorageFull", message=f"{_first_line(error)}; {advice}", retryable=True)
    return Failure(reason=type(error).__name__, message=_first_line(error) + _origin(error), retryable=True)


def describe(error: BaseException) -> str:
    """What is wrong in one line: the text of an error that is not ours, wherever it is told.

    It may have met any file that somebody has put there: what could not be parsed is named by its place, never quoted.
    """
    return " ".join(_told(error).split())[:_LONGEST] or type(error).__name__


def without_values(text: str) -> str:
    """A text of errors without what they quote of the values that they met."""
    return _VALUE.sub("...", text)


def first_cause(error: BaseException) -> BaseException:
    """The first error of a group, however deep: what ended a group of tasks."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether host or GPU had no memory left."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(mark in str(error) for mark in _OUT_OF_MEMORY)


def _told(error: BaseException) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"not JSON at line {error.lineno}, column {error.colno} ({error.msg.partition(':')[0]})"
    if isinstance(error, UnicodeDecodeError):
        return f"not {error.encoding} at byte {error.start}"
    if isinstance(error, ValidationError):
        first = error.errors(include_input=False, include_url=False)[0]
        place = first["loc"][:-1] if first["type"] == "extra_forbidden" else first["loc"]
        return f"`{'.'.join(map(str, place)) or 'its root'}`: {without_values(first['msg'])}"
    return str(error) if isinstance(error, UserError) else without_values(str(error))


def _first_line(error: BaseException) -> str:
    return (_told(error).strip() or type(error).__name__).splitlines()[0]


def _origin(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f" ({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno})" if frames else ""
