"""A whole job from files of a pattern: scored lists with weights, made pairs, trained on in groups, and resumed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from roles import TinyJob

from alignment_api.contract.status import EvaluationReport
from alignment_trainer.data.prepared import open_prepared
from alignment_trainer.data.storage import Folder


def write_lists(folder: Path, file: int, count: int) -> None:
    """Of three completions, of which the one that says yes twice is the best and the one that says no the worst."""
    draw = random.Random(file)
    rows = []
    for number in range(count):
        said = ["yes yes", "yes no", "no no"]
        draw.shuffle(said)
        scores = [each.count("yes") for each in said]
        rows.append({"prompt": f"say {file} {number}", "responses": said, "scores": scores, "weight": 1 + number % 2})
    (folder / f"rows-{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("algorithm", ["dpo", "reward"])
def test_a_job_learns_from_lists_in_files_of_a_pattern(tmp_path: Path, algorithm: str) -> None:
    source = f"file://{tmp_path}/rows-?.jsonl"
    job = TinyJob(
        tmp_path,
        spec={
            "algorithm": {algorithm: {}},
            "data": {"source": source, **({"marginPerScore": 0.25} if algorithm == "reward" else {})},
            "roles": {"reference": {"placement": "withPolicy"}} if algorithm == "dpo" else {},
        },
    )
    for file, count in ((1, 25), (0, 15)):
        write_lists(tmp_path, file, count)
    sources = job.context("prepare").sources | {source: source.removeprefix("file://")}
    for role in ("prepare", "policy", "evaluator"):
        process = job.fork(role, sources=sources)
        process.join(900)
        assert process.exitcode == 0, (job.folder / f"{role}.log").read_text()[-3000:]
    prepared = open_prepared(Folder(job.folder / "run"))
    data = prepared.manifest.data
    assert (data.rows + data.evaluation_rows, [each.source for each in data.readings]) == (120, [source])
    assert prepared.train.groups is not None
    assert {one.weight for one in prepared.train} == {1.0, 2.0}
    margins = {one.margin for one in prepared.train}
    assert margins == ({0.25, 0.5} if algorithm == "reward" else {None})
    report = EvaluationReport.model_validate_json((job.folder / "run" / "evaluation.json").read_text())
    assert report.after["accuracy"].low > 0.5
