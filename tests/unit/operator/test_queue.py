import asyncio
import logging
from datetime import timedelta

import pytest

from alignment_operator.kube.queue import WorkQueue


async def until(condition, seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - conditions here are plain values, not events
            await asyncio.sleep(0.001)


async def test_requests_before_a_pass_are_one_pass() -> None:
    passes: list[str] = []

    async def work(key: str) -> None:
        passes.append(key)

    queue = WorkQueue(work)
    for _ in range(5):
        queue.add("a")
    await until(lambda: queue.depth == 0)
    assert passes == ["a"]


async def test_a_request_during_a_pass_is_one_more_pass_and_never_beside_it() -> None:
    inside = most = passes = 0
    gate = asyncio.Event()

    async def work(key: str) -> None:
        nonlocal inside, most, passes
        inside, passes = inside + 1, passes + 1
        most = max(most, inside)
        await gate.wait()
        inside -= 1

    queue = WorkQueue(work)
    queue.add("a")
    await until(lambda: passes == 1)
    for _ in range(3):
        queue.add("a")
    gate.set()
    await until(lambda: queue.depth == 0)
    assert (passes, most) == (2, 1)


async def test_keys_run_beside_each_other_up_to_the_limit() -> None:
    inside = most = 0
    gate = asyncio.Event()

    async def work(key: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await gate.wait()
        inside -= 1

    queue = WorkQueue(work, concurrency=3)
    for key in range(10):
        queue.add(key)
    await until(lambda: inside == 3)
    assert queue.depth == 10
    gate.set()
    await until(lambda: queue.depth == 0)
    assert most == 3


async def test_a_pass_that_names_a_delay_is_repeated_after_it() -> None:
    times: list[float] = []
    clock = asyncio.get_running_loop().time

    async def work(key: str) -> timedelta | None:
        times.append(clock())
        return timedelta(seconds=0.05) if len(times) < 3 else None

    queue = WorkQueue(work)
    queue.add("a")
    await until(lambda: len(times) == 3)
    await asyncio.sleep(0.1)
    assert len(times) == 3
    assert times[1] - times[0] >= 0.05
    assert times[2] - times[1] >= 0.05


async def test_a_request_does_not_wait_for_the_delay() -> None:
    passes = 0

    async def work(key: str) -> timedelta:
        nonlocal passes
        passes += 1
        return timedelta(hours=1)

    queue = WorkQueue(work)
    queue.add("a")
    await until(lambda: passes == 1 and queue.depth == 0)
    queue.add("a")
    await until(lambda: passes == 2 and queue.depth == 0)
    await queue.close(grace_seconds=1)


async def test_errors_are_retried_ever_more_slowly_and_success_forgets_them(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, logger="alignment_operator.kube.queue")
    times: list[float] = []
    clock = asyncio.get_running_loop().time

    async def work(key: str) -> None:
        times.append(clock())
        if len(times) in (1, 2, 4):
            raise RuntimeError("not yet")

    queue = WorkQueue(work)
    queue.add("a")
    await until(lambda: len(times) == 3)
    assert times[1] - times[0] >= 0.5
    assert times[2] - times[1] >= 1.0
    queue.add("a")
    await until(lambda: len(times) == 5)
    assert 0.5 <= times[4] - times[3] < 2.0, "the third in a row would wait for 2 s"


async def test_an_error_of_one_key_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL + 1, logger="alignment_operator.kube.queue")
    done: list[str] = []

    async def work(key: str) -> None:
        if key == "bad":
            raise RuntimeError("always")
        done.append(key)

    queue = WorkQueue(work, concurrency=1)
    for key in ("bad", "good"):
        queue.add(key)
    await until(lambda: done == ["good"])
    await queue.close(grace_seconds=1)


async def test_closing_lets_a_pass_end_and_starts_none() -> None:
    ended: list[str] = []
    started = asyncio.Event()

    async def work(key: str) -> None:
        started.set()
        await asyncio.sleep(0.05)
        ended.append(key)

    queue = WorkQueue(work, concurrency=1)
    queue.add("a")
    queue.add("b")
    await started.wait()
    await queue.close(grace_seconds=5)
    queue.add("c")
    assert ended == ["a"]
