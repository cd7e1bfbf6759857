"""Where a completion says its answer, and what stands there. Text in, text out: nothing is computed here.

The place is found first. What is thought aloud is taken away: an answer there is none. An answer tag holds the answer
alone. Else the last of these that says something counts: a box, what follows `####`, a JSON field `answer`, what
follows "answer:" or "the answer is". Where there is none, the last line that says something.

    answer      <answer>..</answer>
    box         \\boxed{..}
    thought     <think>..</think> and its like; one that is never closed reaches to the end
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

_NUMBER = r"[-+]?[$€£¥]?(?:(?:\d{1,3}(?:,\d{3}){1,9}|\d{1,40})(?:\.\d{1,40})?|\.\d{1,40})(?:\s?%)?"
_THOUGHTS = "think|thinking|thoughts?|reasoning|reason|scratchpad|reflection|analysis"
_THOUGHT = re.compile(
    rf"(?P<opens><(?:{_THOUGHTS})>|\[THINK\]|◁think▷|<\|begin_of_thought\|>"
    r"|<\|channel\|>(?:analysis|commentary)[^<]{0,80}<\|message\|>)"
    rf"|(?P<closes></(?:{_THOUGHTS})>|\[/THINK\]|◁/think▷|<\|end_of_thought\|>|<\|channel\|>final<\|message\|>)"
    r"|(?P<ends><\|end\|>)",
    re.IGNORECASE,
)
"""`ends` ends a thought, and means nothing outside one, where `closes` says that all before it was one."""
_SAYS = re.compile(r"\d|\\[A-Za-z]+|\$[^$\n]+\$")
"""What could be read as a number or a formula."""
_ANSWER_TAG = re.compile(r"<(?P<close>/?)(?:final_?)?answer>", re.IGNORECASE)
_MARKUP = re.compile(r"<\|[^|>\s]{1,40}\|>|</?[A-Za-z_]\w{0,20}\s?/?>|^[ \t]*`{3,}\w*[ \t]*$", re.MULTILINE)
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*+(?P<text>(?!\d+[.)]\s+\S)(?:[A-Za-z]\s*=|[^\w\n]{0,20}[\d\\])[^\n]*)")
_FIELD = re.compile(r'"(?:final[_ ]?)?answer"\s*:\s*', re.IGNORECASE)
_BY_THE_WAY = r"(?:\s+(?:to|for|of)\s[^.\n:=?\d]{0,80}?|\s*,[^.\n:=?\d,]{0,40},)?"
_NO_ANSWER_YET = r"not|found|given|obtained|got|calculated|computed|derived|determined|reached|below|above|as follows"
_WORD = re.compile(
    rf"\banswer\b{_BY_THE_WAY}[\"'*_`)\s]{{0,6}}"
    r"(?:(?:\b(?:is|was|equals|would be|will be|should be|must be|comes to)\b[\s*_`\"']{0,6})?[:\uff1a=]|"
    rf"\b(?:is|was|equals|would be|will be|should be|must be|comes to)\b(?!\s*(?:{_NO_ANSWER_YET})\b))"
    r"[\s*_`\"']*(?P<text>[^\n]*)",
    re.IGNORECASE,
)
_HEADING = re.compile(
    r"^[#*_ \t]*(?:the |my )?(?:final )?answer[#*_ \t]*\n\s*(?P<text>[^\n]+)", re.IGNORECASE | re.MULTILINE
)
_CORRECTION = re.compile(
    r"\b(?:(?:wait|no|sorry|oops|actually|correction|hold on|scratch that)\b\s*[,.:;!…—-]|on second thought|make that)",
    re.IGNORECASE,
)
_MATH = re.compile(
    r"\$\$.+?\$\$|\$(?=\S)[^$\n]*?(?<=\S)\$(?!\d)|\\\(.+?\\\)|\\\[.+?\\\]|\\[A-Za-z]+(?:\s*\{[^{}\n]*\})*", re.DOTALL
)
"""Dollars embrace a formula where no space is inside them and no digit behind; others are money (as in pandoc)."""
_AFTER = re.compile(
    r",\s(?!\s*[$\\])|;|\s\(|[.!?](?=\s|$)|\s(?:because|since|not|but|where|rather|although|given|as|which|instead|of)\b"
)
"""Ends what is said of the answer: reasons and comparisons come behind it."""
_EITHER = re.compile(rf"(?<![\w.])({_NUMBER})(?:\s+[a-z]+)?,?\s+or\s+(?:[a-z]+\s+){{0,3}}({_NUMBER})", re.IGNORECASE)
_UNIT = r"(?:\s*[A-Za-z°€£%]{1,20}\.?){0,3}"
_BRACKETS = re.compile(
    rf"(?<![\w\\)\]}}])[(\[{{]\s*((?:[A-Za-z]\s*=\s*)?{_NUMBER}(?:\s*/\s*\d{{1,40}})?{_UNIT})\s*[)\]}}]"
    r"(?!\s*[*/^+\u00d7\u00f7(\w-])"
)
_EMPHASIS = re.compile(r"(?<![\w*)])(\*{1,3}|_{1,3}|`{1,3}|~~)(?=\S)([^\n]{0,200}?(?<=\S))\1(?![\w*(])")
_DANGLING = re.compile(r"(?:^|(?<=\s))[*_`]+(?=[-+]?[\d.])")
_QUOTES = re.compile(r"[\"“”„«»|]|(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)")
_SCIENTIFIC = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([-+]?\d{1,2})(?!\w)")
_UNITS_IN_BOX = re.compile(rf"\s*{_NUMBER}\s*[A-Za-z]{{2,}}[^\\]*")


@dataclass(frozen=True)
class _Place:
    """start: in the text. text: what stands there. states: its first number is the answer, and reasons may follow."""

    start: int
    text: str
    states: bool


def answer_text(completion: str, thinking: bool = False) -> str | None:
    """What the completion gives as its answer, without markup, so that its last number or formula is the answer.

    thinking: the prompt has opened a thought already. Returns None where no answer is given, or two at choice.
    """
    return _read(spoken(completion, thinking))


def spoken(completion: str, thinking: bool = False) -> str:
    """The completion without its thoughts. A thought that is closed and was never opened began with the completion."""
    parts: list[str] = []
    inside, position = thinking, 0
    for mark in _THOUGHT.finditer(completion):
        if not inside:
            parts.append(completion[position : mark.start()])
        if mark["closes"] and not inside:
            parts.clear()
        inside, position = bool(mark["opens"]), mark.end()
    return "".join(parts if inside else [*parts, completion[position:]])


def opens_thought(prompt: str) -> bool:
    """Whether the last thing in the prompt is a tag behind which a thought begins."""
    last = max(_THOUGHT.finditer(prompt), key=lambda mark: mark.start(), default=None)
    return last is not None and bool(last["opens"]) and not prompt[last.end() :].strip()


def _read(text: str) -> str | None:
    text = _corrected(_in_tags(text))
    kinds = (_boxes(text), _after_hashes(text), _fields(text), _after_words(text, _WORD), _after_words(text, _HEADING))
    lasts = [next((place for place in places if _SAYS.search(place.text)), None) for places in kinds]
    last = max((place for place in lasts if place is not None), key=lambda place: place.start, default=None)
    if last is None:
        return _single(_plain(_last_line(text)))
    return _single(_plain(_statement(last.text) if last.states else last.text))


def _in_tags(text: str) -> str:
    """What the last answer tag holds; one of its ends may be missing: in the prompt, or cut off. Else the text."""
    marks = list(_ANSWER_TAG.finditer(text))
    if not marks:
        return text
    if not marks[-1]["close"]:
        return text[marks[-1].end() :]
    opening = marks[-2] if len(marks) > 1 and not marks[-2]["close"] else None
    return text[opening.end() if opening else 0 : marks[-1].start()]


def _corrected(text: str) -> str:
    """From the last "wait, .." or "no, .." on that gives an answer."""
    last = max((said.start() for said in _SAYS.finditer(text)), default=0)
    start = max((mark.end() for mark in _CORRECTION.finditer(text, 0, last)), default=0)
    return text[start:]


def _from_the_end(pattern: re.Pattern[str], text: str) -> Iterator[re.Match[str]]:
    return reversed(list(pattern.finditer(text)))


def _boxes(text: str) -> Iterator[_Place]:
    for box in _from_the_end(_BOX, text):
        depth, end = 1, box.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        inside = text[box.end() : end - (depth == 0)]
        yield _Place(box.start(), inside if _UNITS_IN_BOX.fullmatch(inside) else f"\\boxed{{{inside}}}", False)


def _after_hashes(text: str) -> Iterator[_Place]:
    for mark in _from_the_end(_HASHES, text):
        yield _Place(mark.start(), mark["text"], True)


def _fields(text: str) -> Iterator[_Place]:
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    for key in _from_the_end(_FIELD, text):
        try:
            value, _ = decoder.raw_decode(text, key.end())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, str):
            yield _Place(key.start(), _read(value) or "", False)


def _after_words(text: str, pattern: re.Pattern[str]) -> Iterator[_Place]:
    for mark in _from_the_end(pattern, text):
        yield _Place(mark.start(), mark["text"], True)


def _last_line(text: str) -> str:
    lines = [line for line in _MARKUP.sub(" ", text).splitlines() if _SAYS.search(line)]
    return lines[-1] if lines else ""


def _statement(text: str) -> str:
    """Up to where a reason follows the number or formula that comes first."""
    first = _SAYS.search(text)
    start = first.end() if first else len(text)
    for math in _MATH.finditer(text):
        if first and math.start() <= first.start() < math.end():
            start = math.end()
    end = _AFTER.search(text, start)
    return text[: end.start()] if end else text


def _single(text: str) -> str | None:
    """The text, unless it offers two numbers to choose from."""
    choice = _EITHER.search(text)
    if not _SAYS.search(text) or (choice is not None and choice[1] != choice[2]):
        return None
    return text


def _plain(text: str) -> str:
    """Without what surrounds numbers: markup, money, quotes, brackets. Formulas stay."""
    text = _MARKUP.sub(" ", text)
    for found, instead in (("\u2212", "-"), ("\u00a0", " "), ("{,}", ","), ("\\%", "%"), ("\\#", " "), ("\\ ", " ")):
        text = text.replace(found, instead)
    text = re.sub(r"(?<=\d)\\[,!;](?=\d{3})", ",", text)
    text = re.sub(r"\\\$(?=\s*[-\d.])", "", text)
    parts, position = [], 0
    for math in _MATH.finditer(text):
        parts += [_without_markup(text[position : math.start()]), math.group()]
        position = math.end()
    parts.append(_without_markup(text[position:]))
    return "".join(parts).strip()


def _without_markup(text: str) -> str:
    text = re.sub(r"-\s?\$\s?(?=[\d.])", "-", text).replace("$", " ")
    text = _QUOTES.sub(" ", text)
    for _ in range(2):  # one inside the other, `**(72)**`
        text = _EMPHASIS.sub(r" \2 ", text)
        text = _BRACKETS.sub(r" \1 ", text)
    text = _DANGLING.sub("", text)
    text = re.sub(r"(^|[=:]|\s{2})\s*\+(?=[\d.])", r"\1 ", text)
    text = _SCIENTIFIC.sub(lambda found: format(Decimal(found.group()), "f"), text)
    return re.sub(r"(?i)\banswers?\b", "result", text)
