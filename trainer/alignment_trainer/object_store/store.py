"""A storage below a prefix of a bucket."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

from alignment_api.contract.sources import parse_source
from alignment_trainer.object_store.client import Errors, NotReached, connect
from alignment_trainer.object_store.download import Found, cached, own_folder, remove_cached
from alignment_trainer.process.errors import UserError

PART_BYTES = 32 * 1024**2
"""Of an upload in parts, held in memory: its 10,000 parts make 312 GiB."""
_CHUNK_BYTES = 8 * 1024**2
_BATCH = 1000
"""Objects that one request may delete."""
_TRIES = 5
_CONFLICTS, _PAUSE_SECONDS = 100, 0.1
_CONFLICT, _EXISTS, _COMPLETED = "ConditionalRequestConflict", "PreconditionFailed", "NoSuchUpload"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ObjectStore:
    """Implements `data.storage.Storage`: every object appears whole, or not at all, and lasts once it does.

    prefix: with its `/` at the end, or empty. field: of the manifest, that names the bucket.
    Any method raises UserError where credentials, bucket or rights are missing, else OSError where the store fails.
    """

    bucket: str
    prefix: str
    field: str
    _clients: dict[str, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    """One, once it is needed, for this prefix and all below it."""
    needs = "a bucket of a store that keeps the condition of PutObject (If-None-Match: *)"
    disk = None

    @classmethod
    def of(cls, source: str, field: str) -> ObjectStore:
        """Where an s3:// source leads."""
        bucket, _, prefix = parse_source(source).path.partition("/")
        return cls(bucket, f"{prefix}/" if prefix else "", field)

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str, str, str]]:
        """To another rank, which connects by itself."""
        return type(self), (self.bucket, self.prefix, self.field)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    def reach(self) -> None:
        """Raises UserError also where the store does not answer: for who asks first, before anything depends on it."""
        try:
            with self._told(""):
                self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        except NotReached as error:
            raise UserError("StoreNotReached", f"{error}; AWS_ENDPOINT_URL names the store") from error

    def check_writable(self, field: str) -> None:
        """The proof of claims writes; a store has no mode to look at."""
        self.reach()

    def create(self, name: str, text: str) -> bool:
        writer = uuid4().hex
        for _ in range(_CONFLICTS):
            answer = self._create(name, text, writer)
            if answer != _CONFLICT:
                return answer is None or self._is_by(name, writer)
            time.sleep(_PAUSE_SECONDS)  # another creates it at this moment: one of both will be told
        raise OSError(f"{self.field}: {self}/{name} cannot be created: {_CONFLICT}, {_CONFLICTS} times")

    def put(self, name: str, pieces: Iterable[bytes | memoryview]) -> tuple[int, str]:
        """Reads the pieces as they are sent, PART_BYTES at a time. What broke off in between is no object, and what a
        writer of the same name has sent that was killed goes."""
        digest, sizes = hashlib.sha256(), list[int]()

        def noted() -> Iterator[bytearray]:
            for part in _parts(pieces):
                digest.update(part)
                sizes.append(len(part))
                yield part

        parts = noted()
        first = next(parts)
        alone, whole = len(first) < PART_BYTES, chain([first], parts)
        del first  # each part goes as soon as it is sent
        with self._told(name):
            if alone:
                self._client.put_object(**self._key(name), Body=next(whole))
            else:
                self._put_parts(name, whole)
        return sum(sizes), digest.hexdigest()

    def get(self, name: str) -> bytes:
        """Asks again where the connection breaks in the middle, which the client does for no body."""
        content = b""
        for left in reversed(range(_TRIES)):
            body = self._body(name)
            try:
                with self._told(name):
                    content = body.read()
                break
            except NotReached as error:
                if not left:
                    raise
                log.warning("asks again for an object: %s", error)
        return content

    def list(self, prefix: str) -> list[str]:
        return sorted(found.name for found in self.found(prefix))

    def delete(self, prefix: str) -> None:
        """The parts of what was being written there cost room, too."""
        with self._told(prefix):
            for upload in self._uploads(prefix):
                self._abort(upload)
            names = self.list(prefix)
            for start in range(0, len(names), _BATCH):
                self._delete(names[start : start + _BATCH])

    def holds(self, name: str) -> bool:
        return any(found.name == name or found.name.startswith(f"{name}/") for found in self.found(name))

    def parents(self) -> Iterator[tuple[ObjectStore, str]]:
        parts = self.prefix.split("/")[:-1]
        for depth in reversed(range(len(parts))):
            yield replace(self, prefix="".join(f"{part}/" for part in parts[:depth])), parts[depth]

    def within(self, name: str) -> ObjectStore:
        return replace(self, prefix=f"{self.prefix}{name}/")

    def begun(self) -> set[str]:
        with self._told(""):
            uploads = {upload["Key"].removeprefix(self.prefix) for upload in self._uploads("")}
        return uploads.union(self.list(""))

    def here(self, names: Iterable[str]) -> Path:
        """Downloaded once, by whoever comes first."""
        wanted = set(names)
        return cached(self, [found for found in self.found("") if found.name in wanted])

    def let_go(self, here: Path) -> None:
        remove_cached(here)

    def workplace(self) -> Path:
        return own_folder(self)

    def remove(self, name: str) -> None:
        with self._told(name):
            self._client.delete_object(**self._key(name))

    def found(self, prefix: str) -> Iterator[Found]:
        """What `list` names, as it is now."""
        pages = self._client.get_paginator("list_objects_v2")
        with self._told(prefix):
            for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
                for entry in page.get("Contents", ()):
                    if not entry["Key"].endswith("/"):  # a console's folder
                        yield Found(entry["Key"].removeprefix(self.prefix), entry["Size"], entry["ETag"])

    def fetch(self, wanted: Found, path: Path) -> None:
        """Copies an object to a file that is not there yet; goes on where a connection broke.

        Raises OSError where it is not the one any more that was found.
        """
        path.touch(exist_ok=False)
        for left in reversed(range(_TRIES)):
            try:
                if (done := path.stat().st_size) < wanted.bytes:
                    self._copy(wanted, path, done)
                break
            except NotReached as error:
                if not left:
                    raise
                log.warning("goes on with what is left of an object: %s", error)
        if (done := path.stat().st_size) != wanted.bytes:
            raise OSError(
                f"{self.field}: {self}/{wanted.name} came with {done} bytes, it was listed with {wanted.bytes}"
            )

    @property
    def _client(self) -> Any:
        if not self._clients:
            self._clients["s3"] = connect(self.field)
        return self._clients["s3"]

    def _told(self, name: str) -> AbstractContextManager[None]:
        return Errors(self.field, self.bucket, self._client.meta.endpoint_url).told(self.prefix + name)

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self.prefix + name}

    def _body(self, name: str, **options: str) -> Any:
        with self._told(name):
            return self._client.get_object(**self._key(name), **options)["Body"]

    def _create(self, name: str, text: str, writer: str) -> str | None:
        """None where it was created, else by which code it was not."""
        from botocore.exceptions import ClientError  # type: ignore[import-untyped]

        with self._told(name):
            try:
                self._client.put_object(
                    **self._key(name), Body=text.encode(), IfNoneMatch="*", Metadata={"writer": writer}
                )
            except ClientError as error:
                code = error.response.get("Error", {}).get("Code")
                if code not in (_CONFLICT, _EXISTS):
                    raise
                return str(code)
        return None

    def _is_by(self, name: str, writer: str) -> bool:
        """Whether what is there was written by this very call: its answer may have been lost, and asked for again."""
        try:
            with self._told(name):
                metadata = self._client.head_object(**self._key(name))["Metadata"]
        except FileNotFoundError:
            return False
        return bool(metadata.get("writer") == writer)

    def _put_parts(self, name: str, parts: Iterable[bytearray]) -> None:
        key, writer = self._key(name), uuid4().hex
        for left in self._uploads(name):
            if left["Key"] == key["Key"]:
                self._abort(left)
        begun = self._client.create_multipart_upload(**key, Metadata={"writer": writer})
        upload = key | {"UploadId": begun["UploadId"]}
        try:
            sent = [self._send(upload, number, part) for number, part in enumerate(parts, start=1)]
            self._complete(name, upload, sent, writer)
        except BaseException:
            self._abort(upload)
            raise

    def _complete(self, name: str, upload: dict[str, str], sent: Sequence[dict[str, Any]], writer: str) -> None:
        """Asked again because its answer was lost, the store says that there is no such upload: the object is there."""
        from botocore.exceptions import ClientError

        try:
            self._client.complete_multipart_upload(**upload, MultipartUpload={"Parts": sent})
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") != _COMPLETED or not self._is_by(name, writer):
                raise

    def _send(self, upload: dict[str, str], number: int, part: bytearray) -> dict[str, Any]:
        answer = self._client.upload_part(**upload, PartNumber=number, Body=part)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    def _uploads(self, prefix: str) -> Iterator[dict[str, str]]:
        """Objects in parts that nobody has put together yet."""
        pages = self._client.get_paginator("list_multipart_uploads")
        for page in pages.paginate(Bucket=self.bucket, Prefix=self.prefix + prefix):
            for upload in page.get("Uploads", ()):
                yield {"Bucket": self.bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}

    def _abort(self, upload: dict[str, str]) -> None:
        """Who aborts has a reason of its own: that it could not is logged."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.abort_multipart_upload(**upload)
        except (BotoCoreError, ClientError) as error:
            log.warning("parts of s3://%s/%s stay in the bucket: %s", upload["Bucket"], upload["Key"], error)

    def _delete(self, names: Sequence[str]) -> None:
        keys = [{"Key": self.prefix + name} for name in names]
        answer = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": keys, "Quiet": True})
        for error in answer.get("Errors", ()):
            raise OSError(f"{self.field}: s3://{self.bucket}/{error['Key']} is not deleted: {error.get('Code')}")

    def _copy(self, wanted: Found, path: Path, done: int) -> None:
        """The bytes from `done` on."""
        part = {"Range": f"bytes={done}-"} if done else {}
        body = self._body(wanted.name, IfMatch=wanted.etag, **part)
        with self._told(wanted.name), path.open("ab") as file:
            for chunk in body.iter_chunks(_CHUNK_BYTES):
                file.write(chunk)


def _parts(pieces: Iterable[bytes | memoryview]) -> Iterator[bytearray]:
    """Of PART_BYTES each but for the last; at least one, which may be empty."""
    buffer, some = bytearray(), False
    for piece in pieces:
        view = memoryview(piece)
        while len(view):
            taken = view[: PART_BYTES - len(buffer)]
            buffer += taken
            view = view[len(taken) :]
            if len(buffer) == PART_BYTES:
                yield buffer
                buffer, some = bytearray(), True
    if buffer or not some:
        yield buffer
