"""The pool of servers where nobody answers; that it does its work is held by the servers' own tests."""

from __future__ import annotations

import socket

import pytest

from alignment_trainer.serving.peers import resolved
from alignment_trainer.serving.pool import PhaseStalled, PoolOptions, ServerPool, Task, wait_for_servers


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
    task = Task("completions by weights 3 to 4", "/v1/completions", lambda item: b"", lambda item, body: None)
    options = PoolOptions(stalled_after=0.3, resolve_every=0.05, leave_within=0.1)
    pool = ServerPool[int](task, resolved([nobody]), "token", options=options)
    with pytest.raises(PhaseStalled, match=rf"completions by weights 3 to 4: no answer .* 2 requests.*{nobody}"):
        pool.run([1, 2], lambda: False)
