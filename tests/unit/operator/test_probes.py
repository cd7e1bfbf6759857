import socket

import aiohttp
import pytest

from alignment_operator.kube import probes
from alignment_operator.kube.probes import Probes
from alignment_operator.kube.telemetry import Telemetry


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def codes(port: int) -> tuple[int, int, str]:
    """Of /livez and /healthz, with the words of the second."""
    async with (
        aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        session.get("/livez") as live,
        session.get("/healthz") as healthy,
    ):
        return live.status, healthy.status, await healthy.text()


async def test_what_keeps_the_process_from_its_work_makes_it_unready_but_asks_for_no_restart(port: int) -> None:
    problem: str | None = "nodes are not mirrored yet: 403 Forbidden"
    made = Probes(Telemetry(), lambda: problem)
    async with made.serving(port):
        assert await codes(port) == (200, 503, "nodes are not mirrored yet: 403 Forbidden\n")
        problem = None
        assert await codes(port) == (200, 200, "ok\n")
        made.problem = lambda: "another is asked now"
        assert (await codes(port))[1:] == (503, "another is asked now\n")


async def test_a_leader_whose_loop_makes_no_pass_is_to_be_restarted(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "SILENCE_SECONDS", 0.0)
    telemetry = Telemetry()
    async with Probes(telemetry, lambda: None).serving(port):
        assert (await codes(port))[:2] == (200, 200), "a standby has nothing to do"
        telemetry.lead()
        live, healthy, words = await codes(port)
        assert (live, healthy) == (503, 503)
        assert "the last pass or idle tick was 0 s ago" in words
