"""The pool of servers against servers that are slow to come, lost, wrong or not there."""

from __future__ import annotations

import socket
from collections.abc import Callable

import numpy as np
import pytest
from http_servers import Answer, serving

from alignment_trainer.data.examples import PromptGroup
from alignment_trainer.experience.frozen_client import FrozenClient
from alignment_trainer.process.errors import WireError
from alignment_trainer.serving.peers import resolved
from alignment_trainer.serving.pool import PhaseStalled, PoolOptions, ServerGroup, ServerPool
from alignment_trainer.serving.readiness import wait_for_servers
from alignment_trainer.serving.server import Timing
from alignment_trainer.serving.wire import (
    LOGPROBS,
    decode_logprobs,
    decode_request,
    encode_logprobs,
    encode_scores,
    scores_format,
)
from alignment_trainer.serving.work import AnswerRefused, ItemLimits, Task, WorkQueue


def upper(body: bytes) -> Answer:
    return 200, body.upper()


QUICK = Timing(resolve_every=0.02, ask_again=0.02, max_ask_again=0.1)


def pool(urls: list[str], took: dict[str, bytes], **options: object) -> ServerPool[str]:
    task = Task("letters", "/v1/letters", str.encode, lambda item, body: took.update({item: body}))
    return ServerPool(task, ServerGroup("letters", resolved(urls), "token"), PoolOptions(timing=QUICK, **options))


@pytest.fixture
def nobody() -> str:
    """An address at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_role_that_cannot_be_reached_is_named_by_its_field(nobody: str) -> None:
    with pytest.raises(PhaseStalled, match=r"spec\.roles\.reward: none of its servers answers within 0\.2 s.*127"):
        wait_for_servers("reward", resolved([nobody]), lambda: False, patience=0.2)
    with pytest.raises(PhaseStalled, match="no address was found"):
        wait_for_servers("reward", resolved(["http://reward.invalid:8000"]), lambda: False, patience=0.2)


def test_who_is_asked_to_go_waits_for_nobody(nobody: str) -> None:
    wait_for_servers("reward", resolved([nobody]), lambda: True, patience=60)


def test_a_phase_without_answers_ends_by_its_name(nobody: str) -> None:
    stuck = pool([nobody], {}, stalled_after=0.3, leave_within=0.1)
    with pytest.raises(PhaseStalled, match=rf"letters: no answer .* 2 requests.*{nobody}"):
        stuck.run(["a", "b"], lambda: False)


def test_every_item_is_done_once_and_the_servers_are_counted(nobody: str) -> None:
    asked, counts, took = list[bytes](), list[int](), dict[str, bytes]()
    items = [f"item {n}" for n in range(50)]
    with serving(lambda body: (asked.append(body), upper(body))[1]) as one, serving(upper) as other:
        busy = pool([one, other, nobody], took)
        busy = ServerPool(busy.task, ServerGroup("letters", busy.servers.peers, "t", counts.append), busy.options)
        result = busy.run(items, lambda: False)
    assert (result.finished, result.reissued, result.dropped) == (True, 0, {})
    assert took == {item: item.upper().encode() for item in items}
    assert len(asked) == len(set(asked))
    assert counts[0] == 1
    assert max(counts) <= 2


def test_a_server_that_is_not_ready_is_asked_again_as_soon_as_before() -> None:
    """However often it was not: with a doubled pause the twentieth look would be after five hours."""
    looks, took = iter(range(20)), dict[str, bytes]()

    def healthz() -> Answer:
        return (503, b"loading the model") if next(looks, None) is not None else (200, b"ok")

    with serving(upper, healthz) as url:
        slow = pool([url], took, stalled_after=60)
        patient = PoolOptions(timing=Timing(ask_again=0.02, max_ask_again=3600), stalled_after=60)
        assert ServerPool(slow.task, slow.servers, patient).run(["a"], lambda: False).finished
    assert took == {"a": b"A"}


def test_servers_are_looked_for_and_asked_again_every_second() -> None:
    timing = PoolOptions().timing
    assert (timing.ask_again, timing.resolve_every) == (1.0, 1.0)


def test_what_a_lost_server_held_goes_to_another_one() -> None:
    took, failures = dict[str, bytes](), iter(range(3))

    def first_three_fail(body: bytes) -> Answer:
        return (500, b"out of memory") if next(failures, None) is not None else upper(body)

    with serving(first_three_fail) as url:
        result = pool([url], took, in_flight=1).run(["a", "b", "c"], lambda: False)
    assert result.finished
    assert result.reissued == 3
    assert took == {"a": b"A", "b": b"B", "c": b"C"}


def test_an_item_over_which_servers_are_lost_is_dropped_with_the_reason() -> None:
    took = dict[str, bytes]()
    with serving(lambda body: (500, b"it crashed") if body == b"bad" else upper(body)) as url:
        limits = ItemLimits(servers_lost=2, wrong_answers=None)
        result = pool([url], took, in_flight=1, items=limits).run(["bad", "good"], lambda: False)
    assert result.finished
    assert took == {"good": b"GOOD"}
    assert list(result.dropped) == ["bad"]
    assert "2 servers were lost over it; the last:" in result.dropped["bad"]
    assert "it crashed" in result.dropped["bad"]


def test_a_queue_counts_what_is_left_held_and_reissued() -> None:
    queue = WorkQueue(["a", "b"], str, ItemLimits(servers_lost=2))
    assert queue.take() == "a"
    queue.put_back("a")
    assert (queue.take(), queue.take(), queue.take()) == ("a", "b", None)
    assert (queue.left, queue.held) == (2, 2)
    queue.finish()
    queue.lose("a", "gone")
    assert (queue.left, queue.held, queue.reissued, queue.dropped) == (1, 0, 1, {})
    assert queue.take() == "a"
    queue.lose("a", "gone again")
    assert (queue.left, queue.held, queue.reissued) == (0, 0, 2)
    assert queue.dropped == {"a": "2 servers were lost over it; the last: gone again"}


GROUPS = (PromptGroup((1, 2), ((3,), (4, 5))), PromptGroup((6,), ((7,), (8,))), PromptGroup((6,), ((9,), (9,))))


def answering(values: Callable[[PromptGroup], list[float]]) -> Callable[[bytes], Answer]:
    """A reference server by its own arithmetic."""

    def answer(body: bytes) -> Answer:
        groups = decode_request(body, 100).groups
        return 200, encode_logprobs("f", np.array([v for group in groups for v in values(group)], np.float32))

    return answer


def whole(group: PromptGroup) -> list[float]:
    return [-float(token) for completion in group.completions for token in completion]


def not_a_number(group: PromptGroup) -> list[float]:
    return [float("nan")] * group.completion_tokens if group.completions[0] == (7,) else whole(group)


def client(urls: list[str]) -> FrozenClient:
    options = PoolOptions(timing=QUICK, in_flight=1, leave_within=0.1)
    return FrozenClient(ServerGroup("reference", resolved(urls), "token"), LOGPROBS, "f", 5, options)


def test_answers_come_in_the_order_of_the_groups() -> None:
    with serving(answering(whole)) as url:
        found = client([url]).ask(GROUPS, lambda: False)
    assert found is not None
    assert found.tolist() == [-3, -4, -5, -7, -8, -9, -9]


def test_an_answer_that_is_not_finite_ends_the_work_by_server_and_row() -> None:
    with serving(answering(not_a_number)) as url:
        message = rf"{url}: .*prompt 2: an answer that is not finite \(nan\).*; 3 answers to"
        with pytest.raises(AnswerRefused, match=message):
            client([url]).ask(GROUPS, lambda: False)


@pytest.mark.parametrize("number", [float("inf"), float("-inf")])
def test_infinite_answers_are_refused_too(number: float) -> None:
    with (
        serving(answering(lambda group: [number] * group.completion_tokens)) as url,
        pytest.raises(AnswerRefused, match=r"prompt 1: an answer that is not finite \(-?inf\)"),
    ):
        client([url]).ask(GROUPS, lambda: False)


def test_one_faulty_server_does_not_end_the_work() -> None:
    answers = iter([not_a_number, not_a_number])
    with serving(lambda body: answering(next(answers, whole))(body)) as url:
        found = client([url]).ask(GROUPS, lambda: False)
    assert found is not None
    assert found.tolist() == [-3, -4, -5, -7, -8, -9, -9]


def test_scores_of_reward_models_are_refused_likewise() -> None:
    def answer(body: bytes) -> Answer:
        completions = sum(len(group.completions) for group in decode_request(body, 100).groups)
        return 200, encode_scores("f", ["a", "b"], np.array([[0.0] * completions, [np.nan] * completions], np.float32))

    def decode(body: bytes, groups: object) -> object:
        from alignment_trainer.serving.wire import load_body

        return load_body(body)[0]["scores"]

    with serving(answer) as url:
        servers = ServerGroup("reward", resolved([url]), "token")
        asked = FrozenClient(servers, scores_format(decode), "", 100, PoolOptions(timing=QUICK, leave_within=0.1))
        with pytest.raises(AnswerRefused, match=r"prompt 1: an answer that is not finite \(nan\)"):
            asked.ask(GROUPS, lambda: False)


def test_an_answer_of_another_length_is_refused() -> None:
    with pytest.raises(WireError, match="without 7 float32 `logprobs`"):
        decode_logprobs(encode_logprobs("f", np.zeros(6, np.float32)), GROUPS)
