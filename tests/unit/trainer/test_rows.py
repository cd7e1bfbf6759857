"""Every mistake in the data is told by file and line, with what to write instead."""

import json
import re
from pathlib import Path

import pytest

from alignment_trainer.data.layouts.formats import check_preferences, check_prompts
from alignment_trainer.data.layouts.preferences import parse_preferences
from alignment_trainer.data.layouts.prompts import parse_prompt
from alignment_trainer.data.rows import InvalidRow, Message, PreferenceRow, Problem, RawRow, complain, read_rows
from alignment_trainer.process.errors import UserError


def row(value: object, number: int = 1) -> RawRow:
    return RawRow(number, f"pairs.jsonl:{number}", value)


def parse_row(raw: RawRow) -> PreferenceRow:
    """The one pair of a row."""
    (pair,) = parse_preferences(raw)
    return pair


def chat(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([1, 2], "a list, not an object"),
        ({"prompt": "p", "chosen": "c"}, "`rejected` is missing; found `prompt`, `chosen`"),
        ({"prompt": "p", "rejected": "c"}, "`chosen` is missing"),
        ({"chosen": "c", "rejected": "r"}, "`prompt` is missing"),
        ({"prompt": "  ", "chosen": "c", "rejected": "r"}, "`prompt` is empty"),
        ({"prompt": "p", "chosen": "", "rejected": "r"}, "`chosen` is empty"),
        ({"prompt": "p", "chosen": "c", "rejected": 7}, "`rejected` is a number; write a string"),
        ({"prompt": {"a": 1}, "chosen": "c", "rejected": "r"}, "`prompt` is an object; write a string"),
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, "`chosen` and `rejected` are the same"),
        ({"prompt": "p", "chosen": chat(("assistant", "c")), "rejected": "r"}, "`rejected` is a string; write a list"),
        ({"prompt": "p", "chosen": [{"role": "user"}], "rejected": [{}]}, "`chosen[0]` is no message"),
        (
            {"chosen": chat(("user", "a"), ("assistant", "c")), "rejected": chat(("user", "b"), ("assistant", "c"))},
            "differ before their last message",
        ),
        (
            {"chosen": chat(("user", "a"), ("user", "c")), "rejected": chat(("user", "a"), ("user", "d"))},
            "`chosen` ends with role `user`",
        ),
    ],
)
def test_an_invalid_row_says_what_is_wrong(value: object, complaint: str) -> None:
    with pytest.raises(InvalidRow) as caught:
        parse_row(row(value))
    assert complaint in str(caught.value)


def test_whole_conversations_are_split_at_their_last_message() -> None:
    start = (("user", "hi"), ("assistant", "hello"), ("user", "and?"))
    parsed = parse_row(
        row({"prompt": "hi", "chosen": chat(*start, ("assistant", "x")), "rejected": chat(*start, ("assistant", "y"))})
    )
    assert parsed.prompt == (Message("user", "hi"), Message("assistant", "hello"), Message("user", "and?"))
    assert (parsed.chosen, parsed.rejected, parsed.is_chat) == ("x", "y", True)


def test_messages_of_an_answer_alone_take_the_prompt_field() -> None:
    parsed = parse_row(
        row({"prompt": chat(("user", "q")), "chosen": chat(("assistant", "x")), "rejected": chat(("assistant", "y"))})
    )
    assert parsed.prompt == (Message("user", "q"),)
    assert parsed.chosen == "x"


def test_lines_are_numbered_as_an_editor_does_and_rows_over_all_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"prompt": 1}\n\n{"prompt": 2}\n')
    (tmp_path / "b.jsonl").write_text("oops\n")
    rows = list(read_rows(tmp_path))
    assert [(r.number, r.place) for r in rows] == [(1, "a.jsonl:1"), (2, "a.jsonl:3"), (3, "b.jsonl:1")]
    with pytest.raises(InvalidRow, match=r"^not JSON at column 1; write one JSON object a line"):
        parse_row(rows[2])


def test_a_parquet_file_reads_like_its_json_lines(tmp_path: Path) -> None:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow import parquet

    values = [
        {"prompt": f"p{n}", "chosen": chat(("assistant", "x")), "rejected": chat(("assistant", "y"))} for n in (1, 2)
    ]
    parquet.write_table(pyarrow.Table.from_pylist(values), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(value) + "\n" for value in values))
    from_parquet, from_lines = (
        [parse_row(r) for r in read_rows(tmp_path / f"rows.{kind}")] for kind in ("parquet", "jsonl")
    )
    assert [r.place for r in from_parquet] == ["rows.parquet:1", "rows.parquet:2"]
    assert [(r.prompt, r.chosen) for r in from_parquet] == [(r.prompt, r.chosen) for r in from_lines]


def test_a_file_without_line_breaks_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    with (tmp_path / "rows.jsonl").open("wb") as file:
        file.write(b'{"prompt": 1}\n[')
        file.truncate(1 << 33)
    with pytest.raises(UserError, match=r"rows\.jsonl:2: a line of 64 MiB or more; write one row a line"):
        list(read_rows(tmp_path))


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("prompt,chosen\n")
    for path in (tmp_path, tmp_path / "rows.txt"):
        with pytest.raises(UserError, match=r"not a \.jsonl, .* or \.parquet file"):
            list(read_rows(path))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"prompt": "p", "completion": "c", "label": True}, "binary feedback"),
        ({"prompt": "p", "completion": "c"}, "demonstrations"),
        ({"messages": []}, "demonstrations"),
        ({"prompt": "p"}, "prompts alone"),
    ],
)
def test_data_of_another_format_is_named_and_refused(value: dict[str, object], name: str) -> None:
    with pytest.raises(UserError) as caught:
        check_preferences([row(value), row(value)], "pvc://data/x.jsonl")
    assert name in str(caught.value)
    assert "needs preferences" in str(caught.value)


def test_one_row_without_rejected_does_not_make_another_format() -> None:
    rows = [row({"prompt": "p", "chosen": "c"}), row({"prompt": "p", "chosen": "c", "rejected": "r"})]
    check_preferences(rows, "x")


def test_a_complaint_shows_twenty_rows_and_counts_the_rest() -> None:
    first = [Problem(n, f"pairs.jsonl:{n}", "bad") for n in range(1, 21)]
    error = complain(first, 50, 400, "file:///pairs.jsonl")
    lines = str(error).splitlines()
    assert lines[0].startswith("file:///pairs.jsonl: 50 of 400 rows are invalid")
    assert lines[1:3] == ["pairs.jsonl:1: bad", "pairs.jsonl:2: bad"]
    assert lines[-1] == "... and 30 more"
    assert len(lines) == 22


def test_a_prompt_s_turns_come_from_text_messages_or_a_preference() -> None:
    assert parse_prompt(row({"prompt": "p", "answer": 4})).prompt == (Message("user", "p"),)
    assert parse_prompt(row({"prompt": chat(("system", "s"), ("user", "p"))})).prompt[1] == Message("user", "p")
    whole = {"chosen": chat(("user", "p"), ("assistant", "c")), "rejected": chat(("user", "p"), ("assistant", "r"))}
    assert parse_prompt(row(whole)).prompt == (Message("user", "p"),)
    assert parse_prompt(row(whole)).fields == whole


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ("p", "a string, not an object"),
        ({"question": "p"}, "`prompt` is missing"),
        ({"prompt": ""}, "`prompt` is empty"),
        ({"prompt": []}, "`prompt` is a list; write a list of messages"),
        ({"prompt": chat(("user", "p"), ("assistant", "a"))}, "`prompt` ends with role `assistant`"),
    ],
)
def test_a_row_without_a_prompt_to_answer_is_told(value: object, complaint: str) -> None:
    with pytest.raises(InvalidRow, match=re.escape(complaint)):
        parse_prompt(row(value))


def test_rows_without_prompts_are_told_once() -> None:
    with pytest.raises(UserError, match=r"pvc://x: these rows have no `prompt`, found `answer`, `question`"):
        check_prompts([row({"question": "q", "answer": "a"})], "pvc://x")
    check_prompts([row({"prompt": "p"})], "x")
