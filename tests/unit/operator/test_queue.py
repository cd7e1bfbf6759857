import asyncio
import logging
from datetime import timedelta

import pytest
from tests.unit.operator.faults import until

from alignment_operator.kube.queue import WorkQueue


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


async def test_owners_take_turns() -> None:
    order: list[str] = []

    async def work(key: str) -> None:
        order.append(key)

    queue = WorkQueue(work, concurrency=1, owner=lambda key: key[0], held=True)
    for key in ("a1", "a2", "a3", "a4", "b1", "c1", "c2"):
        queue.add(key)
    queue.release()
    await until(lambda: queue.depth == 0)
    assert order == ["a1", "b1", "c1", "a2", "c2", "a3", "a4"]


async def test_one_who_comes_late_waits_for_no_crowd() -> None:
    order: list[str] = []

    async def work(key: str) -> None:
        order.append(key)
        if key == "a1":
            queue.add("b1")

    queue = WorkQueue(work, concurrency=1, owner=lambda key: key[0], held=True)
    for number in range(100):
        queue.add(f"a{number}")
    queue.release()
    await until(lambda: queue.depth == 0)
    assert order.index("b1") <= 3


async def test_nothing_starts_while_it_is_held() -> None:
    passes: list[str] = []

    async def work(key: str) -> None:
        passes.append(key)

    queue = WorkQueue(work, held=True)
    for key in ("a", "a", "b"):
        queue.add(key)
    await asyncio.sleep(0.05)
    assert passes == []
    assert (queue.depth, queue.running) == (2, 0)
    queue.release()
    await until(lambda: queue.depth == 0)
    assert passes == ["a", "b"]


async def test_cancelling_ends_every_pass_where_it_is_and_starts_none() -> None:
    begun: list[str] = []
    acted: list[str] = []

    async def work(key: str) -> timedelta:
        begun.append(key)
        if key != "timed":
            await asyncio.sleep(3600)
            acted.append(key)
        return timedelta(seconds=0.01)

    queue = WorkQueue(work, concurrency=2)
    queue.add("timed")
    await until(lambda: "timed" in begun)
    for key in ("a", "b", "c"):
        queue.add(key)
    await until(lambda: {"a", "b"} <= set(begun))
    queue.cancel()
    queue.add("d")
    await asyncio.sleep(0.05)
    assert acted == []
    assert not {"c", "d"} & set(begun)
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("pass ")] == []
