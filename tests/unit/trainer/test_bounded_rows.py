"""Memory that rows take: `prepare` and the trainer hold a few bytes of each, however many and however long they are."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.tiny import tiny_tokenizer

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.contract.status import ModelReport, PrecisionReport
from alignment_trainer.data.finding import DataSources
from alignment_trainer.data.preparation import ROWS_AT_ONCE, PreparedRows, Request, preferences, prepare_rows, prompts
from alignment_trainer.data.prepared import Manifest, open_prepared, open_prompts, prepared_in, write_prepared
from alignment_trainer.data.reference import needed_rows
from alignment_trainer.data.sources import Resolved
from alignment_trainer.data.spool import spool_in
from alignment_trainer.data.storage import Folder
from alignment_trainer.process.metrics import Metrics

BYTES_A_ROW = 400
"""Of numbers, lengths, keys and places, and of what numpy makes of them for a moment. A row is of 250 tokens."""
FEW_AND_MANY = (2 * ROWS_AT_ONCE, 8 * ROWS_AT_ONCE)
"""Rows: whole chunks, so that those are the same."""
WORDS = " ".join(map(str, range(30)))


def spec_of(algorithm: str, **data: object) -> AlignmentJobSpec:
    rewards = {} if algorithm == "dpo" else {"rewards": [{"function": {"numericAnswer": {}}}]}
    return AlignmentJobSpec.model_validate(
        {
            "model": {"source": "pvc://models/tiny"},
            "data": {"source": "pvc://data/rows.jsonl"} | data,
            "algorithm": {algorithm: rewards},
            "training": {"maxLength": 8192, "microBatchTokens": 8192, "recomputeLayers": 0},
        }
    )


def write_rows(path: Path, rows: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    with path.open("w") as file:
        for number in range(rows):
            row = {"prompt": f"{number}? {WORDS}", "chosen": f"{number}! {WORDS}", "rejected": WORDS, "answer": number}
            file.write(json.dumps(row) + "\n")
    return path


def prepare(spec: AlignmentJobSpec, data: Path, storage: Path) -> PreparedRows:
    """As the role does it."""
    tokenizer = tiny_tokenizer()
    form = preferences(spec, tokenizer) if spec.algorithm.name == "dpo" else prompts(spec, tokenizer)
    request, sources = Request(spec.data, "spec.data", per_step=8), DataSources(Resolved(data), None)
    with spool_in(prepared_in(Folder(storage)).workplace(), form.parts, seed=0) as spool:
        rows = prepare_rows(request, form, sources, spool, Metrics("job", "prepare"))
        precision = PrecisionReport(value="fp32", why="")
        model = ModelReport(parameters=1, fingerprint="m")
        manifest = Manifest(request="", origins={}, data=rows.report, model=model, precision=precision, parts={})
        write_prepared(Folder(storage), manifest, rows.splits, rows.dropped)
    return rows


def growth(work: Callable[[Path, int], object], folder: Path) -> float:
    """Bytes that the peak of Python's and numpy's memory grows for each row more; imports are done before."""
    few, many = FEW_AND_MANY
    work(folder / "imports", few)
    peaks = {name: _peak(work, folder / name, rows) for name, rows in (("few", few), ("many", many))}
    return (peaks["many"] - peaks["few"]) / (many - few)


def _peak(work: Callable[[Path, int], object], folder: Path, rows: int) -> int:
    tracemalloc.start()
    try:
        work(folder, rows)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_what_prepare_holds_of_a_row_is_a_few_bytes(tmp_path: Path) -> None:
    def work(folder: Path, rows: int) -> None:
        prepare(spec_of("dpo"), write_rows(folder / "rows.jsonl", rows), folder)

    assert growth(work, tmp_path) < BYTES_A_ROW


def test_what_prepare_holds_of_a_prompt_with_its_fields_is_a_few_bytes(tmp_path: Path) -> None:
    def work(folder: Path, rows: int) -> None:
        prepare(spec_of("grpo"), write_rows(folder / "rows.jsonl", rows), folder)

    assert growth(work, tmp_path) < BYTES_A_ROW


def test_what_prepare_holds_of_a_row_that_it_drops_is_a_few_bytes(tmp_path: Path) -> None:
    def work(folder: Path, rows: int) -> None:
        data = write_rows(folder / "rows.jsonl", 2)
        with data.open("a") as file:
            file.writelines(json.dumps({"prompt": WORDS, "chosen": [], "rejected": "a"}) + "\n" for _ in range(rows))
        report = prepare(spec_of("dpo", onInvalid="drop"), data, folder).report
        assert report.invalid_rows == rows
        (reading,) = report.readings
        assert (reading.layout, reading.rows, reading.unread) == ("texts; prompt = `prompt`", 2, ["answer"])

    assert growth(work, tmp_path) < BYTES_A_ROW


def test_what_a_trainee_holds_of_a_row_is_a_few_bytes(tmp_path: Path) -> None:
    def read(folder: Path, rows: int) -> None:
        prepared = open_prepared(Folder(tmp_path / str(rows)))
        needed = needed_rows(prepared, spec_of("dpo").training)
        assert len(np.unique(needed.keys)) == rows
        assert sum(len(example.group.completions[0]) for example in prepared.train) > 50 * len(prepared.train)

    for rows in FEW_AND_MANY:
        prepare(spec_of("dpo"), write_rows(tmp_path / "rows.jsonl", rows), tmp_path / str(rows))
    assert growth(read, tmp_path) < BYTES_A_ROW


def test_what_a_trainee_holds_of_a_prompt_is_a_few_bytes(tmp_path: Path) -> None:
    def read(folder: Path, rows: int) -> None:
        prepared = open_prompts(Folder(tmp_path / str(rows)))
        assert all(example.fields["answer"] == example.row - 1 for example in prepared.train)

    for rows in FEW_AND_MANY:
        prepare(spec_of("grpo"), write_rows(tmp_path / "rows.jsonl", rows), tmp_path / str(rows))
    assert growth(read, tmp_path) < BYTES_A_ROW


def test_a_parquet_file_of_one_row_group_is_read_in_pieces(tmp_path: Path) -> None:
    """Its 40 MB of text are random, so that they are as many on the disk. Arrow's own peak, in a process that has only
    read."""
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    random, path = np.random.default_rng(0), tmp_path / "rows.parquet"
    values = [{"prompt": random.bytes(500).hex()} for _ in range(40_000)]
    parquet.write_table(pyarrow.Table.from_pylist(values), path, row_group_size=len(values))
    reading = (
        "import sys, pathlib, pyarrow\nfrom alignment_trainer.data.rows import read_rows\n"
        "rows = sum(1 for _ in read_rows(pathlib.Path(sys.argv[1])))\n"
        "print(rows, pyarrow.default_memory_pool().max_memory())"
    )
    said = subprocess.run([sys.executable, "-c", reading, path], check=True, capture_output=True, text=True).stdout
    rows, peak = map(int, said.split())
    assert rows == len(values)
    assert peak < 15e6
