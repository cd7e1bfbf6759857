"""What `prepare` tries of reward functions, and when a run gives one up: neither lets a job train on nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment_api.contract.rewards import Reward
from alignment_trainer.process.errors import UserError
from alignment_trainer.rewards import Answer, FunctionScorer, check_functions
from alignment_trainer.rewards.scorer import LOST_OF, SKIPPED_OF

FIELD = "spec.algorithm.grpo"
HERE = f"{FIELD}.rewards[0].function"
SOURCE = "pvc://code/judges"
ROW = {"prompt": "Say something.", "answer": "36"}
JUDGES = """
import functools, json, os, time
@functools.cache
def model():
    time.sleep(1.0)  # as if loaded
    return len
def loads(completion, row):
    return model()(completion)
def loads_for_text(completion, row):
    return model()(completion) if completion else 0
def slow(completion, row):
    time.sleep(1.0)
    return 1.0
def slow_on_text(completion, row):
    time.sleep(60 if completion and completion != row.get("swift") else 0)
    return 1.0
def dies(completion, row):
    os._exit(3)
def dies_on_text(completion, row):
    if completion and completion != row.get("swift"):
        os._exit(3)
    return 1.0
def raises_on_text(completion, row):
    if completion == "good":
        return 1.0
    assert not completion, "no text, please"
    return 0.0
def raises(completion, row):
    raise ValueError("never works")
def some(completion, row):
    return json.loads(completion)["score"]
def dies_or_scores(completion, row):
    if completion == "die":
        os._exit(3)
    return 1.0
def of_a_trainer(prompts, completions, **columns):
    return [1.0]
def of_a_batch(completions, **columns):
    return [1.0]
def other_names(text, fields):
    return 1.0
def third(completion, row, tokenizer):
    return 1.0
def columns(completion, **columns):
    return 1.0
def anything(*args, **kwargs):
    return 1.0
def by_place(completion, row, /):
    return 1.0
def turned(row, completion, *, scale=2.0, **rest):
    return scale * len(completion) * row["factor"]
class Judge:
    def __call__(self, completion, row):
        return 1.0
judge = Judge()
"""
Make = Callable[..., tuple[tuple[Reward, ...], dict[str, str]]]


@pytest.fixture
def python(tmp_path: Path) -> Make:
    (tmp_path / "judges.py").write_text(JUDGES)

    def make(name: str, timeout: float = 20.0, **options: Any) -> tuple[tuple[Reward, ...], dict[str, str]]:
        entry = {"entrypoint": f"judges:{name}", "path": SOURCE, "firstCallTimeoutSeconds": 20.0, **options}
        function = {"python": entry, "timeoutSeconds": timeout}
        return (Reward.model_validate({"name": "r", "function": function}),), {SOURCE: str(tmp_path)}

    return make


def refused(functions: tuple[tuple[Reward, ...], dict[str, str]]) -> str:
    with pytest.raises(UserError) as caught:
        check_functions(*functions, FIELD, [ROW])
    assert caught.value.reason == "InvalidRewardFunction"
    return str(caught.value)


def answers(*texts: str) -> list[Answer]:
    return [Answer(text, 1, {"swift": "good"}) for text in texts]


def test_a_judge_that_loads_in_its_first_call_is_given_its_own_time_for_it(python: Make) -> None:
    functions = python("loads", timeout=0.6)
    check_functions(*functions, FIELD, [ROW])
    with FunctionScorer(*functions, FIELD) as scorer:
        assert scorer.score(answers("one", "three")) == {"r": [3.0, 5.0]}
        assert scorer.timeouts == 0


def test_a_judge_that_does_not_load_in_that_time_is_refused_with_the_option(python: Make) -> None:
    message = refused(python("loads", firstCallTimeoutSeconds=0.3))
    assert message.startswith(f"{HERE}.python.entrypoint: it took longer than 0.3 s for the completion '' in its trial")
    assert message.endswith(f"load less, or write a larger {HERE}.python.firstCallTimeoutSeconds (0.3)")


@pytest.mark.parametrize("name", ["slow", "loads_for_text"])
def test_a_function_whose_later_calls_take_too_long_is_refused_with_the_option(python: Make, name: str) -> None:
    message = refused(python(name, timeout=0.3))
    assert "it took longer than 0.3 s for the completion 'The answer is 42.' in its trial" in message
    assert message.endswith(f"make it faster, or write a larger {HERE}.timeoutSeconds (0.3)")


@pytest.mark.parametrize("name", ["dies", "dies_on_text"])
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_a_function_that_ends_its_process_in_its_trial_is_refused(python: Make, name: str, on_error: str) -> None:
    message = refused(python(name, onError=on_error))
    assert "its process ended with exit code 3 for the completion" in message
    assert "it must return a number, and neither end its process nor crash" in message


def test_a_module_that_ends_its_process_is_refused(python: Make, tmp_path: Path) -> None:
    functions = python("dies")
    (tmp_path / "judges.py").write_text("import os\nos._exit(4)\n")
    message = refused(functions)
    assert message.startswith(f"{HERE}.python.entrypoint: it could not be made: its process ended with exit code 4")


def test_a_pattern_that_hangs_on_text_is_refused_by_its_own_limit() -> None:
    function = {"regex": {"pattern": "^(.|.|.|.|.|.|.|.)*x$"}, "timeoutSeconds": 0.3}
    message = refused(((Reward.model_validate({"function": function}),), {}))
    assert message.startswith(f"{HERE}.regex: it took longer than 0.3 s for the completion 'The answer is 42.'")


def test_a_function_that_raises_for_any_text_is_refused(python: Make) -> None:
    message = refused(python("raises_on_text"))
    assert "raised AssertionError: no text, please" in message
    assert "or write `onError: skip` beside its entrypoint" in message


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("of_a_trainer", "it asks for `prompts` and `completions`, and it has no `completion` and no `row`"),
        ("of_a_batch", "it asks for `completions`, and it has no `completion` and no `row`"),
        ("other_names", "it asks for `text` and `fields`, and it has no `completion` and no `row`"),
        ("third", "it asks for `tokenizer`"),
        ("columns", "it has no `row`"),
        ("anything", "it has no `completion` and no `row`"),
        ("by_place", "it has no `completion` and no `row`"),
    ],
)
def test_a_function_with_other_parameters_is_refused_by_their_names(python: Make, name: str, found: str) -> None:
    message = refused(python(name))
    assert (
        f"cannot be called with a completion and its row by name: {found}; it is called for one completion" in message
    )
    assert f"write `def {name}(completion: str, row: dict) -> float`" in message


def test_parameters_are_matched_by_name_whatever_their_order_and_those_with_defaults_keep_them(python: Make) -> None:
    with FunctionScorer(*python("turned"), FIELD) as scorer:
        assert scorer.score([Answer("abc", 1, {"factor": 10})]) == {"r": [60.0]}
    with FunctionScorer(*python("judge"), FIELD) as scorer:
        assert scorer.score([Answer("abc", 1, {})]) == {"r": [1.0]}


def test_after_a_loss_the_long_limit_is_spent_on_a_call_that_is_known_to_end(python: Make) -> None:
    """Three completions hang one after the other: each costs the short limit, not the long one."""
    functions = python("slow_on_text", timeout=0.3, firstCallTimeoutSeconds=300.0)
    with FunctionScorer(*functions, FIELD) as scorer:
        assert scorer.score(answers("good", "bad", "bad", "bad", "good"))["r"] == [1.0, 0.0, 0.0, 0.0, 1.0]
        assert scorer.timeouts == 3


def test_a_function_that_loses_most_of_its_calls_ends_the_attempt(
    python: Make, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    half = ["die", "good"] * (LOST_OF // 2)
    with FunctionScorer(*python("dies_or_scores"), FIELD) as scorer:
        assert sum(scorer.score(answers(*half))["r"]) == LOST_OF // 2, "half of them is not most of them"
        with pytest.raises(UserError) as caught:
            scorer.score(answers("die", "die"))
    message = str(caught.value)
    assert message.startswith(f"{HERE}.python.entrypoint: 9 of its newest 16 calls gave no answer")
    assert "its process ended with exit code 3" in message
    assert f"write a larger {HERE}.timeoutSeconds (20)" in message


def test_a_completion_that_cannot_be_scored_is_skipped_where_that_is_asked_for(python: Make) -> None:
    functions = python("some", onError="skip")
    with FunctionScorer(*functions, FIELD) as scorer:
        found = scorer.score(answers('{"score": 2}', "no json", '{"score": null}', '{"score": 3}'))["r"]
        assert [value for value in found if not math.isnan(value)] == [2.0, 3.0]
        assert [math.isnan(value) for value in found] == [False, True, True, False]
        assert (scorer.skipped, scorer.timeouts) == (2, 0)


def test_without_it_the_same_completion_ends_the_job(python: Make) -> None:
    with FunctionScorer(*python("some"), FIELD) as scorer, pytest.raises(UserError, match="for the completion 'no js"):
        scorer.score(answers('{"score": 2}', "no json"))


def test_a_lost_call_is_skipped_too_and_counted_as_both(python: Make) -> None:
    with FunctionScorer(*python("dies_or_scores", onError="skip"), FIELD) as scorer:
        found = scorer.score(answers("good", "die", "good"))["r"]
        assert [found[0], math.isnan(found[1]), found[2]] == [1.0, True, 1.0]
        assert (scorer.skipped, scorer.timeouts) == (1, 1)


def test_more_skipped_completions_than_are_allowed_end_the_job(python: Make) -> None:
    """A twentieth of 200 is 10: the eleventh within 200 ends it, and ten in each 200 go on for ever."""
    with FunctionScorer(*python("raises_on_text", onError="skip"), FIELD) as scorer:
        for _ in range(3):
            scorer.score(answers(*["bad"] * 10, *["good"] * (SKIPPED_OF - 10)))
        assert scorer.skipped == 30
        with pytest.raises(UserError) as caught:
            scorer.score(answers(*["bad"] * 11))
    message = str(caught.value)
    assert "it gave no score for 11 of its newest 200 completions" in message
    assert message.endswith(f"write a larger {HERE}.python.maxSkippedFraction (0.05)")


def test_of_a_fraction_of_nothing_nothing_is_skipped(python: Make) -> None:
    functions = python("some", onError="skip", maxSkippedFraction=0.0)
    with FunctionScorer(*functions, FIELD) as scorer, pytest.raises(UserError, match="no score for 1 of its newest"):
        scorer.score(answers("no json"))


def test_a_function_that_skips_may_raise_in_its_trial_but_not_for_every_completion(python: Make) -> None:
    check_functions(*python("raises_on_text", onError="skip"), FIELD, [ROW])
    assert "raised ValueError: never works" in refused(python("raises", onError="skip"))


def test_a_row_that_lacks_its_answer_is_never_skipped() -> None:
    reward = Reward.model_validate({"function": {"numericAnswer": {}}})
    with FunctionScorer([reward], {}, FIELD) as scorer, pytest.raises(UserError, match="no field `answer`"):
        scorer.score([Answer("36", 1, {"prompt": "?"})])


@pytest.mark.parametrize("wrong", [{"onError": "ignore"}, {"maxSkippedFraction": 1.0}, {"firstCallTimeoutSeconds": 0}])
def test_options_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Reward.model_validate({"function": {"python": {"entrypoint": "mine:score", **wrong}}})
