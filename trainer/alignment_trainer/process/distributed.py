"""The gang of ranks: started by torchrun, or this process alone. Collectives that cost nothing for one rank."""

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=30)
"""Of silence between ranks, after which one takes another for dead."""
WORD_SECONDS = 60.0
"""Between two words of rank 0 to ranks that wait for what it asks others: far less than the timeout."""


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def local_device(gpus: int) -> torch.device:
    """The device of this rank. Raises RuntimeError where GPUs were planned and fewer are found: nothing falls back."""
    if gpus == 0:
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if found < gpus:
        raise RuntimeError(f"planned with {gpus} GPUs, found {found}; check the pool's gpu resource and the driver")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def process_group(device: torch.device, timeout: timedelta = COLLECTIVE_TIMEOUT) -> Iterator[None]:
    """Joins the ranks that torchrun started (NCCL on GPUs, gloo on CPUs) and leaves them in order; no-op for one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def group_beside() -> dist.ProcessGroup | None:
    """A group of all ranks for another thread, whose collectives meet none of the training thread's; collective."""
    return dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT) if world_size() > 1 else None


def join_alone(device: torch.device) -> None:
    """Makes a group of this process where there is none: sharding engines ask for one, whatever its size."""
    if not dist.is_initialized():
        alone = torch._C._distributed_c10d.HashStore()
        dist.init_process_group("gloo" if device.type == "cpu" else "nccl", store=alone, rank=0, world_size=1)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Elementwise sum, the same on every rank."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def any_rank(flag: bool) -> bool:
    """True on every rank once it is true on one."""
    return bool(sum_over_ranks(torch.tensor(int(flag))).item())


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """Every rank's value, in order of rank, on every rank. group: one of `group_beside`; None for the training's."""
    if world_size() == 1:
        return [value]
    gathered: list[T | None] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered  # type: ignore[return-value]


def from_first_rank(value: T) -> T:
    """Rank 0's value on every rank; what the others pass is not looked at."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def ask_first_rank(ask: Callable[[], T]) -> T:
    """What `ask` returns on rank 0, on every rank, however long it takes.

    A collective's timeout would measure the work of rank 0. Here the others wait for as long as it lives: while `ask`
    runs, a thread sends them a word every WORD_SECONDS. `ask` is called on rank 0 alone, and uses no collective.
    """
    if world_size() == 1:
        return ask()
    if rank() == 0:
        with _words_to_waiting_ranks():
            found = ask()
        from_first_rank((True, found))
        return found
    while True:
        is_answer, answer = from_first_rank((False, cast(T, None)))
        if is_answer:
            return answer


@contextmanager
def _words_to_waiting_ranks() -> Iterator[None]:
    done = threading.Event()

    def speak() -> None:
        while not done.wait(WORD_SECONDS):
            from_first_rank((False, None))

    with ThreadPoolExecutor(1, thread_name_prefix="words") as threads:
        speaking = threads.submit(speak)
        try:
            yield
        finally:
            done.set()
        speaking.result()
