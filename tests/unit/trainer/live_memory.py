"""Bytes of tensors that are alive, counted at every operator: the same on every machine, busy or not."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveMemory(TorchDispatchMode):
    """Storages that operators take and return while it is on, and those that are shown to it.

    peak: bytes, the most at once. What an operator takes and gives back within itself is not seen. Storages may be
    emptied behind its back, as FSDP does with what it has gathered: before a peak counts all are looked at.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._alive: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self.see((args, kwargs, found))
        return found

    def see(self, tensors: Any) -> None:
        """Counts the tensors in a tree."""
        for tensor in tree_iter(tensors):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                self._count((tensor._local_tensor if isinstance(tensor, DTensor) else tensor).untyped_storage())
        if self._now > self.peak:
            for reference, _ in list(self._alive.values()):
                if (storage := reference()) is not None:
                    self._count(storage)
            self.peak = max(self.peak, self._now)

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        reference, before = self._alive.get(key, (None, 0))
        if reference is None or size != before:
            self._alive[key] = (reference or weakref.ref(storage, lambda _: self._forget(key)), size)
            self._now += size - before

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key)[1]
