"""A storage holds what claims need, or `prepare` refuses it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from roles import TinyJob

from alignment_trainer.checkpoint.claims import claim_term, claims_of
from alignment_trainer.checkpoint.ownership import take_folders
from alignment_trainer.checkpoint.proof import prove_claims
from alignment_trainer.data.storage import Folder, Storage
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.errors import UserError

FIELD = "spec.storage.source"


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Either kind, empty."""
    if request.param == "folder":
        return Folder(tmp_path)
    return ObjectStore.of(f"s3://{request.getfixturevalue('bucket')}/a/folder", FIELD)


def test_a_storage_that_has_the_primitive_passes_and_is_left_as_it_was(storage: Storage) -> None:
    storage.check_writable(FIELD)
    prove_claims(storage, FIELD)
    assert storage.list("") == []
    assert not any(storage.holds(name) for name in (".proof", "claim"))


class Overwriting(Folder):
    """The last writer wins, as with an object store that ignores its condition."""

    def create(self, name: str, text: str) -> bool:
        self._path(name).write_text(text)
        return True


class Stale(Folder):
    """Lists what was there some time ago."""

    def list(self, prefix: str) -> list[str]:
        return []


class Linkless(Folder):
    """As FAT and some network mounts answer."""

    def create(self, name: str, text: str) -> bool:
        raise PermissionError(1, "Operation not permitted")


class Late(Folder):
    """The first is told that it won, and so is who comes later."""

    def create(self, name: str, text: str) -> bool:
        return super().create(name, text) or text == "late"


@pytest.mark.parametrize(
    ("storage", "problem"),
    [
        (Overwriting, "4 of 4 writers have created the same file"),
        (Stale, "a file that was created is not listed"),
        (Linkless, "a file cannot be created exclusively: .*Operation not permitted"),
        (Late, "a file that was created is replaced"),
    ],
)
def test_a_storage_in_which_two_attempts_could_take_one_claim_is_refused_by_its_field(
    tmp_path: Path, storage: type[Folder], problem: str
) -> None:
    with pytest.raises(UserError, match=rf"spec\.storage\.source: {problem}") as error:
        prove_claims(storage(tmp_path), FIELD)
    assert error.value.reason == "StorageNotExclusive"


def test_prepare_asks_for_the_proof_before_it_marks_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without hard links is named as what it is."""

    def no_links(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    context = TinyJob(tmp_path).context("prepare")
    monkeypatch.setattr("os.link", no_links)
    with pytest.raises(UserError, match=r"spec\.storage\.source: a file cannot be created exclusively"):
        take_folders(context)
    assert not list(Path(context.storage).glob(".alignment-storage.json"))


def test_a_bucket_in_which_the_last_writer_wins_is_refused_with_what_to_give(bucket: str) -> None:
    class Overwriting(ObjectStore):
        def create(self, name: str, text: str) -> bool:
            self.put(name, [text.encode()])
            return True

    with pytest.raises(UserError, match=r"4 of 4 writers.* Give a bucket of a store that keeps the condition"):
        prove_claims(Overwriting.of(f"s3://{bucket}", FIELD), FIELD)


def test_of_many_that_create_one_file_at_one_moment_one_is_told_that_it_did(storage: Storage) -> None:
    with ThreadPoolExecutor(4) as threads:
        for name in map(str, range(10)):
            told = threads.map(storage.create, [name] * 4, "abcd")
            (winner,) = [text for text, won in zip("abcd", told, strict=True) if won]
            assert storage.get(name) == winner.encode()


def test_what_was_put_or_created_is_got_and_listed_until_it_is_deleted(storage: Storage) -> None:
    assert storage.put("a/one", [b"12", memoryview(b"345")]) == (5, hashlib.sha256(b"12345").hexdigest())
    assert storage.create("a/two", "text")
    assert storage.create("b", "text")
    assert not storage.create("a/one", "other")
    assert (storage.get("a/one"), storage.get("a/two")) == (b"12345", b"text")
    assert storage.list("") == ["a/one", "a/two", "b"]
    assert storage.list("a/") == ["a/one", "a/two"]
    assert [storage.holds(name) for name in ("a", "a/one", "b", "c", "a/t")] == [True, True, True, False, False]
    storage.delete("a/")
    storage.delete("a/")
    assert storage.list("") == ["b"]
    with pytest.raises(FileNotFoundError):
        storage.get("a/one")


def test_a_storage_knows_every_folder_that_it_lies_in(storage: Storage) -> None:
    lies_in = [within for _, within in storage.parents()]
    assert lies_in[:2] == (["folder", "a"] if isinstance(storage, ObjectStore) else list(storage.root.parts[:-3:-1]))
    nearest, within = next(storage.parents())
    storage.put("file", [b"text"])
    assert nearest.get(f"{within}/file") == b"text"


def test_only_what_is_named_like_a_claim_is_one(storage: Storage) -> None:
    claim_term(storage, "job", 1)
    claims_of(storage).put("notes.txt", [b"by hand"])
    assert claim_term(storage, "job", 2).term == 2
