"""A mirror of one collection of the apiserver: list, then watch; on any doubt list again, replacing the whole store."""

from __future__ import annotations

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from alignment_operator.kube.client import UNAVAILABLE, ApiError, KubeClient, Manifest

View = TypeVar("View")
Owner = TypeVar("Owner", bound=Hashable)

PAGE = "500"
WATCH_SECONDS = 300
IDLE_SECONDS = 90.0
"""Bookmarks come about once a minute: a stream that is silent for longer is dead, open though it may look."""
MAX_BACKOFF_SECONDS = 30.0
GONE = 410

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection(Generic[View, Owner]):
    """What to mirror and how to see it."""

    path: str
    view: Callable[[Manifest], View | None]
    """What is kept of an object (a pod's JSON is some 10 kB); None for one that is not for us."""
    owner: Callable[[View], Owner]
    """Who is told when it changes."""
    selector: str = ""


class Reflector(Generic[View, Owner]):
    """The objects of a collection as last seen, by owner.

    After a watch breaks off it goes on from the last resourceVersion; where that is too old (410), or anything else
    is odd, it lists again. The list replaces the store, so that nothing that vanished unseen stays behind.
    """

    def __init__(
        self, client: KubeClient, collection: Collection[View, Owner], notify: Callable[[Owner], None]
    ) -> None:
        self._client = client
        self._collection = collection
        self._notify = notify
        self._objects: dict[tuple[str, str], View] = {}
        self._by_owner: dict[Owner, dict[tuple[str, str], View]] = defaultdict(dict)
        self._version: str | None = None
        self._synced = asyncio.Event()
        self.relists = 0
        """Lists so far, the first one included."""

    async def synced(self) -> None:
        """Wait for the first list."""
        await self._synced.wait()

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

    async def run(self) -> None:
        """Mirror until cancelled."""
        failures = 0
        while True:
            try:
                if self._version is None:
                    await self._list()
                await self._watch()
                failures = 0
            except UNAVAILABLE as error:
                failures = self._give_up_stream(error, failures)
                await asyncio.sleep(min(MAX_BACKOFF_SECONDS, 0.1 * 2**failures) * random.uniform(0.5, 1.0))

    def _give_up_stream(self, error: Exception, failures: int) -> int:
        if isinstance(error, TimeoutError):
            log.info("silent watch dropped", extra={"path": self._collection.path})
            return 0
        if isinstance(error, ApiError) and error.status == GONE:
            log.info("watch too old, listing again", extra={"path": self._collection.path})
            self._version = None
            return 0
        if isinstance(error, ApiError) and failures >= 2:
            self._version = None  # whatever it objects to, it may be where we are
        log.warning("watch failed", extra={"path": self._collection.path, "error": str(error)})
        return failures + 1

    async def _list(self) -> None:
        params = {"limit": PAGE, "labelSelector": self._collection.selector}
        found: dict[tuple[str, str], View] = {}
        while True:
            page = await self._client.get(self._collection.path, params)
            views = ((_key(item), self._collection.view(item)) for item in page["items"])
            found |= {key: view for key, view in views if view is not None}
            if not page["metadata"].get("continue"):
                break
            params["continue"] = page["metadata"]["continue"]
        self._replace(found)
        self._version = page["metadata"]["resourceVersion"]
        self.relists += 1
        self._synced.set()

    def _replace(self, found: dict[tuple[str, str], View]) -> None:
        before, self._objects = self._objects, found
        self._by_owner.clear()
        for key, view in found.items():
            self._by_owner[self._collection.owner(view)][key] = view
        changed = [view for key, view in found.items() if before.get(key) != view]
        vanished = [view for key, view in before.items() if key not in found]
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
                self._put(_key(event["object"]), self._collection.view(event["object"]))
            elif event["type"] == "DELETED":
                self._drop(_key(event["object"]))
            self._version = event["object"]["metadata"]["resourceVersion"]  # of a bookmark too: it has nothing else

    def _put(self, key: tuple[str, str], view: View | None) -> None:
        before = self._objects.get(key)
        if before == view:
            return  # a change in what we do not look at: a node's heartbeat, a pod's managed fields
        owner = None if view is None else self._collection.owner(view)
        self._drop(key, tell=before is not None and self._collection.owner(before) != owner)
        if view is None or owner is None:
            return
        self._objects[key] = view
        self._by_owner[owner][key] = view
        self._notify(owner)

    def _drop(self, key: tuple[str, str], tell: bool = True) -> None:
        view = self._objects.pop(key, None)
        if view is None:
            return
        owner = self._collection.owner(view)
        self._by_owner[owner].pop(key)
        if not self._by_owner[owner]:
            del self._by_owner[owner]
        if tell:
            self._notify(owner)


def _key(manifest: Manifest) -> tuple[str, str]:
    metadata = manifest["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
