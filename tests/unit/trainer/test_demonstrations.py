"""Demonstrations: how rows are read, which of their tokens are learned, and what a job makes of them."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from roles import TinyJob
from tests.tiny import pairs, tiny_tokenizer
from tiny_runs import offline, tiny_llama

from alignment_api.contract.inputs import Data
from alignment_api.contract.status import EvaluationReport
from alignment_trainer.algorithms import ScoredRows
from alignment_trainer.data.demonstrations import DemonstrationTokenizer
from alignment_trainer.data.examples import Example, PromptGroup, example_of
from alignment_trainer.data.layouts.demonstrations import parse_demonstrations
from alignment_trainer.data.layouts.formats import check_demonstrations
from alignment_trainer.data.layouts.parsers import PARSERS
from alignment_trainer.data.packing import pack
from alignment_trainer.data.rows import InvalidRow, RawRow
from alignment_trainer.model.heads import scorer
from alignment_trainer.process.errors import UserError

TALK = [
    {"role": "user", "content": "Tell me."},
    {"role": "assistant", "content": "Gladly."},
    {"role": "user", "content": "More."},
    {"role": "assistant", "content": "No."},
]
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and not loop.last %}...{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Leaves out what was said before, as templates do that leave out thoughts."""
UNMARKED = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def encoded(value: dict[str, Any], tokenizer: Any = None) -> Example:
    [row] = parse_demonstrations(RawRow(7, "rows.jsonl:7", value))
    return DemonstrationTokenizer(tokenizer or tiny_tokenizer(), 100, 1000).encode(row)


def learned(example: Example, tokenizer: Any = None) -> list[str]:
    """The text of each span."""
    tokens, spans = example.group.completions[0], example.group.spans or (((0, None),),)
    return [(tokenizer or tiny_tokenizer()).decode(tokens[start:end]) for start, end in spans[0]]


@pytest.mark.parametrize(
    ("value", "spans"),
    [
        ({"messages": TALK}, ["Gladly.<|im_end|>", "No.<|im_end|>"]),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, ["Ho<|im_end|>"]),
        ({"prompt": "Hi", "completion": "Ho"}, ["Ho<|im_end|>"]),
        ({"prompt": TALK[:3], "completion": TALK[3:]}, ["No.<|im_end|>"]),
        ({"prompt": TALK[:1], "completion": TALK[1:]}, ["Gladly.<|im_end|>", "No.<|im_end|>"]),
        ({"instruction": "Add.", "input": "2 3", "output": "5"}, ["5<|im_end|>"]),
    ],
)
def test_every_turn_of_the_assistant_is_learned_to_its_end_and_nothing_else(value: Any, spans: list[str]) -> None:
    assert learned(encoded(value)) == spans


def test_a_text_is_learned_whole_behind_its_first_token() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    example = encoded({"text": "Once upon a time"}, tokenizer)
    assert tokenizer.decode(example.prompt) == "<|im_start|>"
    assert learned(example, tokenizer) == ["Once upon a time<|im_end|>"]
    assert example.asked != encoded({"text": "Twice"}, tokenizer).asked, "texts are not rows of one prompt"


def test_without_a_chat_template_prompt_and_completion_are_joined() -> None:
    tokenizer = tiny_tokenizer(chat_template=None)
    assert learned(encoded({"prompt": "2 + 2 =", "completion": " 4"}, tokenizer), tokenizer) == [" 4<|im_end|>"]


def test_a_turn_that_the_template_does_not_close_ends_where_the_next_begins() -> None:
    tokenizer = tiny_tokenizer(UNMARKED)
    assert learned(encoded({"messages": TALK}, tokenizer), tokenizer) == [" Gladly. ", " No. <|im_end|>"]


@pytest.mark.parametrize(
    ("value", "template", "words"),
    [
        ({"messages": TALK}, FORGETFUL, "assistant turn 1: the chat template writes it otherwise once others follow"),
        ({"messages": TALK[:3]}, None, "`messages` ends with role `user`"),
        ({"messages": TALK[1:]}, None, "`messages` begins with role `assistant`"),
        ({"messages": TALK[:1]}, None, "`messages` has no message of role `assistant`"),
        ({"prompt": "x", "completion": " "}, None, "`completion` is empty"),
        ({"completion": "x"}, None, "`prompt` is missing"),
        ({"prompt": "x", "completion": TALK[2:]}, None, "`completion` begins with role `user`"),
        ({"question": "x"}, None, "no demonstration in it; found `question`"),
        ({"text": "long " * 200}, None, r"tokens, more than 100 \(spec.training.maxLength\)"),
    ],
)
def test_what_cannot_be_learned_for_certain_is_refused(value: Any, template: str | None, words: str) -> None:
    with pytest.raises(InvalidRow, match=words):
        encoded(value, tiny_tokenizer(template) if template else None)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "these rows are preferences"),
        ({"prompt": "x", "completion": "a", "label": True}, "these rows are binary feedback"),
        ({"question": "x"}, "these rows are no demonstrations, found `question`"),
    ],
)
def test_rows_of_another_kind_are_told(value: Any, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        check_demonstrations([RawRow(1, "x:1", value)], "x")


@pytest.mark.parametrize(
    "value",
    [
        {"messages": TALK, "chosen": TALK, "rejected": TALK},
        {"prompt": "x", "completion": "a", "label": True},
    ],
)
def test_a_format_that_is_written_is_read_whatever_else_the_rows_are(value: Any) -> None:
    rows, looked_at = [RawRow(1, "x:1", value)], Data.model_validate({"source": "pvc://data/x"})
    written = looked_at.model_copy(update={"format": "demonstrations"})
    with pytest.raises(UserError, match=r"or write spec\.data\.format: demonstrations to learn all of them"):
        PARSERS["demonstrations"].look(rows, "x", looked_at, "spec.data")
    PARSERS["demonstrations"].look(rows, "x", written, "spec.data")
    with pytest.raises(UserError, match="no demonstrations, found `question`"):
        PARSERS["demonstrations"].look([RawRow(1, "x:1", {"question": "x"})], "x", written, "spec.data")


def test_a_row_is_the_same_from_its_arrays() -> None:
    group = PromptGroup((1, 2), ((3, 4, 5), (6, 7)), (((0, 1), (2, 3)), ((1, 2),)))
    for example in (Example(9, group, 1), Example(2, PromptGroup((1,), ((2, 3), (4,))))):
        assert example_of(example.row, [tuple(part) for part in example.parts().values()]) == example


@pytest.mark.parametrize("spans", [((),), (((2, 2),),), (((0, 4),),), (((1, 3), (0, 1)),), (((0, 1),), ((0, 1),))])
def test_spans_are_some_of_a_completions_tokens_in_order(spans: Any) -> None:
    with pytest.raises(ValueError, match="span"):
        PromptGroup((1,), ((2, 3, 4),), spans)


def test_tokens_outside_of_spans_add_nothing_but_context() -> None:
    """Log-probs of the trained tokens are those of the same tokens where all are trained on."""
    whole = PromptGroup((1, 2), ((3, 4, 5, 6), (7, 8)))
    some = PromptGroup((1, 2), ((3, 4, 5, 6), (7, 8)), (((0, 1), (2, 4)), ((1, 2),)))
    model = scorer(tiny_llama())
    every, few = (model(pack([group])).detach() for group in (whole, some))
    assert torch.equal(few, every[[0, 2, 3, 5]])
    sums = pack([some]).sum_per_sequence(few)
    assert sums.tolist() == pytest.approx([float(every[[0, 2, 3]].sum()), float(every[5])])


def test_the_loss_is_a_mean_over_the_tokens_of_the_step() -> None:
    """4 nats over 2 tokens and 3 over 6: 7 / 8, not (2 + 1/2) / 2."""
    sft, rows = offline("sft"), ScoredRows(torch.tensor([[-4.0], [-3.0]]), torch.zeros(2, 1), torch.tensor([[2], [6]]))
    found = sft.loss(rows)
    assert found.loss.tolist() == [2.0, 0.5]
    assert float(found.loss @ sft.weights(rows).float()) == 7 / 8


def test_held_out_figures_are_of_tokens_with_an_interval() -> None:
    """r = 7/8, mean(c) = 4: residuals (4 - 7/4)/4 and (3 - 21/4)/4, of 2 prompts: error sqrt(2 * 2 * 0.5625^2) / 2."""
    scores = torch.tensor([[-4.0], [-3.0]]).double()
    figures = offline("sft").evaluated(ScoredRows(scores, torch.zeros(2, 1), torch.tensor([[2], [6]])), ["a", "b"])
    assert figures["nll"].value == pytest.approx(7 / 8)
    assert figures["nll"].high - figures["nll"].value == pytest.approx(1.959964 * 0.5625, rel=1e-6)
    assert figures["perplexity"].value == pytest.approx(math.exp(7 / 8))
    assert figures["perplexity"].low == pytest.approx(math.exp(7 / 8 - 1.959964 * 0.5625), rel=1e-6)


def demonstrations(folder: Path, **spec: Any) -> TinyJob:
    job = TinyJob(folder, spec={"algorithm": {"sft": {}}} | spec)
    turns = ("user", "prompt"), ("assistant", "chosen")
    rows = [{"messages": [{"role": r, "content": row[k]} for r, k in turns]} for row in pairs(80)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return job


@pytest.mark.parametrize("training", [{}, {"lora": {"rank": 8, "alpha": 16}, "learningRate": 2e-2}], ids=["", "lora"])
def test_a_job_learns_to_say_what_is_demonstrated(tmp_path: Path, training: dict[str, Any]) -> None:
    job = demonstrations(tmp_path, training=training)
    for role in ("prepare", "policy", "evaluator"):
        process = job.fork(role)
        process.join(900)
        assert process.exitcode == 0, (job.folder / f"{role}.log").read_text()[-3000:]
    assert not (job.folder / "run" / "prepared" / "reference").exists()
    report = EvaluationReport.model_validate_json((job.folder / "run" / "evaluation.json").read_text())
    assert list(report.before) == list(report.after) == ["nll", "perplexity"]
    assert report.after["nll"].high < report.before["nll"].low
