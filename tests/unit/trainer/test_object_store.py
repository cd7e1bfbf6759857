"""A bucket as a storage: whole objects or none, whatever breaks, and mistakes told by the field that names it."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from killed_writers import PART, put_parts, writer_that_stands_still
from tests.relay import Relay
from tests.s3 import S3Server

from alignment_trainer.object_store import store as module
from alignment_trainer.object_store.client import connect
from alignment_trainer.object_store.store import Found, ObjectStore
from alignment_trainer.process.errors import UserError, failure_of

FIELD = "spec.output.destination"


@pytest.fixture
def store(bucket: str) -> ObjectStore:
    return ObjectStore.of(f"s3://{bucket}/below", FIELD)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_BYTES", PART)


def uploads(store: ObjectStore) -> list[Any]:
    """What was begun in parts, and neither ended nor given up."""
    return connect(FIELD).list_multipart_uploads(Bucket=store.bucket).get("Uploads", [])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 2 * PART + 7])
def test_what_was_put_in_parts_is_got_as_one(store: ObjectStore, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pieces = (memoryview(content)[start : start + 999_983] for start in range(0, size, 999_983))
    assert store.put("file", pieces) == (size, hashlib.sha256(content).hexdigest())
    assert store.get("file") == content


@pytest.mark.usefixtures("small_parts")
def test_a_file_of_any_size_is_put_in_the_memory_of_a_few_parts(store: ObjectStore) -> None:
    tracemalloc.start()
    peaks = []
    for parts in (2, 3, 10):
        tracemalloc.reset_peak()
        store.put("file", (bytes(PART) for _ in range(parts)))
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[2] < peaks[1] + PART / 2


@pytest.mark.usefixtures("small_parts")
def test_a_put_that_breaks_off_leaves_what_was_there_before_and_no_parts(store: ObjectStore) -> None:
    store.put("file", [b"before"])

    def pieces() -> Iterator[bytes]:
        yield bytes(2 * PART)
        raise RuntimeError("the tensor is gone")

    with pytest.raises(RuntimeError, match="the tensor is gone"):
        store.put("file", pieces())
    assert store.get("file") == b"before"
    assert uploads(store) == []


def test_a_put_that_is_killed_leaves_what_was_there_before_and_its_parts_go_with_the_folder(
    store: ObjectStore,
) -> None:
    store.put("checkpoint/part", [b"before"])
    with writer_that_stands_still(put_parts, str(store), "checkpoint/part", 2):
        assert len(uploads(store)) == 1
    assert store.get("checkpoint/part") == b"before"
    assert store.list("") == ["checkpoint/part"]
    store.delete("checkpoint/")
    assert uploads(store) == []


def test_lists_and_deletes_go_beyond_a_page(s3_server: S3Server, store: ObjectStore) -> None:
    names = [f"many/{number:04d}" for number in range(1003)]
    for name in names:
        path = s3_server.buckets / store.bucket / "below" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    store.put("other", [b""])
    assert store.list("many/") == names
    store.delete("many/")
    assert store.list("") == ["other"]


def test_a_create_whose_answer_was_lost_is_told_that_it_won(
    s3_server: S3Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, the store says that the object is there: it is our own."""
    with Relay(s3_server.url, "PUT", losses=1, after=0).running() as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", relay.url)
        behind = ObjectStore.of(str(store), FIELD)
        assert behind.create("claim", "ours")
        assert relay.losses_left == 0
        assert not behind.create("claim", "ours")
        assert behind.get("claim") == b"ours"


@pytest.mark.usefixtures("small_parts")
def test_a_put_whose_last_answer_was_lost_is_there(
    s3_server: S3Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asked again, the store says that there is no such upload: it has put our parts together."""
    with Relay(s3_server.url, r"POST .*uploadId=", losses=1, after=0).running() as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", relay.url)
        behind = ObjectStore.of(str(store), FIELD)
        behind.put("file", [bytes(PART), b"end"])
        assert relay.losses_left == 0
        assert behind.get("file") == bytes(PART) + b"end"
        assert uploads(behind) == []


class OvertakenStore(ObjectStore):
    """Another attempt removes what this one has sent, before it is put together."""

    def _complete(self, name: str, *begun: Any) -> None:
        ObjectStore.of(str(self), FIELD).delete("")
        super()._complete(name, *begun)


@pytest.mark.usefixtures("small_parts")
def test_a_put_whose_parts_another_attempt_has_removed_is_not_there(store: ObjectStore) -> None:
    with pytest.raises(OSError, match=r"CompleteMultipartUpload of .*/below/file.*: NoSuchUpload"):
        OvertakenStore.of(str(store), FIELD).put("file", [bytes(PART), b"end"])
    assert store.list("") == []


@pytest.mark.usefixtures("small_parts")
def test_what_a_killed_writer_has_sent_goes_with_the_next_of_that_name(store: ObjectStore) -> None:
    """As of prepared rows, beside which lies what nobody deletes."""
    for name in ("file", "file-2"):
        with writer_that_stands_still(put_parts, str(store), name, 1):
            pass
    store.put("file", [bytes(PART), b"end"])
    assert [upload["Key"] for upload in uploads(store)] == ["below/file-2"]


def test_what_is_got_is_asked_for_again_where_its_connection_broke(
    s3_server: S3Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = bytes(range(256)) * 10_000
    store.put("file", [content])
    with Relay(s3_server.url, "GET", losses=2, after=1_000_000).running() as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", relay.url)
        assert ObjectStore.of(str(store), FIELD).get("file") == content
        assert relay.losses_left == 0


def test_a_download_goes_on_where_its_connection_broke(
    s3_server: S3Server, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    content = bytes(range(256)) * 10_000
    store.put("file", [content])
    (found,) = store.found("")
    with Relay(s3_server.url, "GET", losses=2, after=1_000_000).running() as relay:
        monkeypatch.setenv("AWS_ENDPOINT_URL", relay.url)
        ObjectStore.of(str(store), FIELD).fetch(found, tmp_path / "file")
        assert relay.losses_left == 0
    assert (tmp_path / "file").read_bytes() == content


def test_an_object_that_has_changed_since_it_was_listed_is_not_taken_for_it(store: ObjectStore, tmp_path: Path) -> None:
    store.put("file", [b"before"])
    (found,) = store.found("")
    store.put("file", [b"after."])
    with pytest.raises(OSError, match=r"spec\.output\.destination: GetObject of .*PreconditionFailed"):
        store.fetch(found, tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="no such object"):
        store.fetch(Found("gone", 3, found.etag), tmp_path / "gone")


@pytest.mark.parametrize(
    ("changed", "reason", "told"),
    [
        ({"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "CredentialsMissing", "AWS_ACCESS_KEY_ID and AWS"),
        ({"AWS_SECRET_ACCESS_KEY": None}, "CredentialsMissing", "spec.credentials"),
        ({"AWS_SECRET_ACCESS_KEY": "another"}, "StoreAccessRefused", "(SignatureDoesNotMatch); give AWS_ACCESS_KEY_ID"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "StoreAccessRefused", "refuses ListObjectsV2 of `s3://"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "StoreNotReached", "AWS_ENDPOINT_URL names the store"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9"}, "StoreNotReached", "AWS_ENDPOINT_URL: Invalid endpoint: 127.0.0.1:9"),
    ],
)
def test_a_store_that_refuses_is_told_by_the_field_with_what_to_write(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str | None], reason: str, told: str
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for name, value in changed.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    failure = refusal(store)
    assert (failure.reason, failure.retryable) == (reason, False)
    assert failure.message.startswith(f"{FIELD}: ")
    assert told in failure.message


def test_a_bucket_that_does_not_exist_is_told_by_its_name(bucket: str) -> None:
    failure = refusal(ObjectStore.of("s3://no-such-bucket/below", FIELD))
    assert failure.reason == "BucketNotFound"
    assert f"{FIELD}: " in failure.message
    assert "has no bucket `no-such-bucket`; write the name of one that exists" in failure.message


def test_a_store_that_goes_away_later_is_asked_again_by_the_next_attempt(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError) as error:
        store.put("file", [b""])
    assert failure_of(error.value).retryable


def test_a_clock_that_is_wrong_is_no_mistake_of_the_users(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next attempt may find a machine whose clock is right."""
    now = botocore.auth.get_current_datetime
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now() + timedelta(hours=1))
    with pytest.raises(OSError, match=r"PutObject of .*/below/file.*: RequestTimeTooSkewed") as error:
        store.put("file", [b""])
    assert failure_of(error.value).retryable


def refusal(store: ObjectStore) -> Any:
    with pytest.raises(UserError) as error:
        store.reach()
    return failure_of(error.value)
