"""A mirror of one collection of the apiserver: list, then watch; on any doubt list again, replacing the whole store."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from alignment_operator.kube.client import UNAVAILABLE, ApiError, KubeClient, Manifest
from alignment_operator.kube.throttle import backoff_seconds, jittered

View = TypeVar("View")
Owner = TypeVar("Owner", bound=Hashable)
Key = tuple[str, str]
"""Namespace (empty where there is none) and name."""

PAGE = "500"
WATCH_SECONDS = 300
IDLE_SECONDS = 90.0
"""Bookmarks come about once a minute: a stream that is silent for longer is dead, open though it may look."""
STALE_SECONDS = 180.0
"""Nothing heard for so long, which a silent watch and the next one's first bookmark do not explain: it may be blind."""
STEADY_SECONDS = 1.0
"""A watch that was open this long has worked, also where nothing happened."""
FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 30.0
GONE = 410
FORBIDDEN = 403

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection(Generic[View, Owner]):
    """What to mirror and how to see it."""

    path: str
    view: Callable[[Manifest], View | None]
    """What is kept of an object (a pod's JSON is some 10 kB); None for one that is not for us. Whatever it raises
    leaves that object out, and no other."""
    owner: Callable[[View], Owner]
    """Who is told when it changes."""
    selector: str = ""


class Reflector(Generic[View, Owner]):
    """The objects of a collection as last seen, by owner.

    After a watch breaks off it goes on from the last resourceVersion; where that is too old (410), or anything else
    is odd, it lists again. The list replaces the store, so that nothing that vanished unseen stays behind. A watch that
    has worked is opened again at once, however it ended; one that has not waits, longer each time.
    """

    def __init__(
        self, client: KubeClient, collection: Collection[View, Owner], notify: Callable[[Owner], None]
    ) -> None:
        self._client = client
        self._collection = collection
        self._notify = notify
        self._objects: dict[Key, View] = {}
        self._by_owner: dict[Owner, dict[Key, View]] = defaultdict(dict)
        self._version: str | None = None
        self._synced = asyncio.Event()
        self._answered = asyncio.Event()
        self._heard_at = 0.0
        self._trouble = "the first list has not come yet"
        self._unreadable: dict[Key, str] = {}
        self.relists = 0
        """Lists so far, the first one included."""
        self.changes = 0
        """Grows with every change of what is mirrored."""

    @property
    def unreadable(self) -> int:
        """Objects that are left out because they cannot be read."""
        return len(self._unreadable)

    @property
    def silent_seconds(self) -> float:
        """Since the apiserver was last heard, by a list, an event or a bookmark."""
        return time.monotonic() - self._heard_at

    @property
    def problem(self) -> str | None:
        """Why nobody should plan on this mirror: it is not whole, or was heard of too long ago; None: it is good."""
        if not self._synced.is_set():
            return f"{self._collection.path} is not mirrored yet: {self._trouble}"
        if self.silent_seconds > STALE_SECONDS:
            return f"{self._collection.path} was last heard of {self.silent_seconds:.0f} s ago: {self._trouble}"
        return None

    async def synced(self) -> None:
        """Wait for the first list."""
        await self._synced.wait()

    async def answered(self) -> None:
        """Wait until it is known whether we may list at all: for the first list, or for the first refusal of one."""
        await self._answered.wait()

    @property
    def whole(self) -> bool:
        """A list has come."""
        return self._synced.is_set()

    def of(self, owner: Owner) -> tuple[View, ...]:
        """Everything that belongs to `owner`."""
        return tuple(self._by_owner.get(owner, {}).values())

    def get(self, namespace: str, name: str) -> View | None:
        """One object."""
        return self._objects.get((namespace, name))

    def all(self) -> Iterable[View]:
        """Every object."""
        return self._objects.values()

    def owners(self) -> tuple[Owner, ...]:
        """Everyone who owns something."""
        return tuple(self._by_owner)

    def see(self, manifest: Manifest) -> View | None:
        """One object as the mirror sees it, wherever it was read; None: it is not for us, or cannot be read."""
        key = _key(manifest)
        try:
            view = self._collection.view(manifest)
        except Exception as error:  # whatever somebody has written there, all others go on
            if self._unreadable.get(key) != str(error):
                words = {"path": self._collection.path, "object": "/".join(key), "error": f"{error!r}"}
                log.warning("object left out, it cannot be read", extra=words)
            self._unreadable[key] = str(error)
            return None
        self._unreadable.pop(key, None)
        return view

    async def run(self) -> None:
        """Mirror until cancelled."""
        failures = 0
        while True:
            began, error = time.monotonic(), None
            try:
                if self._version is None:
                    await self._list()
                    began = time.monotonic()
                await self._watch()
            except UNAVAILABLE as raised:
                error = raised
            failures = 0 if self._has_worked(began, error) else failures + 1
            self._note_end(error, failures)
            pause = backoff_seconds(max(failures, 1), FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS)
            await asyncio.sleep(jittered(pause))

    def _has_worked(self, began: float, error: Exception | None) -> bool:
        """Whether the watch since `began` was one: it brought something, or was open for a while.

        A clean end alone says nothing: an apiserver that shuts down, or a proxy, answers every watch with 200 and no
        event.
        """
        brought = self._heard_at > began
        return brought or (not isinstance(error, ApiError) and time.monotonic() - began >= STEADY_SECONDS)

    def _note_end(self, error: Exception | None, failures: int) -> None:
        self._trouble = "watches end at once" if error is None else str(error) or repr(error)
        words = {"path": self._collection.path, "error": self._trouble}
        if isinstance(error, ApiError) and error.status == GONE:
            log.info("watch too old, listing again", extra=words)
            self._version = None
        elif isinstance(error, ApiError) and error.status == FORBIDDEN and self._answered.is_set():
            log.debug("still forbidden", extra=words)  # told once; /healthz or the jobs' conditions say it on
        elif isinstance(error, TimeoutError):
            log.info("silent watch dropped", extra=words)
        elif error is not None:
            log.warning("mirror interrupted", extra=words)
        if isinstance(error, ApiError) and error.status == FORBIDDEN:
            self._answered.set()
        if failures > 2 and (error is None or isinstance(error, ApiError)):
            # Whatever it objects to, it may be where we are; and a list shows what these watches do not.
            self._version = None

    async def _list(self) -> None:
        params = {"limit": PAGE, "labelSelector": self._collection.selector}
        listed: dict[Key, View | None] = {}
        while True:
            page = await self._client.get(self._collection.path, params)
            listed |= {_key(item): self.see(item) for item in page["items"] or ()}
            if not page["metadata"].get("continue"):
                break
            params["continue"] = page["metadata"]["continue"]
        self._replace({key: view for key, view in listed.items() if view is not None})
        self._unreadable = {key: error for key, error in self._unreadable.items() if key in listed}
        self._version = page["metadata"]["resourceVersion"]
        self.relists += 1
        self._heard_at = time.monotonic()
        self._synced.set()
        self._answered.set()

    def _replace(self, found: dict[Key, View]) -> None:
        before, self._objects = self._objects, found
        self._by_owner.clear()
        for key, view in found.items():
            self._by_owner[self._collection.owner(view)][key] = view
        changed = [view for key, view in found.items() if before.get(key) != view]
        vanished = [view for key, view in before.items() if key not in found]
        self.changes += 1
        for owner in {self._collection.owner(view) for view in (*changed, *vanished)}:
            self._notify(owner)

    async def _watch(self) -> None:
        params = {
            "resourceVersion": self._version or "",
            "labelSelector": self._collection.selector,
            # spread, so that many watches do not end at once
            "timeoutSeconds": str(random.randint(WATCH_SECONDS // 2, WATCH_SECONDS)),
        }
        async for event in self._client.watch(self._collection.path, params, IDLE_SECONDS):
            if event["type"] in ("ADDED", "MODIFIED"):
                self._put(_key(event["object"]), self.see(event["object"]))
            elif event["type"] == "DELETED":
                self._unreadable.pop(_key(event["object"]), None)
                self._drop(_key(event["object"]))
            self._heard_at = time.monotonic()
            self._version = event["object"]["metadata"]["resourceVersion"]  # of a bookmark too: it has nothing else

    def _put(self, key: Key, view: View | None) -> None:
        before = self._objects.get(key)
        if before == view:
            return  # a change in what we do not look at: a node's heartbeat, a pod's managed fields
        owner = None if view is None else self._collection.owner(view)
        self._drop(key, tell=before is not None and self._collection.owner(before) != owner)
        if view is None or owner is None:
            return
        self.changes += 1
        self._objects[key] = view
        self._by_owner[owner][key] = view
        self._notify(owner)

    def _drop(self, key: Key, tell: bool = True) -> None:
        view = self._objects.pop(key, None)
        if view is None:
            return
        self.changes += 1
        owner = self._collection.owner(view)
        self._by_owner[owner].pop(key)
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        if tell:
            self._notify(owner)


def _key(manifest: Manifest) -> Key:
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
