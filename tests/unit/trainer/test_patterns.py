"""A pattern of names is its files in a known order, or refused with what it found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError
from tests.s3 import S3Server

from alignment_api.contract.inputs import Columns, Data, Evaluation
from alignment_api.contract.sources import DataSource, MountedSource, ReadableSource, WritableSource
from alignment_trainer.data.finding import find_data
from alignment_trainer.data.layouts.parsers import PARSERS
from alignment_trainer.data.patterns import NoSource, matching_files
from alignment_trainer.data.rows import read_rows
from alignment_trainer.data.sources import resolve_data
from alignment_trainer.object_store.store import ObjectStore
from alignment_trainer.process.errors import UserError

PAIR = {"prompt": "Hi.", "chosen": "Yes.", "rejected": "No."}


def write(folder: Path, *names: str, value: object = PAIR) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(value) + "\n"
        path.write_bytes(gzip.compress(line.encode()) if name.endswith(".gz") else line.encode())


def matched(folder: Path, pattern: str) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in matching_files(folder / pattern)]


def test_files_come_in_the_order_of_their_characters_whatever_the_disk_says(tmp_path: Path) -> None:
    write(tmp_path, "part-10.jsonl", "part-2.jsonl", "part-1.jsonl", "Part-3.jsonl", "other.jsonl", "part-1.csv")
    assert matched(tmp_path, "part-*.jsonl") == ["part-1.jsonl", "part-10.jsonl", "part-2.jsonl"]
    assert matched(tmp_path, "part-?.jsonl") == ["part-1.jsonl", "part-2.jsonl"]


def test_a_folder_may_be_a_pattern_and_a_name_ends_where_it_does(tmp_path: Path) -> None:
    write(tmp_path, "de/a.jsonl", "en/a.jsonl", "en/deep/a.jsonl", "a.jsonl")
    assert matched(tmp_path, "*/a.jsonl") == ["de/a.jsonl", "en/a.jsonl"]


def test_rows_are_numbered_over_all_files_and_placed_by_file_and_line(tmp_path: Path) -> None:
    write(tmp_path, "en/part-00001-of-2.jsonl.gz", "en/part-00000-of-2.jsonl.gz", "de/part-00000-of-2.jsonl.gz")
    rows = list(read_rows(tmp_path / "*" / "part-0000?-of-*.jsonl.gz"))
    assert [(row.number, row.place) for row in rows] == [
        (1, "de/part-00000-of-2.jsonl.gz:1"),
        (2, "en/part-00000-of-2.jsonl.gz:1"),
        (3, "en/part-00001-of-2.jsonl.gz:1"),
    ]
    assert all(row.value == PAIR for row in rows)


def test_a_hidden_file_is_matched_by_a_dot_alone_and_then_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", ".b.jsonl")
    assert matched(tmp_path, "*.jsonl") == matched(tmp_path, "?.jsonl") == ["a.jsonl"]
    with pytest.raises(NoSource, match=r"matches `\.b\.jsonl`, which is hidden; narrow the pattern"):
        matched(tmp_path, ".*.jsonl")


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("train-*.parquet", r"matches nothing; its folder holds a\.csv, a\.jsonl, a\.jsonl\.lock, b\.jsonl\.gz, dir"),
        ("absent/*.jsonl", r"matches nothing: there is no folder .*absent"),
        ("a.jsonl*", r"matches `a\.jsonl\.lock`, which is no \.jsonl, .* file; narrow the pattern"),
        ("d?r", r"matches `dir`, which is a folder; write `d\?r/\*` or narrow"),
        ("a.[cj]s*", r"matches nothing"),
        ("?.*.gz", None),
        ("[ab].csv?", r"matches nothing"),
        ("*.jsonl*", r"matches `a\.jsonl\.lock`"),
    ],
)
def test_a_pattern_that_cannot_be_one_source_says_what_it_found(
    tmp_path: Path, pattern: str, complaint: str | None
) -> None:
    write(tmp_path, "a.csv", "a.jsonl", "a.jsonl.lock", "b.jsonl.gz", "dir/a.txt")
    if complaint is None:
        assert matched(tmp_path, pattern) == ["b.jsonl.gz"]
        return
    with pytest.raises(NoSource, match=complaint):
        matched(tmp_path, pattern)


@pytest.mark.parametrize("names", [("a.csv", "b.jsonl"), ("a.jsonl", "a.jsonl.gz"), ("a.json", "b.jsonl")])
def test_files_of_several_kinds_are_no_source(tmp_path: Path, names: tuple[str, str]) -> None:
    write(tmp_path, *names)
    with pytest.raises(NoSource, match=rf"several kinds, as `{names[0]}` and `{names[1]}`; write a pattern of one"):
        matched(tmp_path, "*")


DATA = Data(source="pvc://data/*.jsonl")


def test_files_whose_rows_are_read_otherwise_are_refused_by_both_names(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl")
    write(tmp_path, "b.jsonl", value=PAIR | {"system": "Be kind."})
    parser, pattern = PARSERS["preferences"], tmp_path / "*.jsonl"
    parser.check_source(pattern, "pvc://data/*.jsonl", DATA, "spec.data")
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Yes."}]
    write(tmp_path, "c.jsonl", value={"chosen": turns, "rejected": [turns[0], turns[1] | {"content": "No."}]})
    with pytest.raises(UserError, match=r"the rows of `a\.jsonl` are read as texts; .*, those of `c\.jsonl` as mess"):
        parser.check_source(pattern, "pvc://data/*.jsonl", DATA, "spec.data")


def test_a_column_that_one_of_the_files_lacks_is_told_with_that_file(tmp_path: Path) -> None:
    write(tmp_path, "a.jsonl", value={"question": "Hi.", **PAIR})
    write(tmp_path, "b.jsonl")
    data = DATA.model_copy(update={"columns": Columns(prompt="question")})
    with pytest.raises(UserError, match=r"no row of pvc://data/\*\.jsonl: b\.jsonl has a `question`"):
        PARSERS["preferences"].check_source(tmp_path / "*.jsonl", "pvc://data/*.jsonl", data, "spec.data")


def identity(folder: Path) -> dict[str, str | None]:
    source, held_out = f"file://{folder}/part-*.jsonl", f"file://{folder}/held-?.jsonl"
    data = Data(source=source, evaluation=Evaluation(source=held_out))
    paths = {text: text.removeprefix("file://") for text in (source, held_out)}
    return find_data(data, "spec.data", paths, None).identity


def test_what_tells_rows_from_others_covers_the_list_of_files(tmp_path: Path) -> None:
    write(tmp_path, "part-1.jsonl", "part-2.jsonl", "held-1.jsonl")
    seen = [identity(tmp_path)]
    write(tmp_path, "other.jsonl", "part-3.csv")
    assert identity(tmp_path) == seen[0]
    write(tmp_path, "part-3.jsonl")
    seen.append(identity(tmp_path))
    (tmp_path / "part-3.jsonl").rename(tmp_path / "part-0.jsonl")
    seen.append(identity(tmp_path))
    write(tmp_path, "part-0.jsonl", value=PAIR | {"prompt": "Ho."})
    seen.append(identity(tmp_path))
    assert len({one["train"] for one in seen}) == 4
    assert len({one["evaluation"] for one in seen}) == 1


def test_a_pattern_in_a_bucket_is_its_files_here_by_the_same_rules(bucket: str, s3_server: S3Server) -> None:
    store = ObjectStore.of(f"s3://{bucket}/sets", "field")
    for name in ("en/part-2.jsonl", "en/part-10.jsonl", "en/deep/part-1.jsonl", "en/notes.txt", "de/part-1.jsonl"):
        store.put(name, [(json.dumps(PAIR | {"prompt": name}) + "\n").encode()])

    def resolve(pattern: str) -> list[object]:
        nonlocal revision
        found = resolve_data(f"s3://{bucket}/sets/{pattern}", {}, "train", "main", "spec.data.source")
        revision = found.revision
        return [row.place for row in read_rows(found.path)]

    revision: str | None = None
    assert resolve("en/part-*.jsonl") == ["part-10.jsonl:1", "part-2.jsonl:1"]
    before = revision
    assert resolve("*/part-?.jsonl") == ["de/part-1.jsonl:1", "en/part-2.jsonl:1"]
    store.put("en/part-3.jsonl", [(json.dumps(PAIR) + "\n").encode()])
    assert resolve("en/part-*.jsonl") == ["part-10.jsonl:1", "part-2.jsonl:1", "part-3.jsonl:1"]
    assert revision != before
    for pattern, complaint in (
        ("en/*.parquet", r"matches nothing; its folder holds deep, notes\.txt, part-10\.jsonl"),
        ("en/*", "matches `deep`, which is a folder"),
        ("en/n*", r"matches `notes\.txt`, which is no \.jsonl"),
    ):
        with pytest.raises(UserError, match=rf"spec\.data\.source: `s3://{bucket}/sets/en/.*` {complaint}"):
            resolve(pattern)


@pytest.mark.parametrize("scheme", ["file:///data/", "file://./data/", "pvc://data/", "s3://bucket/data/"])
def test_rows_alone_may_be_a_pattern(scheme: str) -> None:
    source = f"{scheme}part-0000?-of-*.jsonl.gz"
    assert TypeAdapter(DataSource).validate_python(source) == source
    for other in (ReadableSource, WritableSource, MountedSource):
        if other is not MountedSource or not scheme.startswith("s3"):
            with pytest.raises(ValidationError, match=r"has a pattern .* and only data may be one; write one path"):
                TypeAdapter(other).validate_python(source)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("pvc://data/**/a.jsonl", r"`\*\*` is no part of a pattern; write `\*` .* or a folder for all files below it"),
        ("file:///data/part-[0-9]*.jsonl", r"`\[` is no part of a pattern"),
        ("s3://bucket/{a,b}-*.jsonl", r"`\{` is no part of a pattern"),
        ("pvc://dat*/a.jsonl", "names no claim"),
        ("s3://buck?t/a.jsonl", "names no bucket"),
        ("hf://org/name-*", "is not a repository of the hub"),
    ],
)
def test_what_is_no_pattern_is_refused_in_the_manifest(source: str, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        TypeAdapter(DataSource).validate_python(source)
