"""Sources become paths, or the mistake is told with what is there."""

from pathlib import Path

import pytest
from tests.s3 import S3Server

from alignment_api.contract.inputs import Model
from alignment_trainer.data.sources import resolve_data, resolve_model, split_files
from alignment_trainer.object_store.download import download
from alignment_trainer.object_store.store import Found, ObjectStore
from alignment_trainer.process.errors import UserError


def test_a_volume_is_where_the_context_says(tmp_path: Path) -> None:
    resolved = resolve_model(Model(source="pvc://models/small"), {"pvc://models/small": str(tmp_path)})
    assert (resolved.path, resolved.revision) == (tmp_path, None)


def test_a_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "pair.jsonl").touch()
    source = "pvc://data/pairs.jsonl"
    with pytest.raises(UserError, match=r"spec\.data\.source: `pvc://data/pairs\.jsonl` does not exist .* pair\.jsonl"):
        resolve_data(source, {source: str(tmp_path / "pairs.jsonl")}, "train", "main", "spec.data.source")


def test_a_source_without_a_path_is_told_by_its_field() -> None:
    with pytest.raises(UserError, match=r"spec\.model\.source: the runtime gave no path for `file:///m`"):
        resolve_model(Model(source="file:///m"), {})


def test_the_files_of_a_split_follow_the_hubs_naming() -> None:
    files = [
        "README.md",
        "data/train_prefs-00000-of-00001.parquet",
        "data/train_sft-00000-of-00001.parquet",
        "data/test_prefs-00000-of-00001.parquet",
        "train.jsonl",
        "train/part-1.parquet",
        "train/info.json",
        "constrain.jsonl",
    ]
    assert split_files(files, "train_prefs") == ["data/train_prefs-00000-of-00001.parquet"]
    assert split_files(files, "train") == ["train.jsonl", "train/part-1.parquet"]
    assert split_files(files, "validation") == []


def put(source: str, **files: str) -> None:
    store = ObjectStore.of(source, "field")
    for name, text in files.items():
        store.put(name.replace("__", "."), [text.encode()])


def content(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_model_in_a_bucket_is_a_folder_here_that_is_downloaded_once(bucket: str, s3_server: S3Server) -> None:
    model = Model(source=f"s3://{bucket}/models/small/")
    put(model.source, config__json="{}", model__safetensors="weights", README__md="read me")
    put(f"s3://{bucket}/models/smaller", config__json="another")
    first = resolve_model(model, {})
    assert content(first.path) == {"config.json": "{}", "model.safetensors": "weights"}
    at = s3_server.buckets / bucket / "models" / "small" / "model.safetensors"
    at.write_text("WEIGHTS")  # beside the store, which does not see it
    assert resolve_model(model, {}, first.revision) == first
    assert content(first.path)["model.safetensors"] == "weights"


def test_a_model_in_a_bucket_that_changed_since_it_was_pinned_is_refused_and_one_beside_it_is_no_concern(
    bucket: str,
) -> None:
    model = Model(source=f"s3://{bucket}/small")
    put(model.source, config__json="{}", model__safetensors="weights")
    pinned = resolve_model(model, {}).revision
    put(model.source, README__md="new")
    assert resolve_model(model, {}, pinned).revision == pinned
    put(model.source, model__safetensors="WEIGHTS")
    with pytest.raises(
        UserError, match=r"spec\.model\.source: `s3://.*/small` is not the model that `prepare`"
    ) as error:
        resolve_model(model, {}, pinned)
    assert error.value.reason == "ModelChanged"


def test_a_download_that_was_killed_is_begun_anew(bucket: str, tmp_path: Path) -> None:
    model = Model(source=f"s3://{bucket}/small")
    put(model.source, config__json="{}", model__safetensors="weights")
    folder = resolve_model(model, {}).path
    (folder / "model.safetensors").write_text("wei")
    folder.rename(folder.with_suffix(".partial"))
    assert content(resolve_model(model, {}).path) == {"config.json": "{}", "model.safetensors": "weights"}


def test_an_object_whose_name_leads_out_of_its_folder_is_refused(bucket: str, tmp_path: Path) -> None:
    store, found = ObjectStore.of(f"s3://{bucket}", "field"), Found("../../stolen.json", 2, '"0"')
    with pytest.raises(OSError, match="leads out of its folder"):
        download(store, [found], tmp_path / "a" / "b")
    assert not (tmp_path / "stolen.json").exists()


def test_data_in_a_bucket_is_a_file_or_a_folder_of_them(bucket: str) -> None:
    put(f"s3://{bucket}/data", a__jsonl="1", b__jsonl="2", notes__txt="no rows")
    put(f"s3://{bucket}", a__jsonl="other")
    folder = resolve_data(f"s3://{bucket}/data", {}, "train", "main", "spec.data.source")
    file = resolve_data(f"s3://{bucket}/data/a.jsonl", {}, "train", "main", "spec.data.source")
    assert content(folder.path) == {"a.jsonl": "1", "b.jsonl": "2"}
    assert (file.path.name, file.path.read_text()) == ("a.jsonl", "1")
    put(f"s3://{bucket}/data", b__jsonl="3")
    changed = resolve_data(f"s3://{bucket}/data", {}, "train", "main", "spec.data.source")
    assert content(changed.path)["b.jsonl"] == "3"
    assert len({folder.revision, file.revision, changed.revision}) == 3


def test_what_is_not_in_a_bucket_is_told_with_what_is(bucket: str) -> None:
    put(f"s3://{bucket}/data", notes__txt="no rows")
    for source in ("data", "data/notes.txt", "nothing", "nothing.jsonl"):
        with pytest.raises(UserError, match=rf"spec\.data\.source: `s3://{bucket}/{source}` is neither a \.jsonl"):
            resolve_data(f"s3://{bucket}/{source}", {}, "train", "main", "spec.data.source")
    with pytest.raises(UserError, match=r"spec\.model\.source: .* holds no config\.json; below it are notes\.txt"):
        resolve_model(Model(source=f"s3://{bucket}/data"), {})
