"""`numericAnswer` on the formats in which models are trained to answer: where a person reads the answer, so does it."""

from __future__ import annotations

import time

import pytest

from alignment_api.contract.rewards import RewardFunction
from alignment_trainer.rewards import Answer
from alignment_trainer.rewards.extraction import answer_text, spoken
from alignment_trainer.rewards.functions import Score, make_score

RIGHT = [  # each says 36
    # by itself, and in a sentence
    "36",
    "36.",
    "36!",
    " 36\n",
    "36 apples",
    "36 kg",
    "36kg of flour",
    "36€",
    "$36",
    "US$36",
    "36.00",
    "They pick 36 apples.",
    "There are 12 in a row and 3 rows, which makes 36",
    "12 * 3 = 36",
    "12*3=36.",
    "= 36",
    "n = 36",
    "First 12 are red, 24 are green.\nSo 12 + 24 = 36.",
    "36\n\nI hope that helps!",
    "3.6e1",
    "+36",
    # after a word or a sign
    "The answer is 36.",
    "The answer is: 36",
    "the answer is therefore 12 + 24 = 36.",
    "The final answer, in apples, is 36",
    "The answer to the question is 36, since 12 + 24 make that.",
    "The answer is 36, not 24.",
    "The answer is 36 (12 + 24).",
    "The answer is 36 because 40 - 4 = 36 and 4 are rotten",
    "The answer is that they pick 36 apples. 5 are left over.",
    "Answer:36",
    "answer = 36",
    "ANSWER: 36 apples out of 40",
    "Final answer: $36",
    "**Answer:** 36",
    "**Final Answer**\n36 apples",
    "## Answer\n\n36\n\nThere were 40 at first.",
    "Answer: 36\nExplanation: of 40 apples 4 are rotten.",
    "Answer:\n36",
    "The answer is **36**, that is 3 dozen.",
    "The answer is $12 + 24 = 36$, as asked for 2 days.",
    "The answer is not 24 but 36",
    "The answer is found by adding 12 and 24.\nThat makes 36",
    "The answer is 24. Wait, I forgot 12: it is 36.",
    "#### 36",
    "12 + 24 = <<12+24=36>>36\n#### 36",
    "They pick 36 of 40. #### 36",
    "#### $36",
    "#### 36 apples of 40",
    "#### 1. Add\n12 + 24\n#### 2. Result\n36",
    # tags and thoughts
    "<answer>36</answer>",
    "<answer>\n36 apples\n</answer>",
    "<answer>**36**</answer>",
    "<answer>$36$</answer> I am quite sure, 100%",
    "<answer>\\boxed{36}</answer>",
    "<answer>The answer is 36, not 24</answer>",
    "<ANSWER>36</ANSWER>",
    "<final_answer>36</final_answer>",
    "<answer>24</answer> No, wait.\n<answer>36</answer>",
    "36</answer>",
    "<think>12 or 24?</think><answer>36</answer>",
    "<think>\nThe answer is 24.\n</think>\n\n36",
    "12 apples, \\boxed{24}\n</think>\nThey pick 36.",
    "<think>24 <think>12</think> 7</think>36",
    "<reasoning>12 + 24</reasoning><answer>36</answer>",
    "[THINK]maybe 24[/THINK]36",
    "<|begin_of_thought|>24<|end_of_thought|>36",
    "<|channel|>analysis<|message|>24?<|end|><|start|>assistant<|channel|>final<|message|>36",
    "36<|im_end|>",
    "36</s>",
    "36<|end|>",
    # marks and brackets
    "(36)",
    "[36]",
    "{36}",
    "They pick (36 apples)",
    "`36`",
    "```\n36\n```",
    "*36*",
    "**36**",
    "***36***",
    "_36_",
    "**(36)**",
    "**36 apples** in all",
    "~~24~~ **36**",
    '"36"',
    "“36”",
    "'36'",
    "| total | 36 |",
    # JSON
    '{"answer": 36}',
    '{"answer": "36"}',
    '{"answer": "36 apples", "confidence": 90}',
    '{"reasoning": "12 and 24", "answer": "$36"}',
    '```json\n{"answer": "36", "steps": ["12", "24"]}\n```',
    '{"result": {"final_answer": 36.0}, "tries": 2}',
    '{"answer": "\\\\boxed{36}"}',
    "{'answer': '36'}",
    '{"answer": 36',
    # LaTeX
    "$36$",
    "$$36$$",
    "\\(36\\)",
    "\\[ x = 36 \\]",
    "\\boxed{36}",
    "\\boxed{36 apples}",
    "\\boxed{36\\text{ apples}}",
    "\\fbox{36}",
    "$\\boxed{36}$, since 4 of 40 are rotten.",
    "\\boxed{24} is what I thought; it is \\boxed{36}.",
    "\\frac{72}{2}",
    "\\$36",
]
WRONG = [  # none says 36
    "",
    "35",
    "136",
    "3 6",
    "-36",
    "360",
    "thirty-six",
    "36 or 24",
    "24 or 36",
    "36, or maybe 24",
    "12 + 24",
    "12 * 3",
    "The answer is 12 + 24.",
    "The answer is 36 or 24.",
    "Of 36 apples they keep 24",
    "I first had 36, but the answer is 24.",
    "The answer is not 36 but 24",
    "The answer is 36? No, it is 24.",
    "They pick 36 apples.\nAnswer:24",
    "Answer: 24 (others say 36)",
    "Answer: 24\nWhy: 36 - 12 = 24",
    "It might be 36, yet it is (24)",
    "#### 24\n36 was wrong",
    "36\n#### 24",
    "<answer>24</answer>",
    "36 <answer>24</answer>",
    "<answer>24</answer> 36",
    "\\boxed{36} <answer>24</answer>",
    "<answer></answer> 36",
    "<answer>none of 12 and 24</answer> 36",
    "<answer>36</answer><answer>24</answer>",
    "<answer>36 or 24</answer>",
    "<think>12 + 24 = 36</think>",
    "<think>\n36\n</think>\nI do not know.",
    "<think>so it is 36</think><answer>24</answer>",
    "<think>The answer is 36. \\boxed{36} <answer>36</answer>",
    "<think>#### 36",
    "12 + 24 = 36\n</think>\n<answer>24</answer>",
    "[THINK]36[/THINK]24",
    "<|channel|>analysis<|message|>The answer is 36",
    "\\boxed{24} (not 36)",
    "\\boxed{36}. Wait, no: \\boxed{24}",
    "\\boxed{12 + 24}",
    "\\boxed{24, 36}",
    '{"answer": 24, "other": 36}',
    '{"sum": 36, "answer": "24"}',
    '{"answer": null}',
    '{"answer": [12, 24]}',
    "36 <|im_end|> 24",
    "3.6e2",
    "$36 + x$",
]
OTHERS = [  # completion, the row's answer, score
    ("-5", "-5", 1),
    ("\u22125", "-5", 1),
    ("The answer is \u22125.", -5, 1),
    ("-$5", "-5", 1),
    ("5", "-5", 0),
    ("(-5)", "-5", 1),
    ("3 - 8 = -5", "-5", 1),
    ("1,250", "1250", 1),
    ("1 250", "1250", 1),
    ("$1{,}250$", "1250", 1),
    ("**$1,250.00**", "#### 1,250", 1),
    ("\\boxed{1,250}", "1250", 1),
    ("$48 in May and $1,250 in June", "1250", 1),
    ("1250000", "1.25e6", 1),
    ("50%", "0.5", 1),
    ("<answer>50%</answer>", "0.5", 1),
    ("`0.5`", "50%", 1),
    ("50\\%", "50", 1),
    ("50%", "50", 1),
    ("50%", "51", 0),
    ("(12 + 24 = 36)", "36", 1),
    ("(3/4)", "0.75", 1),
    ("\\dfrac{3}{4}", "3/4", 1),
    ("<answer>\\sqrt{8}</answer>", "$2\\sqrt{2}$", 1),
    ("\\boxed{2\\sqrt{2}}", "\\sqrt{8}", 1),
    ("The answer is $x + 1$", "$1 + x$", 1),
    ("The answer is $1$, $2$ and $3$.", "$\\{1, 2, 3\\}$", 1),
    ("$(3 + 4) \\cdot 2$", "$14$", 0),
    ("90^\\circ", "90", 1),
    ("7", "<think>5</think>\\boxed{7}", 1),
    ("7", "12 - 5 = <<12-5=7>>7 are left.\n#### 7", 1),
    ("10", "(10)", 1),
    ("0", "0", 1),
    ("<answer>0</answer>", "0", 1),
    ("", "0", 0),
]


@pytest.fixture(scope="module")
def score() -> Score:
    return make_score(RewardFunction.model_validate({"numericAnswer": {}}), None)


@pytest.mark.parametrize("completion", RIGHT)
def test_the_answer_is_read_where_a_person_reads_it(score: Score, completion: str) -> None:
    assert score(Answer(completion, 9, {"answer": "36"})) == 1.0


@pytest.mark.parametrize("completion", WRONG)
def test_a_completion_whose_answer_is_another_scores_nothing_whatever_else_it_names(
    score: Score, completion: str
) -> None:
    assert score(Answer(completion, 9, {"answer": "36"})) == 0.0


@pytest.mark.parametrize(("completion", "answer", "expected"), OTHERS)
def test_signs_thousands_shares_and_formulas_are_compared_as_what_they_say(
    score: Score, completion: str, answer: str | int, expected: int
) -> None:
    assert score(Answer(completion, 9, {"answer": answer})) == expected


@pytest.mark.parametrize(
    ("completion", "said"),
    [
        ("36", None),
        ("12 + 24 = 36", None),
        ("36</think>24", "24"),
        ("36</think><think>24</think>12", "12"),
        ("36</think>", ""),
    ],
)
def test_where_the_prompt_has_opened_a_thought_what_comes_before_its_end_is_no_answer(
    completion: str, said: str | None
) -> None:
    assert spoken(completion, thinking=True) == (said or "")
    assert answer_text(completion, thinking=True) == (said or None)


SLOW = (
    *("<think>", "</think>", "<answer>", "\\boxed{", '{"answer": {', '"answer":"', "answer is ", "wait, ", "1 or "),
    *("*a ", "`1` ", "_1 ", "$", "$1 ", "(1", "[", "1,", "1e9 ", "#### ", "<|", "\\(", "\n"),
)


@pytest.mark.parametrize("unit", SLOW)
def test_a_long_text_made_to_be_slow_costs_no_more_than_its_length(unit: str) -> None:
    """Far longer than a completion is: milliseconds where the time grows with the length, minutes with its square."""
    began = time.process_time()
    answer_text(unit * (100_000 // len(unit)))
    assert time.process_time() - began < 30


def test_the_table_is_as_large_as_the_formats_are_many() -> None:
    every = [*RIGHT, *WRONG, *(completion for completion, _, _ in OTHERS)]
    assert len(every) >= 80
    assert len(set(RIGHT)) == len(RIGHT)
    assert len(set(WRONG)) == len(WRONG)
