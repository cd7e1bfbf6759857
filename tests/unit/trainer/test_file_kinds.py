"""Rows are the same in every kind of file; what cannot be read is refused by file and line."""

import gzip
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pytest
from pyarrow import parquet  # type: ignore[import-untyped]

from alignment_trainer.data.rows import read_rows
from alignment_trainer.process.errors import UserError

VALUES = [{"prompt": f"{n}? \u65e5\n{n}", "chosen": 'a, "b"', "rejected": "c" * n} for n in range(1, 3000)]
LINES = "".join(json.dumps(value) + "\n" for value in VALUES)


def write(path: Path) -> Path:
    name = path.name
    if name.endswith(".parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(VALUES), path)
        return path
    if name.endswith(".arrow"):
        table = pyarrow.Table.from_pylist(VALUES)
        new = pyarrow.ipc.new_stream if name.startswith("stream") else pyarrow.ipc.new_file
        with new(str(path), table.schema) as sink:
            sink.write_table(table)
        return path
    text = LINES
    if ".json" in name and ".jsonl" not in name:
        text = json.dumps(VALUES, indent=2 if "over" in name else None, ensure_ascii=False)
    if ".csv" in name or ".tsv" in name:
        between = "," if ".csv" in name else "\t"
        quoted = [between.join('"' + each.replace('"', '""') + '"' for each in value.values()) for value in VALUES]
        text = "\ufeff" + "\r\n".join([between.join(VALUES[0]), *quoted])
    body = text.encode()
    if name.endswith(".gz"):
        body = gzip.compress(body)
    if name.endswith(".zst"):
        body = pyarrow.compress(body, "zstd", asbytes=True)
    path.write_bytes(body)
    return path


KINDS = ("a.ndjson", "a.json", "over.json", "a.csv", "a.tsv", "a.arrow", "stream.arrow", "a.parquet")
PACKED = ("a.jsonl.gz", "a.json.zst", "a.csv.gz")


@pytest.mark.parametrize("name", [*KINDS, *PACKED])
def test_rows_are_the_same_in_every_kind_of_file(tmp_path: Path, name: str) -> None:
    assert [row.value for row in read_rows(write(tmp_path / name))] == VALUES


@pytest.mark.parametrize(
    ("name", "body", "complaint"),
    [
        ("a.jsonl", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of git-lfs"),
        ("a.jsonl", b"<!DOCTYPE html>", "HTML or XML"),
        ("a.jsonl", b"PAR1....", "Parquet by its content"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), "UTF-16; write UTF-8"),
        ("a.jsonl.gz", gzip.compress(LINES.encode())[:-2000], "a.jsonl.gz: ends early or is damaged"),
        ("a.json", b'[{"a": 1},\n{"a": ]', "a.json:2: not JSON"),
        ("a.json", b'[{"a": 1}', "a.json:1: not JSON"),
        ("a.json", b'[{"a": 1}] 2', "something stands behind the array"),
        ("a.json", b'[{"a": 1},]', "a.json:1: not JSON"),
        ("a.json", b'[{"a": 1}\n{"a": 2}]', "a.json:2: not JSON"),
        ("a.json", b'[{"a": "\xff"}]', "a.json:1: not UTF-8"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv:1: not UTF-8"),
        ("a.csv", b"a,a\n1,2\n", "a.csv:1: a column has no name, or two have one"),
        ("a.csv", b'a,b\n1,"2\n', "a quote is not closed"),
        ("a.arrow", b"oops", "not Arrow"),
    ],
)
def test_a_file_that_cannot_be_read_says_what_to_do(tmp_path: Path, name: str, body: bytes, complaint: str) -> None:
    (tmp_path / name).write_bytes(body)
    with pytest.raises(UserError, match=complaint):
        list(read_rows(tmp_path / name))


def damaged(body: bytes, seed: int) -> bytes:
    """Cut off, with bits flipped, or with other bytes in place of some."""
    chance, left = random.Random(seed), bytearray(body)
    place = chance.randrange(len(left))
    if seed % 3 == 0:
        return body[:place]
    if seed % 3 == 1:
        for _ in range(chance.choice((1, 5))):
            left[chance.randrange(len(left))] ^= 1 << chance.randrange(8)
    else:
        left[place : place + chance.randrange(1, 200)] = chance.randbytes(chance.randrange(100))
    return bytes(left)


@pytest.mark.parametrize("name", [*KINDS, *PACKED])
def test_a_damaged_file_is_read_or_refused_by_its_name(tmp_path: Path, monkeypatch: Any, name: str) -> None:
    """And never ends the process otherwise, which would count as a failure of the machine and be tried again."""
    monkeypatch.setitem(globals(), "VALUES", VALUES[:100])
    monkeypatch.setitem(globals(), "LINES", "".join(f"{json.dumps(value)}\n" for value in VALUES[:100]))
    body, refused, complaints = write(tmp_path / name).read_bytes(), 0, list[str]()
    for seed in range(60):
        (tmp_path / name).write_bytes(damaged(body, seed))
        try:
            refused += any(row.broken for row in read_rows(tmp_path / name))
        except UserError as error:
            complaints.append(str(error))
    assert all(name in complaint for complaint in complaints)
    assert refused + len(complaints) > 30


def test_a_row_that_no_json_is_or_has_a_key_twice_is_broken_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": NaN}\n{"a": 1, "a": 2}\n{"a": 3}\n')
    (tmp_path / "b.csv").write_text("a,b\n1\n2,3\n")
    found = [(row.place, row.broken) for row in read_rows(tmp_path)]
    assert [place for place, _ in found] == ["a.jsonl:1", "a.jsonl:2", "a.jsonl:3", "b.csv:2", "b.csv:3"]
    assert [broken is None for _, broken in found] == [False, False, True, False, True]


def test_a_row_of_a_table_is_found_where_it_begins(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('a,b\n"1\n2",3\n\n4,5\n')
    assert [(row.place, row.value) for row in read_rows(tmp_path / "a.csv")] == [
        ("a.csv:2", {"a": "1\n2", "b": "3"}),
        ("a.csv:5", {"a": "4", "b": "5"}),
    ]


@pytest.mark.parametrize(
    ("name", "body"), [("a.json", b""), ("a.json", b" [ ] "), ("a.csv", b""), ("a.tsv", b"a\tb\n")]
)
def test_a_file_may_hold_no_rows(tmp_path: Path, name: str, body: bytes) -> None:
    (tmp_path / name).write_bytes(body)
    assert list(read_rows(tmp_path / name)) == []


@pytest.mark.parametrize("name", ["a.json", "a.csv"])
def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.write(b'[{"a": "' if name == "a.json" else b"a\n")
        file.truncate(1 << 28)
    tracemalloc.start()
    with pytest.raises(UserError, match=r"a\.json:1: not JSON|a\.csv:2: a line of 64 MiB"):
        list(read_rows(tmp_path / name))
    assert tracemalloc.get_traced_memory()[1] < 6 * (1 << 26)
    tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.jsonl.gz", "a.json.zst"])
def test_a_file_is_read_in_pieces(tmp_path: Path, name: str) -> None:
    """Of 0.7 MB."""
    write(tmp_path / name)
    tracemalloc.start()
    assert sum(1 for _ in read_rows(tmp_path / name)) == len(VALUES)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_what_describes_a_folder_is_no_row_of_it(tmp_path: Path) -> None:
    write(tmp_path / "data.arrow")
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(list(read_rows(tmp_path))) == len(VALUES)
