"""No write of one job reaches what another job, or its own user, has put into a folder."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from alignment_api.contract.context import Context
from alignment_trainer.checkpoint.claims import claim_term
from alignment_trainer.checkpoint.ownership import OUTPUT, STORAGE, check_folders, take_folders
from alignment_trainer.data.storage import Folder
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.errors import UserError


def context_of(uid: str, storage: Path, output: Path, **fields: Any) -> Context:
    context = {
        **{"job": f"name-of-{uid}", "uid": uid, "stage": "prepare", "role": "prepare", "index": 0, "life": 1},
        **{"replicas": 1, "processes": 1, "gpus": 0, "job_file": "", "storage": str(storage), "output": str(output)},
        **{"sources": {}, "peers": {}, "host": "127.0.0.1", "port": 0, "token_file": "", "outcome_file": ""},
        **{"rendezvous": "", "notice_seconds": 30, "scratch": ""},
    }
    return Context.model_validate(context | fields)


def refusal(context: Context) -> str:
    with pytest.raises(UserError) as refused:
        take_folders(context)
    return f"{refused.value.reason}: {refused.value}"


def test_a_job_takes_its_folders_again_in_every_life_and_keeps_what_it_wrote(tmp_path: Path) -> None:
    for life in (1, 2):
        take_folders(context_of("a", tmp_path, tmp_path, life=life))  # a laptop's run folder is both
        for name in (*OUTPUT.names, *STORAGE.names):
            (tmp_path / name).mkdir(exist_ok=True)
    check_folders(context_of("a", tmp_path, tmp_path))


@pytest.mark.parametrize("name", OUTPUT.names)
def test_an_output_that_holds_what_nobody_marked_is_refused_and_left_as_it_is(name: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("the user's own")
    assert refusal(context_of("a", tmp_path / "storage", tmp_path / "out")) == (
        f"ForeignOutput: spec.output.destination: {tmp_path}/out holds `{name}`, which this job did not write; move "
        "that away, or name a folder of its own"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


def test_a_link_that_leads_nowhere_is_there_too(tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(tmp_path / "gone")
    assert "holds `model`" in refusal(context_of("a", tmp_path / "storage", tmp_path))


@pytest.mark.parametrize("name", STORAGE.names)
def test_a_storage_that_holds_what_nobody_marked_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    assert f"ForeignStorage: spec.storage.source: {tmp_path} holds `{name}`" in refusal(
        context_of("a", tmp_path, tmp_path / "out")
    )


def test_what_lies_beside_what_a_job_writes_is_no_concern(tmp_path: Path) -> None:
    for name in ("lost+found", "model.bak", "notes.txt"):
        (tmp_path / name).mkdir()
    take_folders(context_of("a", tmp_path, tmp_path))
    assert json.loads((tmp_path / STORAGE.mark).read_text())["uid"] == "a"


def test_a_second_job_at_one_output_is_refused_by_name_before_the_first_has_written_anything(tmp_path: Path) -> None:
    take_folders(context_of("a", tmp_path / "a", tmp_path / "out"))
    assert refusal(context_of("b", tmp_path / "b", tmp_path / "out")) == (
        f"ForeignOutput: spec.output.destination: {tmp_path}/out belongs to job name-of-a (a), this is job b; name a "
        "folder of its own"
    )


def test_a_second_job_at_one_storage_is_refused_before_it_writes_there(tmp_path: Path) -> None:
    take_folders(context_of("a", tmp_path / "a", tmp_path / "out-a"))
    assert "ForeignStorage: spec.storage.source: " in refusal(context_of("b", tmp_path / "a", tmp_path / "out-b"))
    assert json.loads((tmp_path / "a" / STORAGE.mark).read_text())["uid"] == "a"


def test_a_job_that_began_under_a_release_without_marks_goes_on(tmp_path: Path) -> None:
    claim_term(Folder(tmp_path / "a"), "a", 1)
    (tmp_path / "out" / "model").mkdir(parents=True)
    take_folders(context_of("a", tmp_path / "a", tmp_path / "out"))
    assert "ForeignStorage" in refusal(context_of("b", tmp_path / "a", tmp_path / "b"))


def test_a_folder_within_what_another_job_replaces_is_refused(tmp_path: Path) -> None:
    take_folders(context_of("a", tmp_path / "a", tmp_path / "out"))
    within = refusal(context_of("b", tmp_path / "b", tmp_path / "out" / "model" / "b"))
    assert f"{tmp_path}/out/model/b lies within `model` of job name-of-a (a)" in within
    take_folders(context_of("c", tmp_path / "c", tmp_path / "out" / "c"))  # beside it there is room


def test_a_mark_that_cannot_be_read_is_anothers(tmp_path: Path) -> None:
    (tmp_path / OUTPUT.mark).write_text("{")
    assert ".alignment-output.json cannot be read" in refusal(context_of("a", tmp_path / "a", tmp_path))


def test_an_output_that_became_anothers_is_refused_before_the_export(tmp_path: Path) -> None:
    mine = context_of("a", tmp_path / "a", tmp_path / "out")
    take_folders(mine)
    (tmp_path / "out" / OUTPUT.mark).unlink()  # somebody cleaned up, and another job came
    take_folders(context_of("b", tmp_path / "b", tmp_path / "out"))
    with pytest.raises(UserError, match="belongs to job name-of-b"):
        check_folders(mine)


def test_a_bucket_is_marked_by_the_job_that_writes_in_it_and_refused_to_every_other(
    bucket: str, tmp_path: Path
) -> None:
    def mine(uid: str, output: str) -> Context:
        return context_of(uid, tmp_path / uid, tmp_path).model_copy(update={"output": f"s3://{bucket}/{output}"})

    store = ObjectStore.of(f"s3://{bucket}", "field")
    for life in (1, 2):
        take_folders(mine("a", "out").model_copy(update={"life": life}))
        store.put("out/model/config.json", [b"{}"])
    assert store.list("") == [f"out/{OUTPUT.mark}", "out/model/config.json"]
    check_folders(mine("a", "out"))
    assert f"s3://{bucket}/out belongs to job name-of-a (a), this is job b" in refusal(mine("b", "out"))
    assert "/out/model/b lies within `model` of job name-of-a (a)" in refusal(mine("b", "out/model/b"))
    store.put("users/model/weights", [b""])
    assert "/users holds `model`, which this job did not write" in refusal(mine("c", "users"))
    assert store.list("users/") == ["users/model/weights"]


def test_a_storage_in_a_bucket_is_one_jobs_alone_whichever_lies_within_the_other(bucket: str, tmp_path: Path) -> None:
    def at(uid: str, prefix: str) -> Context:
        return context_of(uid, tmp_path, tmp_path / uid).model_copy(update={"storage": f"s3://{bucket}{prefix}"})

    store = ObjectStore.of(f"s3://{bucket}", "field")
    for life in (1, 2):
        take_folders(at("a", "/runs/a").model_copy(update={"life": life}))
        store.put("runs/a/prepared/manifest.json", [b"{}"])
    refused = refusal(at("b", "/runs/a"))
    assert f"ForeignStorage: spec.storage.source: s3://{bucket}/runs/a belongs to job name-of-a (a)" in refused
    for name in STORAGE.names:
        assert f"lies within `{name}` of job name-of-a (a)" in refusal(at("b", f"/runs/a/{name}/0001"))
    take_folders(at("c", "/checkpoints/c"))
    for around in ("", "/"):
        assert "holds `checkpoints`, which this job did not write" in refusal(at("d", around))
    for beside in ("/runs", "/runs/a2", "/runs/a/b"):
        take_folders(at(f"e{beside}", beside))
    check_folders(at("a", "/runs/a"))


def _takes(context: Context) -> bool:
    try:
        take_folders(context)
    except UserError:
        return False
    return True


def test_of_jobs_that_start_at_one_moment_at_one_output_one_has_it(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        for number in range(50):
            folder = tmp_path / str(number)
            taken = threads.map(_takes, [context_of(uid, folder / uid, folder / "out") for uid in "abcd"])
            assert sorted(taken) == [False, False, False, True]
