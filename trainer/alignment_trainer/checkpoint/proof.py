"""The proof, which `prepare` asks for, that a storage has what claims rest on: the exclusive create."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

from alignment_trainer.data.storage import Storage
from alignment_trainer.process.errors import UserError, describe

_WRITERS = 4
"""That want the same name at one moment."""


def prove_claims(storage: Storage, field: str) -> None:
    """Raises UserError, by the field that names the storage, where two attempts could take one claim.

    Several writers create the same file at one moment: one must win, with its own text, and a list must show the file.
    """
    prefix = f".proof-{uuid.uuid4().hex}/"
    try:
        problem = _problem(storage, prefix)
        storage.delete(prefix)
    except OSError as error:
        problem = f"a file cannot be created exclusively: {describe(error)}"
    if problem is not None:
        raise UserError(
            "StorageNotExclusive",
            f"{field}: {problem}; two attempts could write here at once, so nothing is begun. Give {storage.needs}",
        )


def _problem(storage: Storage, prefix: str) -> str | None:
    name, start = f"{prefix}claim", threading.Barrier(_WRITERS)

    def create(text: str) -> bool:
        start.wait()
        return storage.create(name, text)

    texts = [f"writer {number}" for number in range(_WRITERS)]
    with ThreadPoolExecutor(_WRITERS) as writers:
        winners = [text for text, won in zip(texts, writers.map(create, texts), strict=True) if won]
    if len(winners) != 1:
        return f"{len(winners)} of {_WRITERS} writers have created the same file"
    if storage.list(prefix) != [name]:
        return "a file that was created is not listed"
    if storage.get(name) != winners[0].encode() or storage.create(name, "late"):
        return "a file that was created is replaced by another writer's"
    return None
