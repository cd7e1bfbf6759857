"""Prepared data and the reference's cache are whole, or they are refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from alignment_api.contract.spec import Training
from alignment_api.contract.status import DataReport, ModelReport, PrecisionReport
from alignment_trainer.data.examples import EXAMPLE_PARTS, Example, PromptExample, PromptGroup
from alignment_trainer.data.prepared import (
    PROMPT_PARTS,
    DamagedDataError,
    Manifest,
    PreparedData,
    fingerprint_of,
    open_prepared,
    open_prompts,
    prepared_in,
    write_prepared,
)
from alignment_trainer.data.reference import (
    IncompleteReferenceError,
    ShardWriter,
    needed_rows,
    read_reference,
    reference_cache,
    seen_rows,
)
from alignment_trainer.data.rows import Problem
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.data.spool import Pieces, Selection, spool_in
from alignment_trainer.data.storage import Folder

ROWS = [Example(3, PromptGroup((1, 2), ((3,), (4, 5, 6)))), Example(8, PromptGroup((7,), ((8, 9), (10,))))]

FP32 = PrecisionReport(value="fp32", why="spec.training.precision is fp32")


MODEL = ModelReport(parameters=1, fingerprint="m")


def write(storage: Path, train: list[Any], evaluation: list[Any], model: ModelReport = MODEL) -> None:
    """As `prepare` leaves rows of one kind, with one that was dropped."""
    is_prompts = isinstance(train[0], PromptExample)
    name, parts = ("prompts", PROMPT_PARTS) if is_prompts else ("preferences", EXAMPLE_PARTS)
    with spool_in(prepared_in(Folder(storage)).workplace(), parts, seed=0) as spool:
        for example in (*train, *evaluation):
            spool.add([example], [json.dumps(example.fields)] if is_prompts else [])
        spool.problems.add([Problem(4, "a.jsonl:4", "empty")])
        places = np.arange(len(spool))
        splits = {
            "train": Selection(spool, places[: len(train)]),
            "evaluation": Selection(spool, places[len(train) :]),
        }
        data = DataReport(format=name, rows=2, evaluation_rows=2, fingerprint=fingerprint_of(splits))
        manifest = Manifest(request="r", origins={}, data=data, model=model, precision=FP32, parts={})
        write_prepared(Folder(storage), manifest, splits, spool.problems.lines())


def prepare(storage: Path, train: list[Example] = ROWS, evaluation: list[Example] = ROWS) -> PreparedData:
    write(storage, train, evaluation)
    return open_prepared(Folder(storage))


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    prepared = prepare(tmp_path)
    assert list(prepared.train) == ROWS
    assert prepared.train[-1] == ROWS[1]
    assert prepared.evaluation[0:1] == ROWS[:1]
    assert '"row": 4' in (tmp_path / "prepared" / "invalid.jsonl").read_text()


def test_prompts_come_back_with_their_rows(tmp_path: Path) -> None:
    rows = [PromptExample(3, (1, 2), {"prompt": "a\nb\u2028c", "answer": 4}), PromptExample(8, (7,), {"prompt": "d"})]
    write(tmp_path, rows, rows)
    prepared = open_prompts(Folder(tmp_path))
    assert list(prepared.train) == list(prepared.evaluation) == rows
    with pytest.raises(DamagedDataError, match="holds prompts, not preferences"):
        open_prepared(Folder(tmp_path))
    (tmp_path / "prepared" / "train.fields.jsonl").write_text("{}\n{}\n")
    with pytest.raises(DamagedDataError, match=r"train\.fields\.jsonl: missing, or not what the manifest says"):
        open_prompts(Folder(tmp_path))


def test_the_files_are_those_of_the_safetensors_format(tmp_path: Path) -> None:
    """By its own reader; the fingerprint is SHA-256 over names, lengths and arrays, worked out here."""
    prepared, total = prepare(tmp_path, ROWS, ROWS[1:]), hashlib.sha256()
    for split in ("evaluation", "train"):
        for name, array in sorted(load_file(tmp_path / "prepared" / f"{split}.safetensors").items()):
            total.update(f"{split}/{name}/{len(array)}\0".encode() + array.astype("<i4").tobytes())
    assert prepared.manifest.data.fingerprint == total.hexdigest()
    arrays = {name: a.tolist() for name, a in load_file(tmp_path / "prepared" / "train.safetensors").items()}
    assert arrays == {
        "row": [3, 8],
        "prompt_tokens": [1, 2, 7],
        "prompt_lengths": [2, 1],
        "completions_tokens": [3, 4, 5, 6, 8, 9, 10],
        "completions_lengths": [4, 3],
        "lengths_tokens": [1, 3, 2, 1],
        "lengths_lengths": [2, 2],
        "spans_tokens": [],
        "spans_lengths": [0, 0],
        "label_tokens": [0, 0],
        "label_lengths": [1, 1],
    }


@pytest.mark.parametrize("places", [[], [0], [2], [0, 1, 2, 3], [0, 2, 3], [1, 3]])
def test_chosen_pieces_are_read_in_their_order(tmp_path: Path, places: list[int]) -> None:
    pieces, bodies = Pieces(tmp_path / "pieces"), [b"one", b"", b"three", b"4" * (3 << 20)]
    for body in bodies:
        pieces.add([len(body)], body)
    assert b"".join(pieces.read(np.array(places, np.int64))) == b"".join(bodies[place] for place in places)
    pieces.close()


def test_what_a_killed_process_left_of_its_rows_goes(tmp_path: Path) -> None:
    (tmp_path / "prepared" / ".rows-abc").mkdir(parents=True)
    (tmp_path / "prepared" / ".rows-abc" / "prompt").write_bytes(b"1234")
    prepare(tmp_path)
    names = sorted(path.name for path in (tmp_path / "prepared").iterdir())
    assert names == ["evaluation.safetensors", "invalid.jsonl", "manifest.json", "train.safetensors"]


def test_the_fingerprint_follows_every_token_and_border(tmp_path: Path) -> None:
    def of(*rows: Example) -> str:
        return prepare(tmp_path, list(rows)).manifest.data.fingerprint

    moved = Example(3, PromptGroup((1,), ((2, 3), (4, 5, 6))))
    assert of(*ROWS) == of(*ROWS)
    assert len({of(*ROWS), of(*ROWS[::-1]), of(moved, ROWS[1]), of(ROWS[0])}) == 4


@pytest.mark.parametrize("part", ["train.safetensors", "evaluation.safetensors", "invalid.jsonl"])
def test_a_changed_part_is_refused(tmp_path: Path, part: str) -> None:
    prepare(tmp_path)
    path = tmp_path / "prepared" / part
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedDataError, match=part):
        open_prepared(Folder(tmp_path))


def test_parts_without_a_manifest_are_not_prepared_data(tmp_path: Path) -> None:
    prepare(tmp_path)
    (tmp_path / "prepared" / "manifest.json").unlink()
    with pytest.raises(DamagedDataError, match=r"no readable manifest\.json"):
        open_prepared(Folder(tmp_path))


def many(count: int) -> list[Example]:
    return [Example(n, PromptGroup((n + 1,), ((1,), (2,)))) for n in range(count)]


def test_a_row_is_known_by_its_tokens_and_their_borders(tmp_path: Path) -> None:
    """Not by its number, its split or its neighbours."""
    one, other = prepare(tmp_path / "a", ROWS, many(3)), prepare(tmp_path / "b", many(3), ROWS[::-1])
    assert one.train.keys().tolist() == other.evaluation.keys()[::-1].tolist()
    assert one.evaluation.keys().tolist() == other.train.keys().tolist()
    moved = [Example(3, PromptGroup((1,), ((2, 3), (4, 5, 6)))), Example(3, PromptGroup((1, 2), ((3, 4), (5, 6))))]
    known = {*one.train.keys().tolist(), *prepare(tmp_path / "c", moved).train.keys().tolist()}
    assert len(known) == 4


def test_the_rows_that_are_needed_are_those_that_steps_see_and_those_held_out(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, many(30), many(10))
    few = needed_rows(prepared, Training(batch_size=4, max_steps=2, seed=5))
    order = Sampler(30, 4, 5)
    assert few.places[few.split == 0].tolist() == sorted(order.batch(0) + order.batch(1))
    assert few.places[few.split == 1].tolist() == list(range(10))
    for training in (Training(batch_size=4), Training(batch_size=4, max_steps=8), Training(batch_size=7, epochs=3)):
        assert len(needed_rows(prepared, training)) == 40


def test_the_order_of_an_epoch_is_drawn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    real = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or real(seed))
    assert len(seen_rows(1_000_003, Training(batch_size=64, max_steps=1000, seed=77))) == 64_000
    assert len(seen_rows(1_000_003, Training(batch_size=64, seed=77))) == 1_000_003
    sampler = Sampler(1_000_003, 64, 77)
    seen = [row for step in range(3) for row in sampler.batch(step)]
    assert len(set(seen)) == 192
    assert drawn == [(77, 0)]


def test_a_needed_row_is_the_group_that_trains_under_the_name_that_the_user_knows(tmp_path: Path) -> None:
    rows = needed_rows(prepare(tmp_path, ROWS, many(1)), Training())
    assert rows.group(1) == PromptGroup((7,), ((8, 9), (10,)))
    assert rows.lengths.tolist() == [rows.group(index).length for index in range(3)] == [4, 2, 1]
    assert [rows.name(index) for index in range(3)] == ["row 3 (train)", "row 8 (train)", "row 0 (evaluation)"]


LOGPROBS = np.array([[-1.0, -2.0], [-3.0, -4.0]], dtype=np.float32)
TRAINING = Training(batch_size=2)


def test_log_probs_come_back_by_row_whatever_batch_seed_epochs_and_split_there_are(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, ROWS, many(2))
    rows = needed_rows(prepared, TRAINING)
    cache = reference_cache(prepared)
    cache.write(rows.keys[[1, 2]], LOGPROBS)
    cache.write(rows.keys[[3, 0]], LOGPROBS - 10)
    other = prepare(tmp_path, [*many(2), ROWS[1]], ROWS[:1])  # prepared anew: rows of both splits changed sides
    training = Training(batch_size=1, seed=9, epochs=4, micro_batch_tokens=64, precision="fp32", learning_rate=1.0)
    assert read_reference(other, training, "train", needed=True).tolist() == [[-3, -4], [-11, -12], [-1, -2]]
    assert read_reference(other, training, "evaluation", needed=True).tolist() == [[-13, -14]]
    assert not len(reference_cache(other).missing(needed_rows(other, training)))


def test_log_probs_of_another_model_are_not_read(tmp_path: Path) -> None:
    prepared = prepare(tmp_path)
    rows = needed_rows(prepared, TRAINING)
    reference_cache(prepared).write(rows.keys[:2], LOGPROBS)
    model = prepared.manifest.model.model_copy(update={"fingerprint": "another"})
    write(tmp_path, ROWS, ROWS, model)
    other = open_prepared(Folder(tmp_path))
    assert reference_cache(other).missing(needed_rows(other, TRAINING)).tolist() == [0, 1]


def test_a_row_that_is_written_twice_is_computed_once(tmp_path: Path) -> None:
    prepared = prepare(tmp_path, [*ROWS, *ROWS, Example(20, PromptGroup((7,), ((8, 9), (10,))))], many(1))
    rows, cache = needed_rows(prepared, TRAINING), reference_cache(prepared)
    assert cache.missing(rows).tolist() == [0, 1, 5]
    cache.write(rows.keys[:2], LOGPROBS)
    assert cache.missing(rows).tolist() == [5]
    assert cache.read(rows.keys, 2)[:5].tolist() == [LOGPROBS[n].tolist() for n in (0, 1, 0, 1, 1)]


@pytest.mark.parametrize("damage", [lambda body: body[:-4], lambda body: body[:-1] + b"!", lambda body: b""])
def test_the_rows_of_a_damaged_shard_alone_are_computed_again(tmp_path: Path, damage: Any) -> None:
    prepared = prepare(tmp_path, ROWS, many(2))
    rows, cache = needed_rows(prepared, TRAINING), reference_cache(prepared)
    cache.write(rows.keys[:2], LOGPROBS)
    [name] = cache.place.list("")
    path = cache.place.here([name]) / name
    cache.write(rows.keys[2:], LOGPROBS - 5)
    path.write_bytes(damage(path.read_bytes()))
    assert cache.missing(rows).tolist() == [0, 1]
    with pytest.raises(IncompleteReferenceError, match="no log-probs of 2 rows of split train, the first is row 3"):
        read_reference(prepared, TRAINING, "train", needed=True)
    cache.remove_damaged()
    assert not path.exists()
    assert read_reference(prepared, TRAINING, "evaluation", needed=True).tolist() == (LOGPROBS - 5).tolist()


def test_rows_that_no_step_sees_need_no_log_probs(tmp_path: Path) -> None:
    prepared, training = prepare(tmp_path, many(4), ROWS), Training(batch_size=1, max_steps=2)
    rows, cache = needed_rows(prepared, training), reference_cache(prepared)
    cache.write(rows.keys[:2], LOGPROBS)
    found = read_reference(prepared, training, "train", needed=True)
    assert found[rows.places[:2]].tolist() == LOGPROBS.tolist()
    assert np.isnan(found).all(axis=1).sum() == 2
    with pytest.raises(IncompleteReferenceError, match="no log-probs of 2 rows"):
        read_reference(prepared, Training(batch_size=1), "train", needed=True)


def test_an_algorithm_without_a_reference_reads_zeros(tmp_path: Path) -> None:
    assert not read_reference(prepare(tmp_path), TRAINING, "train", needed=False).any()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_log_probs_that_are_not_finite_are_never_kept(tmp_path: Path, number: float) -> None:
    prepared = prepare(tmp_path)
    cache, keys = reference_cache(prepared), needed_rows(prepared, TRAINING).keys[:2]
    with pytest.raises(ValueError, match="not finite"):
        cache.write(keys, np.array([[-1, -2], [-3, number]], dtype=np.float32))
    assert cache.place.list("") == []


def test_a_shard_is_written_when_it_is_time_and_at_the_end(tmp_path: Path) -> None:
    clock = iter([0.0, 1.0, 29.0, 31.0, 31.0, 32.0, 33.0])
    prepared = prepare(tmp_path, many(5), ROWS)
    rows, cache = needed_rows(prepared, TRAINING), reference_cache(prepared)
    writer, shards = ShardWriter(cache, every=30, clock=lambda: next(clock)), []
    for index in range(4):
        writer.add(rows.keys[[index]], LOGPROBS[:1] - index)
        shards.append(len(cache.place.list("")))
    assert shards == [0, 0, 1, 1]
    assert cache.missing(rows).tolist() == [3, 4, 5, 6]
    writer.flush()
    assert cache.missing(rows).tolist() == [4, 5, 6]
    assert cache.read(rows.keys, 2)[:4].tolist() == [[-1 - n, -2 - n] for n in range(4)]
