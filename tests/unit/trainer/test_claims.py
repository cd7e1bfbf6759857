"""Fencing terms order the writers of a storage; a checkpoint counts by its lineage."""

import json
import multiprocessing
from pathlib import Path

import pytest

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import ModelReport, ModelShape
from alignment_api.derived.precision import with_precision
from alignment_trainer.checkpoint.checkpoint import (
    DamagedCheckpointError,
    checkpoint_name,
    write_checkpoint,
    write_parts,
)
from alignment_trainer.checkpoint.claims import (
    CheckpointName,
    FencedError,
    check_room,
    checkpoints_of,
    claim_term,
    needed_bytes,
    newest_start,
    prune_checkpoints,
    read_claims,
    remove_unfinished,
    resume_from,
    start_of,
)
from alignment_trainer.data.drafts import TextDraft
from alignment_trainer.data.storage import Folder
from alignment_trainer.process.errors import UserError

UID = "job-a"


def checkpoint(storage: Path, term: int, step: int) -> Path:
    place = checkpoints_of(Folder(storage)).within(checkpoint_name(term, step))
    parts = write_parts(place, [TextDraft("state.bin", f"{term}/{step}")])
    return write_checkpoint(place, term, step, parts).here()


def test_the_first_claim_starts_from_the_model_as_it_came(tmp_path: Path) -> None:
    claim = claim_term(Folder(tmp_path), UID, attempt=1)
    assert (claim.term, claim.uid, claim.attempt, claim.start) == (1, UID, 1, None)
    stored = json.loads((tmp_path / "claims" / "0001.json").read_text())
    assert stored["uid"] == UID
    assert stored["start"] is None


def test_a_new_attempt_starts_from_the_newest_checkpoint_of_the_lineage(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    checkpoint(tmp_path, 1, 2)
    newest = checkpoint(tmp_path, 1, 4)
    claim = claim_term(Folder(tmp_path), UID, 2)
    assert claim.start == CheckpointName(term=1, step=4)
    assert start_of(Folder(tmp_path), claim) == Folder(newest)


def test_what_an_older_term_saves_after_a_claim_is_never_read(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    checkpoint(tmp_path, 1, 2)
    assert claim_term(Folder(tmp_path), UID, 2).start == CheckpointName(term=1, step=2)
    checkpoint(tmp_path, 1, 90)
    assert claim_term(Folder(tmp_path), UID, 3).start == CheckpointName(term=1, step=2)
    checkpoint(tmp_path, 3, 3)
    checkpoint(tmp_path, 2, 50)
    assert claim_term(Folder(tmp_path), UID, 4).start == CheckpointName(term=3, step=3)


def test_a_damaged_newest_falls_back_over_the_border_of_terms(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    checkpoint(tmp_path, 1, 2)
    checkpoint(tmp_path, 1, 4)
    claim_term(Folder(tmp_path), UID, 2)
    (checkpoint(tmp_path, 2, 6) / "state.bin").write_bytes(b"xx")
    checkpoint(tmp_path, 1, 5)
    assert claim_term(Folder(tmp_path), UID, 3).start == CheckpointName(term=1, step=4)


def test_damage_everywhere_is_an_error_and_never_a_fresh_start(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    (checkpoint(tmp_path, 1, 2) / "state.bin").unlink()
    with pytest.raises(DamagedCheckpointError, match="every checkpoint is damaged"):
        claim_term(Folder(tmp_path), UID, 2)


def test_a_start_that_is_gone_is_an_error_and_never_a_fresh_start(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    folder = checkpoint(tmp_path, 1, 2)
    claim_term(Folder(tmp_path), UID, 2)
    (folder / "manifest.json").unlink()
    with pytest.raises(DamagedCheckpointError, match="are gone"):
        claim_term(Folder(tmp_path), UID, 3)


def test_a_lineage_keeps_its_newest_checkpoints_whoever_made_them(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    kept = [checkpoint(tmp_path, 1, step) for step in (2, 4)][1:]
    claim_term(Folder(tmp_path), UID, 2)
    checkpoint(tmp_path, 1, 6)
    kept.append(checkpoint(tmp_path, 2, 6))
    prune_checkpoints(Folder(tmp_path), 2, keep=2)
    assert sorted(path.parent for path in tmp_path.rglob("manifest.json")) == kept
    checkpoint(tmp_path, 2, 8)
    prune_checkpoints(Folder(tmp_path), 2, keep=1)
    assert claim_term(Folder(tmp_path), UID, 3).start == CheckpointName(term=2, step=8)


def test_what_a_killed_save_left_goes_with_the_next_attempt(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    saved, killed, written = checkpoint(tmp_path, 1, 2), *(checkpoint(tmp_path, term, 4) for term in (1, 2))
    for folder in (killed, written):
        (folder / "manifest.json").unlink()
    (emptied := killed.with_name("00000006")).mkdir()  # before its first file, or after its last was removed
    term = claim_term(Folder(tmp_path), UID, 2).term
    remove_unfinished(Folder(tmp_path), term)
    assert not killed.exists()
    assert not emptied.exists()
    assert saved.is_dir()
    assert written.is_dir(), "its own, which it may be writing"
    write_parts(Folder(killed), [TextDraft("state.bin", "late")])  # by a zombie
    prune_checkpoints(Folder(tmp_path), term, keep=1)
    assert not killed.exists()
    assert start_of(Folder(tmp_path), claim_term(Folder(tmp_path), UID, 3)) == Folder(saved)


def test_a_zombie_removes_nothing_and_ends(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    start = checkpoint(tmp_path, 1, 2)
    claim_term(Folder(tmp_path), UID, 2)
    checkpoint(tmp_path, 1, 4)
    with pytest.raises(FencedError, match="term 1 is over: attempt 2 has claimed term 2"):
        prune_checkpoints(Folder(tmp_path), 1, keep=1)
    assert start.is_dir()


def test_another_jobs_storage_is_refused_by_name(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    with pytest.raises(UserError, match=r"belongs to job job-a, this is job job-b.*spec\.checkpoint\.resumeFrom"):
        claim_term(Folder(tmp_path), "job-b", 1)
    assert len(read_claims(Folder(tmp_path))) == 1


def test_resume_from_reads_the_last_checkpoint_and_writes_nothing(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 1)
    newest = checkpoint(tmp_path, 1, 4)
    before = sorted(tmp_path.rglob("*"))
    assert resume_from(Folder(tmp_path), "pvc://a").here() == newest
    assert sorted(tmp_path.rglob("*")) == before


def test_resume_from_a_storage_without_checkpoints_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"spec\.checkpoint\.resumeFrom: `pvc://a` .* holds no checkpoint"):
        resume_from(Folder(tmp_path), "pvc://a")


def test_an_attempt_that_comes_late_cannot_fence_the_one_after_it(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path), UID, 2)
    saved = checkpoint(tmp_path, 1, 4)
    with pytest.raises(FencedError, match="attempt 1 comes after attempt 2 has claimed"):
        claim_term(Folder(tmp_path), UID, 1)
    assert [claim.attempt for claim in read_claims(Folder(tmp_path))] == [2]
    prune_checkpoints(Folder(tmp_path), term=1, keep=1)  # the newer one writes on
    claim = claim_term(Folder(tmp_path), UID, 3)
    assert start_of(Folder(tmp_path), claim) == Folder(saved)


def claim_many(storage: Path, count: int) -> list[int]:
    return [claim_term(Folder(storage), UID, 1).term for _ in range(count)]


def test_processes_that_race_get_different_terms(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    with context.Pool(2) as pool:
        terms = [term for part in pool.starmap(claim_many, [(tmp_path, 25)] * 2, chunksize=1) for term in part]
        pool.close()
        pool.join()
    assert sorted(terms) == list(range(1, 51))
    assert newest_start(Folder(tmp_path), read_claims(Folder(tmp_path))) is None
    assert not list((tmp_path / "claims").glob(".*"))


def test_a_job_with_adapters_needs_room_for_checkpoints_of_them_and_for_the_whole_export() -> None:
    """By hand: 12 bytes of each of 2 x 4 x 8 numbers (one map of two layers, rank 4), of three checkpoints and one."""
    shape = ModelShape(layers=2, hidden=4, queries=4, keys=2, inner=8, vocabulary=9, embeddings=36, tied=True)
    model = ModelReport(parameters=1000, fingerprint="", shape=shape)
    training = {"precision": "bf16", "lora": {"rank": 4, "targets": ["q_proj"]}}
    spec = {"model": {"source": "pvc://a/b"}, "data": {"source": "pvc://a/c"}, "algorithm": {"dpo": {}}}
    with_adapters, whole = (AlignmentJobSpec.model_validate(spec | more) for more in ({"training": training}, {}))
    assert needed_bytes(model, with_adapters) == (4 * 12 * 64, 2 * 1000 + 4 * 64)
    assert needed_bytes(model, with_precision(whole, "bf16")) == (4 * 12 * 1000, 2 * 1000)


def test_a_full_volume_is_told_what_it_has_and_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"bytes free, this job needs 1,000,000,000,000,000,010; take a larger volume"
    ) as e:
        check_room(Folder(tmp_path), Folder(tmp_path), (10**18, 10))
    assert e.value.reason == "StorageFull"
    check_room(Folder(tmp_path), Folder(tmp_path), (1, 1))
