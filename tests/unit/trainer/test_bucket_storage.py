"""A storage in a bucket is as good as a folder: claims, checkpoints and prepared data, killed writers included."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from killed_writers import put_parts, writer_that_stands_still

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
    FencedError,
    check_room,
    check_term,
    checkpoints_of,
    claim_term,
    prune_checkpoints,
    read_claims,
    remove_unfinished,
    start_of,
)
from alignment_trainer.data.drafts import TextDraft
from alignment_trainer.data.reference import ReferenceCache
from alignment_trainer.data.storage import Folder, Storage, storage_at
from alignment_trainer.object_store.store import ObjectStore

STATE = "state.bin"


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Either kind, empty."""
    place = str(tmp_path / "run") if request.param == "folder" else f"s3://{request.getfixturevalue('bucket')}/run"
    return storage_at(place, "spec.storage.source")


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


def test_an_upload_that_was_killed_is_no_checkpoint_and_goes_with_the_next_attempt(bucket: str) -> None:
    """Its parts are in no list of objects, and cost as much as any."""
    storage = ObjectStore.of(f"s3://{bucket}/run", "spec.storage.source")
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
    kept = save(ObjectStore.of(f"s3://{bucket}/run", "spec.storage.source"), 1, 2)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    away = ObjectStore.of(str(kept.place), "spec.storage.source")
    with pytest.raises(ConnectionError):
        newest_verified([away])


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
    ObjectStore.of(f"s3://{bucket}/run", "spec.storage.source").let_go(tmp_path / "of another job")
    assert (tmp_path / "of another job").is_dir()


def test_a_damaged_shard_of_the_reference_is_not_read_and_removed(storage: Storage) -> None:
    cache, keys = ReferenceCache(storage.within("prepared/reference/model")), np.array([b"a" * 16, b"b" * 16])
    for key, value in zip(keys, (-1.0, -2.0), strict=True):
        cache.write(np.array([key]), np.full((1, 2), value, np.float32))
    first = cache.place.list("")[0]
    cache.place.put(first, [cache.place.get(first)[:-1] + b"!"])
    assert np.isnan(cache.read(keys)).any(axis=1).sum() == 1
    cache.remove_damaged()
    assert len(cache.place.list("")) == 1


def test_a_bucket_is_never_full(bucket: str, tmp_path: Path) -> None:
    """What goes to a folder beside it is still asked for."""
    store = storage_at(f"s3://{bucket}/run", "spec.storage.source")
    check_room(store, store, (10**18, 10**18))
    with pytest.raises(Exception, match=r"spec\.output\.destination: .* this job needs 1,000,000,000,000,000,000"):
        check_room(store, Folder(tmp_path), (10, 10**18))
