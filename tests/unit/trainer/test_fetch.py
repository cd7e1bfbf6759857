"""Parts of weights arrive whole or not at all, over connections that break and lie."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from tests.tiny import write_model

from alignment_trainer.weights import fetch
from alignment_trainer.weights.check import ModelTensors, WeightsRefused, check_manifest, model_tensors
from alignment_trainer.weights.fetch import FetchFailed, VersionGone, fetch_parts
from alignment_trainer.weights.manifest import WeightManifest, WeightPart

BODY = bytes(range(256)) * 40
SHAPES = {"a": (2,), "b": (3,)}
ORIGIN = "http://actor:8000"
Answer = Callable[[httpx.Request], httpx.Response]


class Broken(httpx.SyncByteStream):
    """Half of the body, then the connection is lost."""

    def __iter__(self) -> Iterator[bytes]:
        yield BODY[: len(BODY) // 2]
        raise httpx.ReadError("connection lost")


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_PAUSE_SECONDS", 0.0)


def _manifest(*sources: str) -> WeightManifest:
    checksum = hashlib.sha256(BODY).hexdigest()
    part = WeightPart(
        name="part-00000.safetensors", bytes=len(BODY), sha256=checksum, sources=sources or ("/v1/weights/2-17/p",)
    )
    return WeightManifest(attempt=2, version=17, parts=(part,), tensors={})


def _fetch(folder: Path, *answers: Answer, manifest: WeightManifest | None = None) -> tuple[list[Path], list[str]]:
    """The files, and what was asked: path and range. The last answer is given again and again."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.url} {request.headers.get('range', '')}".strip())
        return answers[min(len(asked), len(answers)) - 1](request)

    with httpx.Client(transport=httpx.MockTransport(answer)) as client:
        return fetch_parts(manifest or _manifest(), ORIGIN, folder, client, lambda: False), asked


def _whole(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=BODY)


def _rest(request: httpx.Request) -> httpx.Response:
    start = int(request.headers["range"].removeprefix("bytes=").removesuffix("-"))
    return httpx.Response(206, content=BODY[start:])


def _half(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, stream=Broken())


def _damaged(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(200, content=BODY[:-1] + b"x")


def _gone(_request: httpx.Request) -> httpx.Response:
    return httpx.Response(404)


def test_a_part_is_fetched_from_where_the_manifest_came_from(tmp_path: Path) -> None:
    files, asked = _fetch(tmp_path, _whole)
    assert asked == ["http://actor:8000/v1/weights/2-17/p"]
    assert [file.read_bytes() for file in files] == [BODY]


def test_a_broken_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    files, asked = _fetch(tmp_path, _half, _rest)
    assert asked[1] == f"http://actor:8000/v1/weights/2-17/p bytes={len(BODY) // 2}-"
    assert files[0].read_bytes() == BODY


def test_a_source_that_knows_no_ranges_starts_over(tmp_path: Path) -> None:
    files, _ = _fetch(tmp_path, _half, _whole)
    assert files[0].read_bytes() == BODY


def test_a_damaged_part_is_fetched_again_as_a_whole(tmp_path: Path) -> None:
    files, asked = _fetch(tmp_path, _damaged, _whole)
    assert asked == ["http://actor:8000/v1/weights/2-17/p"] * 2
    assert files[0].read_bytes() == BODY


def test_a_part_that_is_always_damaged_never_gets_its_name(tmp_path: Path) -> None:
    with pytest.raises(FetchFailed, match="damaged: its SHA-256 is"):
        _fetch(tmp_path, _damaged)
    assert list(tmp_path.iterdir()) == []


def test_sources_are_tried_in_turn(tmp_path: Path) -> None:
    files, asked = _fetch(tmp_path, _gone, _whole, manifest=_manifest("/first/p", "/p"))
    assert asked == ["http://actor:8000/first/p", "http://actor:8000/p"]
    assert files[0].read_bytes() == BODY


@pytest.mark.parametrize(
    "source", ["http://other:8000/p", "//other/p", "/\t/other/p", "@other/p", ":1@other/p", "p", "/"]
)
def test_a_manifest_cannot_send_the_token_to_another_host(source: str) -> None:
    with pytest.raises(ValidationError, match="should match pattern"):
        _manifest(source)


def test_a_version_that_is_gone_is_not_asked_for_again(tmp_path: Path) -> None:
    with pytest.raises(VersionGone):
        _fetch(tmp_path, _gone)


def test_what_was_fetched_before_is_not_fetched_again(tmp_path: Path) -> None:
    _fetch(tmp_path, _whole)
    _, asked = _fetch(tmp_path, _whole)
    assert asked == []


@pytest.mark.parametrize(
    ("published", "reason"),
    [
        ({"a": ("float32", (2,))}, "no tensor `b`"),
        ({"a": ("float32", (2,)), "b": ("float32", (3,)), "c": ("float32", ())}, "tensor `c`, which the model does"),
        ({"a": ("float32", (2,)), "b": ("float32", (4,))}, r"tensor `b` is float32 \[4\], not float32 \[3\]"),
        ({"a": ("bfloat16", (2,)), "b": ("float32", (4,))}, r"tensor `a` is bfloat16 \[2\].* \(and 1 more\)"),
    ],
)
def test_a_manifest_of_another_model_is_refused_by_its_first_difference(
    published: dict[str, tuple[str, tuple[int, ...]]], reason: str
) -> None:
    manifest = _manifest().model_copy(update={"tensors": published})
    with pytest.raises(WeightsRefused, match=f"weights 2-17: {reason}"):
        check_manifest(manifest, ModelTensors(SHAPES, SHAPES, "float32"))


def test_a_tied_head_may_come_along_but_need_not(tmp_path: Path) -> None:
    """Some folders of tied models hold the head, some do not; vLLM takes the embedding either way."""
    model = model_tensors(write_model(tmp_path), "float32")
    assert "lm_head.weight" not in model.needed
    published = {name: ("float32", shape) for name, shape in model.needed.items()}
    embedding = published["model.embed_tokens.weight"]
    for tensors in (published, published | {"lm_head.weight": embedding}):
        check_manifest(_manifest().model_copy(update={"tensors": tensors}), model)
