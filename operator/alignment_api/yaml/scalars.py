"""What an unquoted YAML scalar means: to YAML 1.2, which we read, and to kubectl.

kubectl reads with sigs.k8s.io/yaml, a YAML 1.1 reader of its own kind, and sends JSON. Both readings are written
down here so that a text which they understand differently is refused instead of meaning two things.
"""

import math
import re

Scalar = str | int | float | bool | None

_NULL = ("", "~", "null", "Null", "NULL")
_TRUE = ("true", "True", "TRUE")
_FALSE = ("false", "False", "FALSE")
_INFINITE = {f"{sign}.{word}" for sign in ("", "+", "-") for word in ("inf", "Inf", "INF")}
_NAN = (".nan", ".NaN", ".NAN")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_GO_TRUE = (*_TRUE, "y", "Y", "yes", "Yes", "YES", "on", "On", "ON")
_GO_FALSE = (*_FALSE, "n", "N", "no", "No", "NO", "off", "Off", "OFF")
_GO_INT = re.compile(
    r"(?P<sign>[-+]?)(0[xX](?P<hex>[0-9a-fA-F]+)|0[bB](?P<bin>[01]+)|0[oO]?(?P<oct>[0-7]+)|(?P<dec>0|[1-9][0-9]*))"
)
_BASES = {"hex": 16, "bin": 2, "oct": 8, "dec": 10}


def core_meaning(text: str) -> Scalar:
    """The value under the core schema of YAML 1.2.2, section 10.3.2."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if re.fullmatch(r"[-+]?[0-9]+", text):
        return int(text)
    if re.fullmatch(r"0o[0-7]+|0x[0-9a-fA-F]+", text):
        return int(text, 0)
    return _float(text)


def kubectl_meaning(text: str) -> Scalar:
    """The value that kubectl sends (go.yaml.in/yaml/v2 resolve.go)."""
    if text in _NULL:
        return None
    if text in _GO_TRUE or text in _GO_FALSE:
        return text in _GO_TRUE
    if text in _INFINITE or text in _NAN or not text.startswith(tuple("+-.0123456789")):
        return _float(text)
    plain = text if text.startswith(".") else text.replace("_", "")
    match = _GO_INT.fullmatch(plain)
    if match is not None:
        digits = {name: match[name] for name in _BASES if match[name] is not None}
        ((base, number),) = digits.items()
        return int(match["sign"] + number, _BASES[base])
    value = _float(plain)
    return text if isinstance(value, str) else value


def _float(text: str) -> Scalar:
    if text in _INFINITE:
        return -math.inf if text.startswith("-") else math.inf
    if text in _NAN:
        return math.nan
    return as_json(float(text)) if _FLOAT.fullmatch(text) else text


def as_json(number: float) -> int | float:
    """The number as it stands in JSON after kubectl: a whole one is an integer there (Go writes 1000, not 1e3)."""
    return int(number) if number.is_integer() and abs(number) < 1e21 else number


def disagreement(text: str) -> str | None:
    """Why the unquoted `text` must not be written so, and what to write; None where both readers agree."""
    ours, kubectls = core_meaning(text), kubectl_meaning(text)
    if isinstance(ours, float) and not math.isfinite(ours):
        return f"`{text}` is not a number that JSON can carry; write a finite number"
    if isinstance(ours, int) and not -(2**63) <= ours < 2**63:
        return f"`{text}` does not fit 64 bits; write a smaller number, or quote it if it is a text"
    if type(ours) is type(kubectls) and ours == kubectls:
        return None
    write = f'quote it (`"{text}"`) if it is a text'
    if isinstance(kubectls, bool):
        return f"`{text}` is {str(kubectls).lower()} to kubectl; {write}, or write `{str(kubectls).lower()}`"
    return f"`{text}` is {kubectls} to kubectl and {ours} to YAML 1.2; {write}, or write the number in plain decimals"
