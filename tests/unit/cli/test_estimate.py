"""How long a job will take: work counted by hand, time by arithmetic."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]
import pytest

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_api.derived.decoder import Decoder
from alignment_cli.estimate import Machine, NotKnown, Work, duration_range, duration_text, measured_rate, work_of
from alignment_trainer.data import counting

CPU = Machine(cores=2, bf16=False, gpus=False)
PAIR = {"prompt": "p" * 40, "chosen": "c" * 80, "rejected": "r" * 80}
"""Of 200 letters: 50 tokens."""


def spec(tmp_path: Path, algorithm: dict[str, Any], rows: int = 40, **training: Any) -> AlignmentJobSpec:
    (tmp_path / "rows.jsonl").write_text((json.dumps(PAIR) + "\n") * rows)
    source = f"file://{tmp_path}/rows.jsonl"
    return AlignmentJobSpec.model_validate(
        {
            "model": {"source": f"file://{tmp_path}/model"},
            "data": {"source": source, "evaluation": {"fraction": 0.25}},
            "algorithm": algorithm,
            "training": training,
        }
    )


def test_work_of_dpo_counts_reference_training_and_held_out_rows(tmp_path: Path) -> None:
    """5 steps of 8 pairs: 40 pairs are trained on; the reference sees them and 10 held-out ones too."""
    work = work_of(spec(tmp_path, {"dpo": {}}, batchSize=8))
    assert work.trained == 40 * 50
    assert work.forward == (40 + 10) * 50 + 10 * 50


def test_steps_bound_the_work_and_the_reference_with_it(tmp_path: Path) -> None:
    work = work_of(spec(tmp_path, {"dpo": {}}, batchSize=8, maxSteps=2))
    assert work.trained == 16 * 50
    assert work.forward == (16 + 10) * 50 + 10 * 50


def test_beside_adapters_a_backward_pass_costs_as_much_as_a_forward_pass(tmp_path: Path) -> None:
    """No product for the gradient of a frozen weight: 4 FLOPs where there were 6."""
    whole, beside = (work_of(spec(tmp_path, {"orpo": {}}, batchSize=8, **more)) for more in ({}, {"lora": {}}))
    assert beside.seconds(10, 80.0) - Work(roles=beside.roles, forward=500).seconds(10, 80.0) == pytest.approx(
        4 / 6 * (whole.seconds(10, 80.0) - Work(roles=whole.roles, forward=500).seconds(10, 80.0))
    )


@pytest.mark.parametrize("algorithm", [{"reward": {}}, {"orpo": {}}, {"simpo": {}}, {"dpo": {"referenceFree": True}}])
def test_without_a_reference_held_out_rows_alone_are_scored_beside_training(
    tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    work = work_of(spec(tmp_path, algorithm, batchSize=8))
    assert work.trained == 40 * 50
    assert work.forward == 10 * 50


def test_work_of_grpo_counts_what_is_sampled(tmp_path: Path) -> None:
    rewards = [{"function": {"regex": {"pattern": "x"}}}]
    options = {"promptsPerRollout": 4, "groupSize": 2, "maxNewTokens": 10, "rewards": rewards, "epochsPerRollout": 2}
    work = work_of(spec(tmp_path, {"grpo": options}, batchSize=8, maxSteps=3, maxLength=128))
    assert work.sampled == 3 * 4 * 2 * 10 + 2 * 10 * 10  # and two completions of each of 10 held-out prompts
    assert work.samplers == 2  # of stage `train` and of `evaluate`
    assert work.trained == 2 * (3 * 4 * 2 * 10 + 3 * 4 * 50)


def test_seconds_are_flops_over_the_rate_and_a_share_for_each_role() -> None:
    """2 FLOPs a parameter forward, 6 in training (Kaplan et al. 2020), at 0.6 of the rate of a product."""
    assert Work(forward=100, trained=100).seconds(parameters=10, rate=80.0) == pytest.approx(10 * 800 / 48)
    assert Work(sampled=30).seconds(parameters=10, rate=80.0) == pytest.approx(10 * 60 / 24)
    assert Work(roles=1, samplers=1).seconds(10, 80.0) > 2 * Work(roles=1).seconds(10, 80.0)
    assert Work(roles=2).seconds(10, 80.0) == 2 * Work(roles=1).seconds(10, 80.0) > 0


def with_data(spec: AlignmentJobSpec, **data: Any) -> AlignmentJobSpec:
    written = spec.model_dump(by_alias=True, exclude_unset=True)
    return AlignmentJobSpec.model_validate(written | {"data": data})


def write_json_array(rows: list[dict[str, str]], file: Path) -> None:
    file.write_text(json.dumps(rows, indent=1))


def write_csv(rows: list[dict[str, str]], file: Path) -> None:
    with file.open("w", newline="") as stream:
        table = csv.DictWriter(stream, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def write_gz(rows: list[dict[str, str]], file: Path) -> None:
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_parquet(rows: list[dict[str, str]], file: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file, row_group_size=7)


def write_arrow(rows: list[dict[str, str]], file: Path) -> None:
    table = pyarrow.Table.from_pylist(rows)
    with pyarrow.OSFile(str(file), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


WRITERS = {
    "rows.json": write_json_array,
    "array.jsonl": write_json_array,
    "rows.csv": write_csv,
    "rows.jsonl.gz": write_gz,
    "rows.parquet": write_parquet,
    "rows.arrow": write_arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_rows_of_every_kind_of_file_are_counted_as_the_readers_read_them(tmp_path: Path, name: str) -> None:
    """A letter more, so that the two lines of a text in CSV are one row; 40 rows of 200 letters and a break."""
    rows = [PAIR | {"chosen": "c" * 40 + "\n" + "c" * 39}] * 40
    WRITERS[name](rows, tmp_path / name)
    lines = spec(tmp_path, {"dpo": {}}, batchSize=8)
    found = work_of(with_data(lines, source=f"file://{tmp_path}/{name}", evaluation={"fraction": 0.25}))
    assert found == work_of(lines)


def test_rows_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    write_parquet([PAIR] * 30, tmp_path / "two" / "a.parquet")
    write_gz([PAIR] * 10, tmp_path / "two" / "b.jsonl.gz")
    lines = spec(tmp_path, {"dpo": {}}, batchSize=8)
    assert work_of(with_data(lines, source=f"file://{tmp_path}/two", evaluation={"fraction": 0.25})) == work_of(lines)


def test_a_large_file_that_must_be_read_to_be_counted_is_not_guessed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv([PAIR] * 40, tmp_path / "rows.csv")
    table = with_data(spec(tmp_path, {"dpo": {}}), source=f"file://{tmp_path}/rows.csv")
    work_of(table)
    monkeypatch.setattr(counting, "READ_BYTES", 1000)
    with pytest.raises(NotKnown, match=r"rows\.csv cannot be counted in a moment"):
        work_of(table)


def test_a_row_that_cannot_be_read_ends_no_estimate(tmp_path: Path) -> None:
    lines = spec(tmp_path, {"dpo": {}}, rows=39, batchSize=8)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write("not JSON\n")
    assert work_of(lines) == work_of(spec(tmp_path, {"dpo": {}}, rows=40, batchSize=8))


def test_each_pair_of_a_row_counts(tmp_path: Path) -> None:
    """Three completions of 80 letters are three pairs of 200."""
    several = {"prompt": "p" * 40, "completions": ["a" * 80, "b" * 80, "c" * 80], "scores": [1, 2, 3]}
    (tmp_path / "several.jsonl").write_text((json.dumps(several) + "\n") * 40)
    pairs = spec(tmp_path, {"dpo": {}}, rows=120, batchSize=8)
    rows = with_data(pairs, source=f"file://{tmp_path}/several.jsonl", evaluation={"fraction": 0.25})
    assert work_of(rows) == work_of(pairs)


def test_a_share_is_held_out_where_the_manifest_says_nothing(tmp_path: Path) -> None:
    pairs = spec(tmp_path, {"orpo": {}}, rows=400, batchSize=8)
    assert work_of(with_data(pairs, source=pairs.data.source)).forward == pytest.approx(8 * 50)


def test_held_out_rows_that_are_elsewhere_are_not_taken_for_none(tmp_path: Path) -> None:
    pairs = spec(tmp_path, {"dpo": {}})
    with pytest.raises(NotKnown, match="the rows of hf://a/held are not on this machine"):
        work_of(with_data(pairs, source=pairs.data.source, evaluation={"source": "hf://a/held"}))


def test_rows_of_a_pattern_are_those_of_its_files(tmp_path: Path) -> None:
    whole = spec(tmp_path, {"dpo": {}})
    for part in ("0", "1"):
        (tmp_path / f"part-{part}.jsonl").write_text((json.dumps(PAIR) + "\n") * 20)
    data = {"data": {"source": f"file://{tmp_path}/part-?.jsonl", "evaluation": {"fraction": 0.25}}}
    parts = AlignmentJobSpec.model_validate(whole.model_dump(by_alias=True) | data)
    assert work_of(parts) == work_of(whole)


def test_data_that_is_elsewhere_is_not_guessed_at(tmp_path: Path) -> None:
    elsewhere = AlignmentJobSpec.model_validate(
        spec(tmp_path, {"dpo": {}}).model_dump(by_alias=True) | {"data": {"source": "hf://a/b"}}
    )
    with pytest.raises(NotKnown, match="the rows of hf://a/b are not on this machine"):
        work_of(elsewhere)
    with pytest.raises(NotKnown, match="hf://a/b"):
        duration_range(elsewhere, Decoder.of(10), CPU)


def test_bf16_in_hardware_is_faster_and_the_range_holds_its_middle() -> None:
    """At the same rate of fp32; loading takes as long in either."""
    work = Work(forward=100, trained=100, roles=1)
    fp32, bf16 = (work.seconds_range(parameters=10, rate=80.0, bf16=fast) for fast in (False, True))
    assert fp32[0] < work.seconds(10, rate=80.0) < fp32[1]
    assert bf16[0] < work.seconds(10, rate=120.0) < bf16[1]
    assert bf16[0] / fp32[0] == pytest.approx((8000 / 72 + 12) / (8000 / 48 + 12))


def test_what_lies_here_is_guessed_at_by_a_rate_that_is_measured(tmp_path: Path) -> None:
    found = duration_range(spec(tmp_path, {"dpo": {}}, rows=400, batchSize=8), Decoder.of(10**10), CPU)
    assert 0 < found[0] < found[1]
    assert measured_rate(0.01) > 0


def test_the_first_line_is_a_range_or_says_why_there_is_none(tmp_path: Path) -> None:
    here, model = spec(tmp_path, {"dpo": {}}, rows=400, batchSize=8, precision="fp32"), Decoder.of(10**10)
    assert re.fullmatch(r"about \d+ to \d+ minutes on this machine's 2 cores, in fp32", duration_text(here, model, CPU))
    unknown = "how long it takes is not known before its first steps: "
    gpus, bf16 = Machine(2, bf16=True, gpus=True), spec(tmp_path, {"dpo": {}}, precision="bf16")
    assert duration_text(here, model, gpus) == unknown + "no rate is measured of GPUs"
    assert duration_text(here, None, CPU) == unknown + f"no safetensors of file://{tmp_path}/model are on this machine"
    assert duration_text(bf16, model, CPU) == unknown + "it computes in bf16, which this CPU has not in hardware"
    elsewhere = with_data(here, source="s3://bucket/rows.jsonl")
    assert duration_text(elsewhere, model, CPU) == (
        unknown + "the rows of s3://bucket/rows.jsonl are not on this machine"
    )
