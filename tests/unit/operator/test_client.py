"""Which answers of the apiserver are a reason to send the same request again, and which are its last word."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from aiohttp import web
from tests.unit.operator.faults import Manifest, answering, refused

from alignment_operator.kube import client as module
from alignment_operator.kube.client import ApiError, KubeClient

Send = Callable[[KubeClient], Awaitable[Manifest]]
SEEN = {"metadata": {"resourceVersion": "7"}}
UNBOUND: dict[str, Send] = {
    "create": lambda client: client.create("/x", {"metadata": {"name": "x"}}),
    "patch": lambda client: client.patch("/x/x", {"spec": {}}),
    "delete": lambda client: client.delete("/x/x"),
}
BOUND: dict[str, Send] = {
    "replace": lambda client: client.replace("/x/x", SEEN),
    "patch": lambda client: client.patch("/x/x", SEEN),
    "delete": lambda client: client.delete("/x/x", {"preconditions": {"uid": "u"}}),
}


async def tries(send: Send, *refusals: tuple[int, str]) -> int:
    """How often it is sent to a server that refuses so, one after the other, and then takes it.

    Raises ApiError where a refusal is taken for the last word.
    """
    left, asked = list(refusals), 0

    async def answer(request: web.Request) -> web.Response:
        nonlocal asked
        asked += 1
        return refused(*left.pop(0)) if left else web.json_response({})

    async with answering(answer) as client:
        await send(client)
    return asked


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_BACKOFF_SECONDS", 0.0)


@pytest.mark.parametrize("send", UNBOUND.values(), ids=UNBOUND)
async def test_a_conflict_with_anothers_write_is_tried_again_at_once(send: Send) -> None:
    """As of a quota whose count two creates changed: "the object has been modified; please ... try again"."""
    assert await tries(send, (409, "Conflict"), (409, ""), (503, "ServiceUnavailable")) == 4


@pytest.mark.parametrize("send", BOUND.values(), ids=BOUND)
async def test_a_conflict_with_what_was_seen_is_the_last_word(send: Send) -> None:
    assert await tries(send, (503, "ServiceUnavailable")) == 2
    with pytest.raises(ApiError, match="409 Conflict"):
        await tries(send, (409, "Conflict"))


@pytest.mark.parametrize("answer", [(409, "AlreadyExists"), (403, "Forbidden"), (404, "NotFound"), (422, "Invalid")])
async def test_what_a_repeat_would_not_change_is_told(answer: tuple[int, str]) -> None:
    with pytest.raises(ApiError, match=" ".join(map(str, answer))):
        await tries(UNBOUND["create"], answer)


async def test_a_conflict_that_stays_is_told_when_its_time_is_over() -> None:
    with pytest.raises(ApiError, match="409 Conflict"):
        await tries(lambda client: client.create("/x", {}, seconds=-1.0), (409, "Conflict"))
