"""Reward functions: what they say of a completion, and what becomes of those that hang, crash or are wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from alignment_api.contract.rewards import Reward
from alignment_trainer.process.errors import UserError
from alignment_trainer.rewards import Answer, FunctionScorer, check_functions

FIELD = "spec.algorithm.grpo"
SEVEN = {"answer": 7}
# Backtracks through 2^n ways to cut the row of a's, in C, holding the interpreter's lock.
BACKTRACKING = {"regex": {"pattern": "^(a+)+$"}, "timeoutSeconds": 0.5}
HOPELESS = Answer("a" * 60 + "b", 61, {})
USER_CODE = """
import os, subprocess, sys, time
def length(completion, row):
    print("to nobody's harm")
    sys.stdout.flush()
    os.write(1, b"nor this")
    return len(completion) * row["factor"]
def raises(completion, row):
    if completion == "bad":
        raise ValueError("cannot read this")
    return 1
def dies(completion, row):
    if completion == "die":
        os._exit(7)
    return 1.0
def hangs(completion, row):
    if completion == "hang":
        open(row["file"], "w").write(str(subprocess.Popen(["sleep", "300"]).pid))
        time.sleep(300)
    return 1.0
def deaf(completion, row):
    import signal
    signal.signal(signal.SIGALRM, signal.SIG_IGN)
    time.sleep(300)
def quits(completion, row):
    sys.exit("enough")
returned = None
def returns(completion, row):
    return row["value"]
def alone(completion):
    return 1.0
"""


def rewards(*functions: dict[str, Any]) -> tuple[Reward, ...]:
    return tuple(
        Reward.model_validate({"name": f"r{place}", "function": function}) for place, function in enumerate(functions)
    )


def scores(function: dict[str, Any], *answers: Answer | tuple[str, dict[str, Any]]) -> list[float]:
    items = [answer if isinstance(answer, Answer) else Answer(answer[0], 1, answer[1]) for answer in answers]
    with FunctionScorer(rewards(function), {}, FIELD) as scorer:
        return scorer.score(items)["r0"]


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Any]:
    """A reward of the entry point of that name, in a module of the user's, and the sources that say where it is."""
    (tmp_path / "mine.py").write_text(USER_CODE)
    sources = {"pvc://code/rewards": str(tmp_path)}

    def make(name: str, module: str = "mine", **options: Any) -> tuple[tuple[Reward, ...], dict[str, str]]:
        entry = {"entrypoint": f"{module}:{name}", "path": "pvc://code/rewards"}
        function = {"python": entry | {"firstCallTimeoutSeconds": options.get("timeoutSeconds", 30)}, **options}
        return rewards(function), sources

    yield make
    assert not (tmp_path / "__pycache__").exists(), "the user's volume may be read-only"


def test_a_numeric_answer_is_the_final_number_or_expression() -> None:
    right = ["7", "The answer is 7.", "3 + 4 = 7", "$\\boxed{7}$", "7.0", "$x = 7$"]
    wrong = ["8", "", "seven", "7, no wait, it is 8", "5 6 7 8", "-7"]
    assert scores({"numericAnswer": {}}, *((text, SEVEN) for text in right + wrong)) == [1.0] * 6 + [0.0] * 6


def test_repeating_the_question_is_no_answer() -> None:
    texts = ["3 + 4", "The answer is 3 + 4.", "$3 \\times 4 - 5$", "14/2", "$14 - 7$"]
    assert scores({"numericAnswer": {}}, *((text, SEVEN) for text in texts)) == [0.0] * 5


def test_an_answer_that_is_no_integer_may_be_an_expression() -> None:
    asked = [("$2\\sqrt{2}$", {"answer": "$\\sqrt{8}$"}), ("$x + 1$", {"answer": "$1 + x$"}), ("1/2", {"answer": 0.5})]
    assert scores({"numericAnswer": {}}, *asked) == [1.0, 1.0, 1.0]


def test_answers_are_compared_as_numbers_however_they_are_written() -> None:
    function = {"numericAnswer": {"answerField": "gold"}}
    asked = [("0.75", {"gold": "3/4"}), ("$\\frac{3}{4}$", {"gold": 0.75}), ("1,234", {"gold": "1234"})]
    assert scores(function, *asked) == [1.0, 1.0, 1.0]


def test_a_pattern_is_found_anywhere_unless_it_is_anchored() -> None:
    assert scores({"regex": {"pattern": r"\d"}}, ("it is 4 now", {}), ("four", {})) == [1.0, 0.0]
    assert scores({"regex": {"pattern": r"\A\d+\Z"}}, ("it is 4", {}), ("42", {})) == [0.0, 1.0]


def test_the_length_penalty_by_hand() -> None:
    """DAPO, eq. 13, with 10 tokens free and 4 more to the full penalty: 12 tokens cost a half."""
    function = {"length": {"maxTokens": 10, "toleranceTokens": 4}}
    answers = [Answer("", tokens, {}) for tokens in (0, 10, 11, 12, 14, 50)]
    assert scores(function, *answers) == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]


def test_json_is_scored_by_its_schema() -> None:
    schema = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}
    texts = ['{"name": "Ada"}', ' {"name": "Ada", "age": 3}\n', '{"name": 3}', '{"name": "Ada"', "[" * 100_000, ""]
    assert scores({"jsonSchema": {"definition": schema}}, *((text, {}) for text in texts)) == [1, 1, 0, 0, 0, 0]


def test_a_function_of_ones_own_gets_the_row_and_may_print(python: Any) -> None:
    with FunctionScorer(*python("length"), FIELD) as scorer:
        found = scorer.score([Answer("four", 1, {"factor": 0.5}), Answer("", 1, {"factor": 2})])
    assert found == {"r0": [2.0, 0.0]}


def test_each_function_is_scored_under_its_name_and_other_rewards_are_left_out() -> None:
    several = (
        Reward.model_validate({"model": {"source": "hf://org/judge"}}),
        Reward.model_validate({"function": {"regex": {"pattern": "7"}}}),
        Reward.model_validate({"name": "short", "function": {"length": {"maxTokens": 1, "toleranceTokens": 1}}}),
    )
    with FunctionScorer(several, {}, FIELD) as scorer:
        assert scorer.score([Answer("7", 1, {}), Answer("8", 2, {})]) == {"regex": [1.0, 0.0], "short": [0.0, -1.0]}
        assert scorer.score([]) == {"regex": [], "short": []}


def test_without_functions_no_process_is_started() -> None:
    before = psutil.Process().children()  # of other tests: a fork server
    with FunctionScorer(several := (Reward.model_validate({"model": {"source": "hf://org/judge"}}),), {}) as scorer:
        assert scorer.score([Answer("7", 1, {})]) == {}
    check_functions(several, {}, FIELD)
    assert psutil.Process().children() == before


def test_a_pattern_that_backtracks_for_ever_scores_nothing_and_the_rest_is_scored() -> None:
    with FunctionScorer(rewards(BACKTRACKING), {}, FIELD) as scorer:
        began = time.monotonic()
        assert scorer.score([Answer("aa", 1, {}), HOPELESS, Answer("aaa", 1, {}), HOPELESS])["r0"] == [1, 0, 1, 0]
        assert scorer.timeouts == 2
        assert time.monotonic() - began < 120  # it would take years


def test_a_function_that_ends_its_process_scores_nothing_there_and_is_counted(python: Any) -> None:
    with FunctionScorer(*python("dies"), FIELD) as scorer:
        texts = ["die", "live", "die", "live"]
        assert scorer.score([Answer(text, 1, {}) for text in texts])["r0"] == [0.0, 1.0, 0.0, 1.0]
        assert scorer.timeouts == 2


def test_a_function_that_hangs_takes_what_it_started_with_it(python: Any, tmp_path: Path) -> None:
    row = {"file": str(tmp_path / "pid")}
    with FunctionScorer(*python("hangs", timeoutSeconds=0.5), FIELD) as scorer:
        assert scorer.score([Answer("hang", 1, row), Answer("", 1, row)])["r0"] == [0.0, 1.0]
    assert ended(int((tmp_path / "pid").read_text()))


def test_a_function_that_disarms_its_alarm_is_ended_from_outside(python: Any) -> None:
    with FunctionScorer(*python("deaf", timeoutSeconds=0.2), FIELD) as scorer:
        assert scorer.score([Answer("", 1, {})])["r0"] == [0.0]
        assert scorer.timeouts == 1


def test_a_function_that_raises_stops_the_job_and_says_where(python: Any) -> None:
    with FunctionScorer(*python("raises"), FIELD) as scorer:
        with pytest.raises(UserError) as caught:
            scorer.score([Answer("good", 1, {}), Answer("bad", 1, {"prompt": "Read!"}), Answer("good", 1, {})])
        for part in (
            f"{FIELD}.rewards[0].function.python.entrypoint: raised ValueError: cannot read this (mine.py:10)",
            "'bad'",
            '{"prompt": "Read!"}',
            "must return a finite number",
        ):
            assert part in str(caught.value)
        assert scorer.score([Answer("good", 1, {})]) == {"r0": [1.0]}, "what was left of the batch is not mixed in"


def test_a_function_that_exits_is_taken_at_its_word(python: Any) -> None:
    with FunctionScorer(*python("quits"), FIELD) as scorer, pytest.raises(UserError, match="SystemExit: enough"):
        scorer.score([Answer("", 1, {})])


@pytest.mark.parametrize("value", [None, "1.0", float("nan"), float("inf"), [1.0]])
def test_what_is_no_finite_number_stops_the_job(python: Any, value: Any) -> None:
    with FunctionScorer(*python("returns"), FIELD) as scorer, pytest.raises(UserError, match="returned "):
        scorer.score([Answer("", 1, {"value": value})])


@pytest.mark.parametrize(("value", "number"), [(True, 1.0), (3, 3.0), (-0.5, -0.5)])
def test_what_is_a_number_is_taken(python: Any, value: Any, number: float) -> None:
    with FunctionScorer(*python("returns"), FIELD) as scorer:
        assert scorer.score([Answer("", 1, {"value": value})]) == {"r0": [number]}


def test_hundreds_of_completions_take_no_process_each() -> None:
    functions = ({"regex": {"pattern": r"\d+"}}, {"length": {"maxTokens": 8}}, {"numericAnswer": {}})
    with FunctionScorer(rewards(*functions), {}, FIELD) as scorer:
        scorer.score([Answer("warm 7", 1, SEVEN)])
        began = time.monotonic()
        found = scorer.score([Answer(f"The answer is {number % 10}.", 6, SEVEN) for number in range(600)])
        assert time.monotonic() - began < 60  # 0.4 s on an idle machine; minutes with a process for each
    assert sum(found["r2"]) == 60


def test_a_worker_does_not_outlive_a_killed_trainer_even_in_a_loop_that_never_yields(tmp_path: Path) -> None:
    program = f"""
from alignment_api.contract.rewards import Reward
from alignment_trainer.rewards import Answer, FunctionScorer
reward = Reward.model_validate({{"function": {BACKTRACKING | {"timeoutSeconds": 3.0}}}})
scorer = FunctionScorer([reward], {{}})
scorer.start()
print(scorer._calls._worker._process.pid, flush=True)
scorer.score([Answer("a" * 60 + "b", 1, {{}})])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment) as trainer:
        assert trainer.stdout is not None
        worker = int(trainer.stdout.readline())
        time.sleep(0.3)  # it is in the loop
        os.kill(trainer.pid, signal.SIGKILL)
    end = time.monotonic() + 120
    while not ended(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert ended(worker)


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def refused(*of_check: Any) -> str:
    with pytest.raises(UserError) as caught:
        check_functions(*of_check)
    return str(caught.value)


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        ({"regex": {"pattern": "(a"}}, ["regex.pattern: `(a` is no Python regular expression (missing ), "]),
        (
            {"jsonSchema": {"definition": {"properties": {"a": {"type": "strin"}}}}},
            ["jsonSchema.definition: no JSON Schema", "at properties/a/type, 'strin'"],
        ),
        (
            {"python": {"entrypoint": "jso:loads"}},
            ["python.entrypoint: there is no module `jso`", "no `path` is given"],
        ),
        (
            {"python": {"entrypoint": "json:load_s"}},
            ["python.entrypoint: module `json` has no `load_s`", "did you mean `json:loads`?"],
        ),
        (
            {"python": {"entrypoint": "math:pi"}},
            ["python.entrypoint: `pi` is float", "write `def pi(completion: str, "],
        ),
    ],
)
def test_a_function_that_cannot_be_made_is_refused_with_its_field_and_the_remedy(
    function: dict[str, Any], parts: list[str]
) -> None:
    message = refused(rewards({"length": {"maxTokens": 3}}, function), {}, FIELD)
    assert message.startswith(f"{FIELD}.rewards[1].function.{parts[0]}")
    assert all(part in message for part in parts)


def test_a_module_that_is_not_there_is_refused_with_those_that_are(python: Any) -> None:
    message = refused(*python("length", module="yours"), FIELD)
    assert "there is no module `yours` in " in message
    assert "where there are mine;" in message


def test_a_module_that_does_not_import_is_refused_with_the_reason(python: Any, tmp_path: Path) -> None:
    (tmp_path / "lacking.py").write_text("import no_such_package\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    lacking, broken = (refused(*python("f", module=module), FIELD) for module in ("lacking", "broken"))
    assert "module `lacking` imports `no_such_package`, which is not here" in lacking
    assert "importing `broken` raised ZeroDivisionError: division by zero" in broken


def test_a_function_of_one_argument_is_refused(python: Any) -> None:
    message = refused(*python("alone"), FIELD)
    assert "`alone(completion)` cannot be called with a completion and its row" in message
    assert "write `def alone(completion: str, row: dict) -> float`" in message


def test_a_path_that_the_runtime_does_not_know_is_refused(python: Any) -> None:
    functions, _ = python("length")
    assert refused(functions, {}, FIELD).startswith(f"{FIELD}.rewards[0].function.python.path: ")


def test_a_function_is_tried_on_the_first_row(python: Any) -> None:
    message = refused(*python("length"), FIELD, [{"prompt": "Hello?"}])
    assert "raised KeyError: 'factor' (mine.py:7) for the completion '' of row" in message
    check_functions(*python("length"), FIELD, [{"factor": 1}])


def test_every_row_must_have_an_answer_with_a_number() -> None:
    numeric = rewards({"regex": {"pattern": "a"}}, {"numericAnswer": {}})
    check_functions(numeric, {}, FIELD, [{"answer": "1/2"}, {"answer": 3}])
    lacking = refused(numeric, {}, FIELD, [SEVEN, {"prompt": "?", "solution": 3}])
    assert lacking.startswith(f"{FIELD}.rewards[1].function.numericAnswer: row " + json.dumps({"prompt": "?"})[:-1])
    assert "no field `answer`, only prompt, solution" in lacking
    assert "`answer` is 'none', in which no number is found" in refused(numeric, {}, FIELD, [SEVEN, {"answer": "none"}])
