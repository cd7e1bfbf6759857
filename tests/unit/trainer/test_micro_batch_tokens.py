"""No rank and no server computes more tokens at once than `training.microBatchTokens`, whatever the size of a group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from online_runs import NEW_TOKENS, HereAndNow, OnlineSetting, online_run, prompts
from tests.tiny import tiny_tokenizer
from tiny_runs import Setting, pairs, tiny_classifier, tiny_engine, tiny_llama, tiny_run
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from alignment_api.contract.spec import AlignmentJobSpec
from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.packing import pack, pack_whole
from alignment_trainer.data.rows import InvalidRow, RawRow
from alignment_trainer.data.tokenize import PairTokenizer, PromptTokenizer, Room
from alignment_trainer.engines.scoring import score_sequences
from alignment_trainer.loop.train import train, train_online
from alignment_trainer.model.frozen_model import LocalScorer
from alignment_trainer.model.heads import PackedModel
from alignment_trainer.model.tasks import LANGUAGE, REWARD, ModelTask

GROUP = PromptGroup((1, 2, 3, 4), tuple((5 + n,) * (n % 7 + 1) for n in range(40)))
"""164 tokens behind its prompt, 11 with the longest completion."""
LONGEST_PAIR = 115


@contextmanager
def computed(*others: nn.Module) -> Iterator[list[int]]:
    """Tokens of every batch that a model computes, those of `others` apart."""
    found: list[int] = []

    def see(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if isinstance(module, PackedModel) and not any(module is other for other in others):
            found.append(arguments[0].input_ids.numel())

    hook = register_module_forward_pre_hook(see)
    try:
        yield found
    finally:
        hook.remove()


def spec_of(tokens: int) -> AlignmentJobSpec:
    return AlignmentJobSpec.model_validate(
        {
            "model": {"source": "pvc://models/tiny"},
            "data": {"source": "pvc://data/rows.jsonl"},
            "algorithm": {"dpo": {}},
            "training": {"microBatchTokens": tokens, "precision": "fp32"},
        }
    )


@pytest.mark.parametrize("algorithm", ["dpo", "reward"])
def test_offline_steps(tmp_path: Path, algorithm: str) -> None:
    """Of pairs that fit, as `prepare` lets no other pass."""
    assert max(len(pair.prompt) + pair.group.completion_tokens for pair in pairs(12)) <= LONGEST_PAIR
    run, _ = tiny_run(tmp_path, Setting(algorithm, steps=3, micro_tokens=LONGEST_PAIR))
    with computed() as tokens:
        train(run)
    assert len(tokens) >= 6
    assert max(tokens) <= LONGEST_PAIR


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_online_steps_of_actor_and_critic(tmp_path: Path, algorithm: str) -> None:
    """A prompt of 6 tokens with 4 completions of 8 is a row of up to 34 tokens."""
    at_once = len(prompts(1)[0].prompt) + NEW_TOKENS
    run, _ = online_run(tmp_path, OnlineSetting(algorithm, steps=2, micro_tokens=at_once))
    clients = run.services.clients
    assert isinstance(clients, HereAndNow)
    clients.never_ends = True
    with computed(clients.judge) as tokens:
        train_online(run)
    assert len(tokens) > 32
    assert max(tokens) == at_once - 1, "a completion with its prompt, whose last token predicts nothing"


@pytest.mark.parametrize(("task", "network"), [(LANGUAGE, "causal"), (REWARD, "classifier")])
@pytest.mark.parametrize("at_once", [64, 100])
def test_servers_and_the_evaluator(tmp_path: Path, task: ModelTask, network: str, at_once: int) -> None:
    model = tiny_llama() if network == "causal" else tiny_classifier()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    found = []
    for tokens in (at_once, 100_000):
        scorer = LocalScorer(task, tmp_path / "model", spec_of(tokens))
        with computed() as computed_tokens:
            found.append(np.concatenate(scorer.score([GROUP, GROUP])))
        scorer.close()
        assert max(computed_tokens) <= tokens
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("packing", [pack, pack_whole])
def test_held_out_rows_of_a_trainee(packing: Any) -> None:
    engine = tiny_engine(Setting("dpo" if packing is pack else "reward"))
    with computed() as tokens:
        scored = score_sequences(engine.forward, packing, [GROUP], 16)
    assert scored.shape == (1, 40)
    assert torch.isfinite(scored).all()
    assert max(tokens) <= 16


def test_prepare_refuses_a_pair_that_is_longer() -> None:
    tokenizer = tiny_tokenizer()
    (row,) = parse_preferences(
        RawRow(1, "a.jsonl:1", {"prompt": "2 + 2?", "chosen": "It is 4.", "rejected": "It is five."})
    )
    example = PairTokenizer(tokenizer, 1000, 1000).encode(row)
    whole = len(example.prompt) + example.group.completion_tokens
    assert PairTokenizer(tokenizer, 1000, whole).encode(row) == example
    complaint = (
        rf"are {whole} tokens, and a pair is computed at once: more than {whole - 1} \(spec\.training\.microBatch"
    )
    with pytest.raises(InvalidRow, match=complaint):
        PairTokenizer(tokenizer, 1000, whole - 1).encode(row)


def test_prepare_refuses_a_prompt_whose_completion_would_be_longer() -> None:
    tokenizer, row = tiny_tokenizer(), parse_prompt(RawRow(1, "a.jsonl:1", {"prompt": "2 + 2?"}))

    def encoded(at_once: int) -> int:
        return len(PromptTokenizer(tokenizer, Room(1000, at_once, 20, "maxNewTokens")).encode(row).prompt)

    length = encoded(1000)
    assert encoded(length + 20) == length
    with pytest.raises(InvalidRow, match=rf"more than {length + 19} \(spec\.training\.microBatchTokens\)"):
        encoded(length + 19)
