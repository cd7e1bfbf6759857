"""Sources become paths, or the mistake is told with what is there."""

from pathlib import Path

import pytest

from alignment_api.contract.inputs import Model
from alignment_trainer.data.sources import resolve_data, resolve_model, split_files
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
