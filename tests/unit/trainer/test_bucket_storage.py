"""A storage in a bucket is as good as a folder: claims, checkpoints and prepared data, killed writers included."""

from __future__ import annotations

import resource
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from killed_writers import copy_part, put_parts, writer_that_stands_still

from alignment_trainer.checkpoint.checkpoint import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpointError,
    checkpoint_name,
    newest_verified,
    verify,
    write_checkpoint,
    write_parts,
)
from alignment_trainer.checkpoint.claims import (
    CheckpointName,
    DamagedClaimError,
    FencedError,
    check_room,
    check_term,
    checkpoints_of,
    claim_term,
    claims_of,
    prune_checkpoints,
    read_claims,
    remove_unfinished,
    start_of,
)
from alignment_trainer.data.drafts import TextDraft
from alignment_trainer.data.reference import ReferenceCache
from alignment_trainer.data.storage import Folder, Storage, storage_at
from alignment_trainer.object_store.download import DiskFull, Found
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.errors import failure_of

FIELD, STATE = "spec.storage.source", "state.bin"


ODD = "a+b & c/%20 \N{LATIN SMALL LETTER A WITH DIAERESIS}#?=/run"


@pytest.fixture(params=["folder", "bucket", "odd names"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Of either kind, empty."""
    if request.param == "folder":
        return storage_at(str(tmp_path / "run"), FIELD)
    return storage_at(f"s3://{request.getfixturevalue('bucket')}/{'run' if request.param == 'bucket' else ODD}", FIELD)


def save(storage: Storage, term: int, step: int) -> Checkpoint:
    place = checkpoints_of(storage).within(checkpoint_name(term, step))
    return write_checkpoint(place, term, step, write_parts(place, [TextDraft(STATE, f"{term}/{step}")]))


def damage(checkpoint: Checkpoint) -> None:
    """A part of the same size."""
    content = checkpoint.place.get(STATE)
    checkpoint.place.put(STATE, [content[:-1] + b"!"])


def test_of_claimants_at_one_moment_each_has_a_term_of_its_own_and_the_newest_alone_may_write(storage: Storage) -> None:
    with ThreadPoolExecutor(4) as threads:
        claims = list(threads.map(lambda _: claim_term(storage, "job", 1), range(4)))
    assert sorted(claim.term for claim in claims) == [claim.term for claim in read_claims(storage)] == [1, 2, 3, 4]
    check_term(storage, 4)
    for term in (1, 2, 3):
        with pytest.raises(FencedError, match=f"term {term} is over"):
            check_term(storage, term)


def test_the_next_attempt_starts_from_the_newest_checkpoint_that_is_whole(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    claim_term(storage, "job", 1)
    kept, newest = save(storage, 1, 2), save(storage, 1, 4)
    damage(newest)
    claim = claim_term(storage, "job", 2)
    start = start_of(storage, claim)
    assert start == kept.place
    assert (verify(kept.place).here() / STATE).read_text() == "1/2"
    assert f"{newest.place}/{STATE}: its checksum is not the manifest's" in caplog.text


def test_the_newest_checkpoints_of_the_lineage_stay_whoever_made_them(storage: Storage) -> None:
    claim_term(storage, "job", 1)
    for step in (2, 4):
        save(storage, 1, step)
    claim_term(storage, "job", 2)
    save(storage, 1, 6)
    save(storage, 2, 6)
    prune_checkpoints(storage, 2, keep=2)
    assert checkpoints_of(storage).list("") == [
        f"{name}/{file}" for name in ("0001/00000004", "0002/00000006") for file in (MANIFEST, STATE)
    ]


def test_what_a_zombie_sends_counts_for_nothing_and_it_removes_nothing(storage: Storage) -> None:
    """All parts of one checkpoint, which it does not seal any more, and another one whole, after the claim."""
    claim_term(storage, "job", 1)
    start = save(storage, 1, 2)
    claim = claim_term(storage, "job", 2)
    unsealed = checkpoints_of(storage).within("0001/00000004")
    write_parts(unsealed, [TextDraft(STATE, "late")])
    save(storage, 1, 6)
    with pytest.raises(FencedError, match="term 1 is over"):
        prune_checkpoints(storage, 1, keep=1)
    assert start_of(storage, claim_term(storage, "job", 3)) == start_of(storage, claim) == start.place
    remove_unfinished(storage, 3)
    assert unsealed.begun() == set()
    assert verify(start.place) == start


class Overtaken(ObjectStore):
    """While step 2 is proven, the holder of term 1 saves step 4 and keeps nothing else."""

    def here(self, names: Iterable[str]) -> Path:
        copy = super().here(names)
        if self.prefix == "run/checkpoints/0001/00000002/":
            storage = storage_at(f"s3://{self.bucket}/run", FIELD)
            save(storage, 1, 4)
            prune_checkpoints(storage, 1, keep=1)
        return copy


def test_who_claims_never_starts_from_what_was_removed_while_it_was_proven(bucket: str) -> None:
    storage = Overtaken.of(f"s3://{bucket}/run", FIELD)
    claim_term(storage, "job", 1)
    save(storage, 1, 2)
    assert claim_term(storage, "job", 2).start == CheckpointName(term=1, step=4)


def test_a_claim_that_is_gone_is_an_error_and_never_a_fresh_start(storage: Storage) -> None:
    """As of a bucket whose lifecycle rules remove what is old."""
    claim_term(storage, "job", 1)
    save(storage, 1, 2)
    claim_term(storage, "job", 2)
    for term in (1, 2):
        claims_of(storage).remove(f"{term:04d}.json")
        for ask in (partial(check_term, storage, 2), partial(claim_term, storage, "job", 3)):
            with pytest.raises(DamagedClaimError, match=r"run/claims/0001\.json is gone; .*lifecycle rules"):
                ask()


def test_an_upload_that_was_killed_is_no_checkpoint_and_goes_with_the_next_attempt(bucket: str) -> None:
    """Its parts are in no list of objects, and cost as much as any."""
    storage = ObjectStore.of(f"s3://{bucket}/run", FIELD)
    claim_term(storage, "job", 1)
    kept = save(storage, 1, 2)
    killed = checkpoints_of(storage).within("0001/00000004")
    with writer_that_stands_still(put_parts, str(killed), STATE, 2):
        pass
    claim = claim_term(storage, "job", 2)
    assert start_of(storage, claim) == kept.place
    assert killed.begun() == {STATE}
    remove_unfinished(storage, claim.term)
    assert killed.begun() == set()
    assert verify(kept.place) == kept


def test_a_store_that_does_not_answer_is_no_damage(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An attempt that took it for damage would go on from a checkpoint before, or tell a person to look."""
    kept = save(ObjectStore.of(f"s3://{bucket}/run", FIELD), 1, 2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = ObjectStore.of(str(kept.place), FIELD)
    with pytest.raises(ConnectionError):
        newest_verified([away])


def test_damage_to_a_copy_alone_is_none_to_the_checkpoint(bucket: str) -> None:
    """As a power cut leaves files on a laptop: the copy is made anew, and no attempt falls back for it."""
    kept = save(storage_at(f"s3://{bucket}/run", FIELD), 1, 2)
    (kept.here() / STATE).write_bytes(b"")
    assert newest_verified([kept.place]) == kept
    assert (kept.here() / STATE).read_text() == "1/2"


class Counting(ObjectStore):
    """Keeps the names of what is downloaded."""

    fetched: ClassVar[list[str]] = []

    def fetch(self, wanted: Found, path: Path) -> None:
        self.fetched.append(wanted.name)
        super().fetch(wanted, path)


def test_ranks_that_want_one_copy_at_one_moment_download_it_once(bucket: str) -> None:
    store, names = Counting.of(f"s3://{bucket}/run", FIELD), ["a", "b"]
    for name in names:
        store.put(name, [name.encode()])
    with ThreadPoolExecutor(4) as ranks:
        folders = set(ranks.map(lambda _: store.here(names), range(4)))
    assert sorted(store.fetched) == names
    assert [(folder / "a").read_bytes() for folder in folders] == [b"a"]


def test_a_download_that_was_killed_is_begun_anew(bucket: str) -> None:
    store, names = storage_at(f"s3://{bucket}/run", FIELD), ["a", "b"]
    for name in names:
        store.put(name, [name.encode()])
    with writer_that_stands_still(copy_part, str(store), names):
        pass
    assert [(store.here(names) / name).read_bytes() for name in names] == [b"a", b"b"]


def test_a_copy_for_which_a_machine_has_no_room_leaves_nothing_and_says_what_to_raise(
    bucket: str, tmp_path: Path
) -> None:
    """By the limit on what this process may write, which stands for a disk that is full."""
    store = storage_at(f"s3://{bucket}/run", FIELD)
    for name in ("a", "b"):
        store.put(name, [bytes(2_000_000)])
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limit[1]))
    try:
        with pytest.raises(DiskFull, match=r"no room for a copy of 4,000,000 bytes.*ephemeralStorage") as error:
            store.here(["a", "b"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert failure_of(error.value).retryable
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file()) == 0
    assert (store.here(["a", "b"]) / "b").stat().st_size == 2_000_000


def test_a_missing_part_is_named_by_where_it_lies(storage: Storage) -> None:
    checkpoint = save(storage, 1, 2)
    checkpoint.place.remove(STATE)
    with pytest.raises(DamagedCheckpointError, match=rf"run/checkpoints/0001/00000002: the part {STATE} is missing"):
        verify(checkpoint.place)


def test_the_copy_of_a_checkpoint_can_go_and_what_it_was_copied_from_stays(storage: Storage) -> None:
    checkpoint = save(storage, 1, 2)
    copy = checkpoint.here()
    checkpoint.place.let_go(copy)
    assert copy.exists() == isinstance(storage, Folder)
    assert (checkpoint.here() / STATE).read_text() == "1/2"


def test_a_bucket_lets_go_of_no_folder_that_is_not_its_copy(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "of another job").mkdir()
    ObjectStore.of(f"s3://{bucket}/run", FIELD).let_go(tmp_path / "of another job")
    assert (tmp_path / "of another job").is_dir()


def test_a_damaged_shard_of_the_reference_is_not_read_and_removed(storage: Storage) -> None:
    cache, keys = ReferenceCache(storage.within("prepared/reference/model")), np.array([b"a" * 16, b"b" * 16])
    for key, value in zip(keys, (-1.0, -2.0), strict=True):
        cache.write(np.array([key]), np.full((1, 2), value, np.float32))
    first = cache.place.list("")[0]
    cache.place.put(first, [cache.place.get(first)[:-1] + b"!"])
    assert np.isnan(cache.read(keys, 2)).any(axis=1).sum() == 1
    cache.remove_damaged()
    assert len(cache.place.list("")) == 1


def test_a_bucket_is_never_full(bucket: str, tmp_path: Path) -> None:
    """What goes to a folder beside it is still asked for."""
    store = storage_at(f"s3://{bucket}/run", FIELD)
    check_room(store, store, (10**18, 10**18))
    with pytest.raises(Exception, match=r"spec\.output\.destination: .* this job needs 1,000,000,000,000,000,000"):
        check_room(store, Folder(tmp_path), (10, 10**18))
