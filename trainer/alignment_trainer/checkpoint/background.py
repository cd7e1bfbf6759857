"""Work beside the training thread, one piece at a time, started on every rank together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch.distributed as dist

from alignment_trainer.process import distributed
from alignment_trainer.process.errors import describe

log = logging.getLogger(__name__)

T = TypeVar("T")
U = TypeVar("U")


class Background(Generic[T]):
    """A thread of this rank, and a group of ranks for it: what its work says to other ranks meets no collective of the
    training thread."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="background")
        self._group: dist.ProcessGroup | None = None
        self.work: Future[T] | None = None
        """What was started last, until `result` is taken."""

    def start(self, work: Callable[[], T]) -> None:
        """Begins it and returns; collective. The result of the one before must have been taken."""
        if self.work is not None:
            raise RuntimeError("take the result of what was started before")
        self._group = self._group or distributed.group_beside()
        self.work = self._thread.submit(work)

    def together(self, work: Callable[[], U]) -> list[U]:
        """Every rank's result, in order of rank; for what was started, within it. Raises what ended it on any rank."""
        found: tuple[U | None, Exception | None]
        try:
            found = work(), None
        except Exception as error:
            found = None, error
        gathered = distributed.gather_objects(found, self._group)
        failures = [failure for _, failure in (found, *gathered) if failure is not None]
        if failures:
            raise failures[0]
        return [result for result, _ in gathered]  # type: ignore[misc]

    def is_running(self) -> bool:
        """Whether this rank is still at what was started; does not wait."""
        return self.work is not None and not self.work.done()

    def is_done(self) -> bool:
        """Whether what was started has ended on every rank; collective."""
        return self.work is not None and not distributed.any_rank(not self.work.done())

    def result(self) -> T | None:
        """Of what was started, once it has ended; None where nothing was. Raises what ended it."""
        work, self.work = self.work, None
        return work.result() if work is not None else None

    def raise_failure(self) -> None:
        """Raises what has ended the work, if anything has; does not wait."""
        if self.work is not None and self.work.done():
            self.work.result()

    def close(self) -> T | None:
        """The result of what runs, before its group goes. A failure is logged: who closes by an error has a reason."""
        try:
            return self.result()
        except Exception as error:
            log.warning("work in the background failed too: %s", describe(error))
            return None
        finally:
            self._thread.shutdown()
