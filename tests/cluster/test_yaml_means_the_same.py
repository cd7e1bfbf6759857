"""One YAML text means the same to kubectl and to us, or we refuse it. The oracle is the real kubectl."""

import json

import pytest
from tests.rig.cluster import Rig

from alignment_api.yaml.scalars import core_meaning, disagreement, kubectl_meaning
from alignment_api.yaml.tree import parse_yaml

pytestmark = pytest.mark.cluster

TABLE = """
5e-7 1e-6 5.0e-7 1e3 1E3 1e+3 1.5 .5 -.5 5. +1 -1 0 00 08 09.5 017 -017 0o17 0O17 0x10 -0x10 0X10 0b11 -0b1
1_000 1_0.5 1__0 _1 1_ 0x_f 12:30 1:30:15 2001-12-14 2001-12-14T21:59:43Z yes Yes YES yEs no No NO on On ON off Off OFF
y Y n N true True TRUE tRue false False FALSE ~ null Null NULL nULL .inf .Inf -.inf +.inf .nan .NaN nan inf NaN Infinity
. .. ... -- + +. e5 1e 1e5x 0x 0xg 0b2 0o8 abc a1 1a v1 1.2.3 16Gi 500m hf://a/b file:///x 9223372036854775807
9223372036854775808 99999999999999999999 -9223372036854775808 1e400 1e21 123456789012345678 0.1 1.0 100.0 = <<
"""
SCALARS = TABLE.split()
TEXTS = {
    "an anchor and its alias": "a: &x {b: 1, c: [2, 3]}\nd: *x\n",
    "an anchored scalar": "a: &x 5e-7\nb: *x\n",
    "quotes of both kinds": "a: 'it''s'\nb: \"tab\\tand \\u00e9\"\nc: '5e-7'\nd: \"yes\"\n",
    "block scalars": "a: |\n  one\n  two\nb: >-\n  folded\n  text\nc: |+\n  keep\n\n",
    "plain text over several lines": "a: one\n  two\n  three\nb: x # comment\n",
    "flow collections": "a: {b: 1, c: [p, q], 'd': \"e\"}\nf: []\ng: {}\n",
    "an empty value": "a:\nb: 1\n",
    "a comment and a document start": "# head\n---\na: 1\n---\n",
    "a hash inside a word": "a: b#c\nd: http://x/y#z\n",
    "whole floats": "a: 1.0\nb: 2e2\nc: 1e-6\n",
}


def as_kubectl_reads(control_plane: Rig, text: str) -> dict[str, object]:
    """`text`, a mapping, as kubectl sends it: put where a server would keep anything, in an object that is not sent."""
    indented = "".join(f"    {line}\n" if line.strip() else "\n" for line in text.splitlines() if line != "---")
    manifest = f"apiVersion: alignment.run/v1\nkind: Anything\nmetadata:\n  name: x\nspec:\n  value:\n{indented}"
    read = control_plane.kubectl(
        "patch", "--local", "-f", "-", "--type=merge", "-p", "{}", "-o", "json", stdin=manifest
    )
    value = json.loads(read)["spec"]["value"]
    assert isinstance(value, dict)
    return value


def test_scalars_mean_the_same_or_are_refused(control_plane: Rig) -> None:
    finite = [text for text in SCALARS if disagreement(text) is None]
    values = as_kubectl_reads(control_plane, "".join(f"k{n}: {text}\n" for n, text in enumerate(finite)))
    ours = {f"k{n}": core_meaning(text) for n, text in enumerate(finite)}
    for n, text in enumerate(finite):
        assert values[f"k{n}"] == ours[f"k{n}"], text
        assert type(values[f"k{n}"]) is type(ours[f"k{n}"]), text


def test_what_is_refused_is_what_kubectl_would_have_read_so(control_plane: Rig) -> None:
    """Refusals are no guesses: kubectl's reading of each is the one we know of, and not ours."""
    refused = [text for text in SCALARS if isinstance(kubectl_meaning(text), bool | int) and disagreement(text)]
    refused = [text for text in refused if "64 bits" not in str(disagreement(text))]
    assert {"yes", "017", "1_000", "off", "0b11"} <= set(refused)
    values = as_kubectl_reads(control_plane, "".join(f"k{n}: {text}\n" for n, text in enumerate(refused)))
    for n, text in enumerate(refused):
        assert values[f"k{n}"] == kubectl_meaning(text), text


@pytest.mark.parametrize("what", TEXTS)
def test_a_text_means_the_same(what: str, control_plane: Rig) -> None:
    (document,), marks = parse_yaml(TEXTS[what])
    assert marks == []
    assert as_kubectl_reads(control_plane, TEXTS[what]) == document.plain()
