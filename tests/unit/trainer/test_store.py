"""Prepared data and the reference's cache are whole, or they are refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from alignment_api.spec import Training
from alignment_api.status import DataReport, ModelReport, PrecisionReport
from alignment_trainer.data.examples import PreferenceExample, PromptExample
from alignment_trainer.data.prepared import (
    PREFERENCE_PARTS,
    PROMPT_PARTS,
    DamagedDataError,
    Manifest,
    PreparedData,
    fingerprint_of,
    flatten,
    open_prepared,
    open_prompts,
    write_prepared,
)
from alignment_trainer.data.reference import (
    IncompleteReferenceError,
    ReferenceCache,
    Shard,
    plan_shards,
    reference_key,
)
from alignment_trainer.data.rows import Problem
from alignment_trainer.data.sampler import Sampler

ROWS = [PreferenceExample(3, (1, 2), (3,), (4, 5, 6)), PreferenceExample(8, (7,), (8, 9), (10,))]

FP32 = PrecisionReport(value="fp32", why="spec.training.precision is fp32")


def prepare(
    storage: Path, train: list[PreferenceExample] = ROWS, evaluation: list[PreferenceExample] = ROWS
) -> PreparedData:
    splits = {"train": flatten(train, PREFERENCE_PARTS), "evaluation": flatten(evaluation, PREFERENCE_PARTS)}
    data = DataReport(format="preferences", rows=2, evaluation_rows=2, fingerprint=fingerprint_of(splits))
    model = ModelReport(parameters=1, fingerprint="m")
    manifest = Manifest(request="r", origins={}, data=data, model=model, precision=FP32, parts={})
    write_prepared(storage, manifest, splits, [Problem(4, "a.jsonl:4", "empty")])
    return open_prepared(storage)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    prepared = prepare(tmp_path)
    assert list(prepared.train) == ROWS
    assert prepared.train[-1] == ROWS[1]
    assert prepared.evaluation[0:1] == ROWS[:1]
    assert '"row": 4' in (tmp_path / "prepared" / "invalid.jsonl").read_text()


def prepare_prompts(storage: Path, rows: list[PromptExample]) -> None:
    splits = {split: flatten(rows, PROMPT_PARTS) for split in ("train", "evaluation")}
    fields = {split: [json.dumps(example.fields) for example in rows] for split in splits}
    data = DataReport(format="prompts", rows=2, evaluation_rows=2, fingerprint=fingerprint_of(splits, fields))
    model = ModelReport(parameters=1, fingerprint="m")
    manifest = Manifest(request="r", origins={}, data=data, model=model, precision=FP32, parts={})
    write_prepared(storage, manifest, splits, [], fields)


def test_prompts_come_back_with_their_rows(tmp_path: Path) -> None:
    rows = [PromptExample(3, (1, 2), {"prompt": "a\nb\u2028c", "answer": 4}), PromptExample(8, (7,), {"prompt": "d"})]
    prepare_prompts(tmp_path, rows)
    prepared = open_prompts(tmp_path)
    assert list(prepared.train) == list(prepared.evaluation) == rows
    with pytest.raises(DamagedDataError, match="holds prompts, not preferences"):
        open_prepared(tmp_path)
    (tmp_path / "prepared" / "train.fields.jsonl").write_text("{}\n{}\n")
    with pytest.raises(DamagedDataError, match=r"train\.fields\.jsonl: missing, or not what the manifest says"):
        open_prompts(tmp_path)


def test_the_fingerprint_follows_every_token_and_border() -> None:
    def of(*rows: PreferenceExample) -> str:
        return fingerprint_of({"train": flatten(rows, PREFERENCE_PARTS)})

    moved = PreferenceExample(3, (1,), (2, 3), (4, 5, 6))
    assert of(*ROWS) == of(*ROWS)
    assert len({of(*ROWS), of(*ROWS[::-1]), of(moved, ROWS[1]), of(ROWS[0])}) == 4


@pytest.mark.parametrize("part", ["train.safetensors", "evaluation.safetensors", "invalid.jsonl"])
def test_a_changed_part_is_refused(tmp_path: Path, part: str) -> None:
    prepare(tmp_path)
    path = tmp_path / "prepared" / part
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedDataError, match=part):
        open_prepared(tmp_path)


def test_parts_without_a_manifest_are_not_prepared_data(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "prepared" / "manifest.json").unlink()
    with pytest.raises(DamagedDataError, match=r"no readable manifest\.json"):
        open_prepared(tmp_path)


def many(count: int) -> list[PreferenceExample]:
    return [PreferenceExample(n, (n + 1,), (1,), (2,)) for n in range(count)]


def test_shards_hold_whole_training_batches_in_the_order_of_the_first_epoch(tmp_path: Path) -> None:
    training = Training(batch_size=4, seed=5)
    shards = plan_shards(prepare(tmp_path, many(30), many(10)), training, rows_per_shard=10)
    train = [shard for shard in shards if shard.split == "train"]
    assert [shard.name for shard in train] == [
        "train-00000000-00000011",
        "train-00000012-00000023",
        "train-00000024-00000029",
    ]
    sampler = Sampler(30, 4, 5)
    assert [batch for shard in train for batch in shard.batches] == [sampler.batch(step) for step in range(8)]
    held_out = [index for shard in shards if shard.split == "evaluation" for index in shard.indices]
    assert held_out == list(range(10))


def test_rows_that_no_step_sees_are_not_computed(tmp_path: Path) -> None:
    shards = plan_shards(prepare(tmp_path, many(30)), Training(batch_size=4, max_steps=2))
    assert sum(len(shard.indices) for shard in shards if shard.split == "train") == 8


SHARD = Shard("train", 0, ((2, 0),))
LOGPROBS = np.array([[-1.0, -2.0], [-3.0, -4.0]], dtype=np.float32)


def test_log_probs_come_back_by_row_and_unseen_rows_are_not_numbers(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "key")
    cache.write(SHARD, LOGPROBS)
    cache.complete([SHARD])
    assert np.array_equal(cache.read("train", 3), [[-3, -4], [np.nan, np.nan], [-1, -2]], equal_nan=True)


def test_a_cut_or_foreign_shard_does_not_count(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "key")
    assert not cache.holds(SHARD)
    cache.write(SHARD, LOGPROBS)
    assert cache.holds(SHARD)
    assert not ReferenceCache(tmp_path, "other").holds(SHARD)
    path = tmp_path / f"{SHARD.name}.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    assert not cache.holds(SHARD)
    with pytest.raises(IncompleteReferenceError, match="1 shards are missing"):
        cache.complete([SHARD])


def test_an_unfinished_or_foreign_cache_is_not_read(tmp_path: Path) -> None:
    cache = ReferenceCache(tmp_path, "key")
    cache.write(SHARD, LOGPROBS)
    with pytest.raises(IncompleteReferenceError, match="not complete"):
        cache.read("train", 3)
    cache.complete([SHARD])
    with pytest.raises(IncompleteReferenceError, match="of another model"):
        ReferenceCache(tmp_path, "other").read("train", 3)


def test_log_probs_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(IncompleteReferenceError, match="not finite"):
        ReferenceCache(tmp_path, "key").write(SHARD, np.full((2, 2), np.nan, dtype=np.float32))


def test_the_cache_follows_model_rows_and_way_of_computing(tmp_path: Path) -> None:
    one, other = prepare(tmp_path / "a"), prepare(tmp_path / "b", many(3))
    keys = {
        reference_key(one, Training()),
        reference_key(other, Training()),
        reference_key(one, Training(precision="fp32")),
        reference_key(one, Training(batch_size=8)),
        reference_key(one, Training(learning_rate=1.0)),
    }
    assert len(keys) == 4
