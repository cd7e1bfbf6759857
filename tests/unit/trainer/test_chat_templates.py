"""A chat template is a program of a model's authors: it may take its time and refuse, and gets at nothing."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tests.tiny import tiny_tokenizer

from alignment_trainer.data import tokenize
from alignment_trainer.data.rows import InvalidRow, Message
from alignment_trainer.data.tokenize import Texts
from alignment_trainer.process.errors import UserError

TURNS = (Message("user", "Hello"),)


def rendered(template: str) -> str:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Texts(tokenizer).render(TURNS)


@pytest.mark.parametrize(
    "template",
    [
        "{% include '/etc/hostname' %}",
        "{% import '/etc/hostname' as it %}",
        "{{ messages.__class__ }}{{ messages.__class__.__base__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ raise_exception.__globals__['sys'] }}",
        "{{ cycler.__init__.__globals__.os.environ }}",
        "{{ self._TemplateReference__context.environment.from_string.__func__.__globals__ }}",
        "{{ '%s'.__mod__.__self__.format.__globals__ }}{{ '{0.__class__}'.format(messages) }}",
        "{% set _ = messages.append(1) %}",
        "{{ range(10**9) }}",
    ],
)
def test_a_template_gets_at_no_file_module_or_object_of_python(template: str) -> None:
    try:
        text = rendered(template)
    except InvalidRow:
        return
    assert text.strip() == ""


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ (99999 ** 9999999) | string }}",  # computed while the template is compiled, where exceptions are caught
    ],
)
def test_a_template_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch, template: str) -> None:
    monkeypatch.setattr(tokenize, "TEMPLATE_SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"chat template of its tokenizer is not done after 0\.5 s; mend it"):
        rendered(template)
    assert time.monotonic() - began < 120  # it would take hours
    assert rendered("{{ messages[0].content }}") == "Hello"


def test_a_template_that_cannot_be_parsed_is_told_by_its_line_and_not_quoted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as caught:
        rendered("Hello\n{% q7SecretOfAnother %}\n")
    assert "chat template of its tokenizer cannot be parsed at line 2; mend it" in str(caught.value)
    assert "q7SecretOfAnother" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_what_a_template_says_of_turns_that_it_refuses_is_told() -> None:
    with pytest.raises(InvalidRow, match="refuses turns of roles user: only tools speak here"):
        rendered("{{ raise_exception('only tools speak here') }}")
