"""Feedback: how rows are read, what they are compared with, KTO's loss, and what a job makes of them."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from decimal import Decimal, getcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ranks import run_ranks
from roles import TinyJob
from tests.tiny import pairs as texts
from tests.tiny import tiny_tokenizer
from tiny_runs import Setting, offline, pairs, tiny_engine

from alignment_api.contract.status import EvaluationReport
from alignment_trainer.algorithms import ScoredRows
from alignment_trainer.checkpoint.run_state import Checkpoints
from alignment_trainer.data.examples import EXAMPLE_PARTS, Example
from alignment_trainer.data.feedback import FeedbackTokenizer, check_labels
from alignment_trainer.data.layouts.feedback import parse_feedback
from alignment_trainer.data.layouts.formats import check_feedback
from alignment_trainer.data.rows import InvalidRow, RawRow
from alignment_trainer.data.sampler import Sampler
from alignment_trainer.data.spool import Selection, spool_in
from alignment_trainer.data.storage import Folder
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop.offline import Learner, LoopOptions, Run, RunHooks, TrainingRows
from alignment_trainer.process import distributed
from alignment_trainer.process.errors import UserError


def encoder(max_length: int = 100, at_once: int = 1000) -> FeedbackTokenizer:
    return FeedbackTokenizer(tiny_tokenizer(), max_length, at_once)


def rows(*said: tuple[str, str, bool]) -> list[Any]:
    values = [{"prompt": prompt, "completion": completion, "label": label} for prompt, completion, label in said]
    return [row for number, value in enumerate(values, 1) for row in parse_feedback(RawRow(number, "x", value))]


def said(example: Example | InvalidRow) -> list[str]:
    assert isinstance(example, Example)
    return [tiny_tokenizer().decode(tokens).removesuffix("<|im_end|>") for tokens in example.group.completions]


def test_a_row_stands_beside_the_nearest_answer_to_another_prompt_before_it() -> None:
    found = encoder().encode_each(rows(("a", "1", True), ("a", "2", False), ("b", "3", True), ("b", "4", False)))
    assert [said(example) for example in found] == [["1", "3"], ["2", "3"], ["3", "2"], ["4", "2"]]
    assert [example.label for example in found if isinstance(example, Example)] == [1, 0, 1, 0]


def test_what_came_in_an_earlier_piece_is_remembered() -> None:
    in_pieces = encoder()
    in_pieces.encode_each(rows(("a", "1", True), ("b", "2", True)))
    assert said(in_pieces.encode_each(rows(("c", "3", True)))[0]) == ["3", "2"]


def test_the_other_answer_is_cut_to_the_room_there_is_and_the_own_one_never() -> None:
    long = "a long answer that has many tokens in it"
    whole = encoder().encode_each(rows(("a", "1", True), ("b", long, True)))[0]
    room = len(whole.prompt) + 4
    cut = encoder(max_length=1000, at_once=room + len(whole.group.completions[0])).encode_each(
        rows(("a", "1", True), ("b", "2", True))
    )
    assert [len(tokens) for tokens in cut[0].group.completions] == [len(whole.group.completions[0]), 2]
    short = encoder(max_length=len(whole.prompt) + 5).encode_each([*rows(("a", "1", True)), *rows(("b", long, True))])
    assert isinstance(short[1], InvalidRow)


def test_rows_of_one_prompt_alone_are_refused() -> None:
    found = encoder().encode_each(rows(("a", "1", True), ("a", "2", False)))
    assert all("has another prompt" in str(one) for one in found)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"prompt": "x", "completion": "y"}, "`label` is null; write true where the completion is desirable"),
        ({"prompt": "x", "completion": "y", "label": 1}, "`label` is a number"),
        ({"prompt": "x", "completion": "", "label": True}, "`completion` is empty"),
        ({"completion": "y", "label": True}, "`prompt` is missing"),
    ],
)
def test_what_is_no_feedback_is_refused(value: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRow, match=words):
        parse_feedback(RawRow(1, "x:1", value))


@pytest.mark.parametrize(("label", "meant"), [("true", True), (" False ", False), (True, True)])
def test_a_label_may_be_a_word_as_in_a_table(label: object, meant: bool) -> None:
    (row,) = parse_feedback(RawRow(1, "x:1", {"prompt": "x", "completion": "y", "label": label}))
    assert row.desirable is meant


@pytest.mark.parametrize(
    ("labels", "words"), [((True, True), "all 2 training rows are desirable"), ((True, False), "")]
)
def test_rows_of_one_label_alone_are_refused(tmp_path: Path, labels: tuple[bool, bool], words: str) -> None:
    found = encoder().encode_each(rows(("a", "1", labels[0]), ("b", "2", labels[1])))
    with spool_in(tmp_path, EXAMPLE_PARTS, 0) as spool:
        spool.add(found)
        whole = Selection(spool, np.arange(2))
        with pytest.raises(UserError, match=words) if words else nullcontext():
            check_labels(whole, "rows.jsonl")


def test_pairs_are_sent_to_an_algorithm_for_pairs() -> None:
    with pytest.raises(UserError, match="pairs of `chosen` and `rejected` are for `dpo`"):
        check_feedback([RawRow(1, "x:1", {"prompt": "x", "chosen": "a", "rejected": "b"})], "x")


def test_the_reference_point_is_the_mean_of_the_step_and_never_below_zero() -> None:
    kto, lengths = offline("kto"), torch.ones(2, 1)
    reference = torch.tensor([[-3.0], [-5.0]])
    assert float(kto.before(ScoredRows(torch.tensor([[-1.0], [-4.0]]), reference, lengths))) == 1.5
    assert float(kto.before(ScoredRows(torch.tensor([[-4.0], [-5.0]]), reference, lengths))) == 0.0


def exact_loss(ratio: str, point: str, desirable: bool, beta: str) -> float:
    """By 60 digits."""
    getcontext().prec = 60
    distance = Decimal(beta) * (Decimal(ratio) - Decimal(point)) * (1 if desirable else -1)
    return float(1 - 1 / (1 + (-distance).exp()))


@pytest.mark.parametrize("desirable", [True, False])
@pytest.mark.parametrize("ratio", ["-3000", "-1.5", "0", "2.25", "700"])
def test_the_loss_is_that_of_the_paper_at_any_log_probs(ratio: str, desirable: bool) -> None:
    weights = {"desirableWeight": 1.5, "undesirableWeight": 0.5}
    scores = torch.tensor([[float(ratio)]], dtype=torch.float64, requires_grad=True)
    batch = ScoredRows(scores, torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([int(desirable)]), torch.tensor(0.75))
    loss = offline("kto", beta=0.2, **weights).loss(batch).loss
    weight = 1.5 if desirable else 0.5
    share = exact_loss(ratio, "0.75", desirable, "0.2")
    assert float(loss.detach()) == pytest.approx(weight * share, rel=1e-6, abs=1e-12)
    loss.sum().backward()
    slope = weight * 0.2 * share * (1 - share) * (-1 if desirable else 1)
    assert float(scores.grad) == pytest.approx(slope, rel=1e-6, abs=1e-12)


def test_held_out_figures_are_of_labels_and_margins() -> None:
    ratios, labels = torch.tensor([[2.0], [-1.0], [-3.0], [0.0]]).double(), torch.tensor([1, 1, 0, 0])
    figures = offline("kto", beta=0.5).evaluated(
        ScoredRows(ratios, torch.zeros(4, 1), torch.ones(4, 1), labels), ["a", "b", "c", "d"]
    )
    assert figures["accuracy"].value == (1 + 0 + 1 + 0.5) / 4
    assert figures["margin"].value == pytest.approx(0.5 * (0.5 + 1.5))
    spread = math.sqrt(4 / 3 * (2 * 1.5**2 + 2 * 1.5**2)) / 4  # parts: 2 x 0.5 x +-1.5 of each label's mean
    assert figures["margin"].high - figures["margin"].value == pytest.approx(1.959964 * spread, rel=1e-6)


def kto_losses(folder: str, micro_tokens: int) -> list[list[float]]:
    """Of three steps, and their reference points, on this many ranks."""
    made = [Example(pair.row, pair.group, pair.row % 2) for pair in pairs(8)]
    engine = tiny_engine(Setting(sharding="none" if distributed.world_size() == 1 else "fsdp2"))
    algorithm = offline("kto")
    reference = score_sequences(engine.forward, algorithm.task.pack, [one.group for one in made], 10**6) - 1.0
    reports = list[Any]()

    class Told:
        def stepped(self, report: Any) -> None:
            reports.append(report)

        def saved(self, checkpoint: Any) -> None: ...

        def paused(self, seconds: float, waited: bool) -> None: ...

    run = Run(
        Learner(engine, algorithm),
        TrainingRows(made, Sampler(8, 4, seed=3), reference),
        LoopOptions(micro_tokens, 3, lambda step: 1e-3, 10**9, 10**9),
        Checkpoints(Folder(Path(folder)), 1, 1),
        RunHooks(Told()),
    )
    for batch in run.batches():
        for micro in batch.micros:
            engine.backward(run.loss(micro))
        run.finish(batch)
    return [[report.metrics[name] for report in reports] for name in ("loss", "reference_point")]


def test_every_split_of_a_step_has_one_reference_point(tmp_path: Path) -> None:
    whole = kto_losses(str(tmp_path / "a"), 10**6)
    assert whole[1][0] == pytest.approx(1.0, abs=1e-4), "the policy is a nat above the reference at first"
    for found in (
        kto_losses(str(tmp_path / "b"), 1),
        run_ranks(2, "test_feedback:kto_losses", folder=str(tmp_path / "c"), micro_tokens=100)[0],
    ):
        for one, other in zip(found, whole, strict=True):
            assert one == pytest.approx(other, rel=1e-4)


@pytest.mark.parametrize("training", [{}, {"lora": {"rank": 8, "alpha": 16}, "learningRate": 2e-2}], ids=["", "lora"])
def test_a_job_learns_what_is_desirable(tmp_path: Path, training: dict[str, Any]) -> None:
    spec = {"algorithm": {"kto": {}}, "training": training, "roles": {"reference": {"placement": "withPolicy"}}}
    job = TinyJob(tmp_path, spec=spec)
    made = [
        {"prompt": row["prompt"], "completion": row[field], "label": field == "chosen"}
        for row in texts(80)
        for field in ("chosen", "rejected")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    for role in ("prepare", "policy", "evaluator"):
        process = job.fork(role)
        process.join(900)
        assert process.exitcode == 0, (job.folder / f"{role}.log").read_text()[-3000:]
    report = EvaluationReport.model_validate_json((job.folder / "run" / "evaluation.json").read_text())
    assert list(report.before) == list(report.after) == ["accuracy", "margin"]
    assert (report.before["accuracy"].value, report.before["margin"].value) == (0.5, 0.0)
    assert report.after["margin"].low > 0
