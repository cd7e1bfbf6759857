"""Waiting for the first answer of a role's servers, with the reason where none comes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import httpx

from alignment_trainer.process.errors import describe
from alignment_trainer.serving.peers import Peers
from alignment_trainer.serving.pool import PhaseStalled

_TIMEOUT = 5.0
_ASK_AGAIN = 0.5


def wait_for_servers(role: str, peers: Peers, stop: Callable[[], bool], patience: float) -> None:
    """Waits until a server of the role answers. Raises PhaseStalled, by the role's field, after `patience` seconds.

    Servers are ready before a trainee may start, so one that cannot be reached then never will be: an address, a
    NetworkPolicy, a token. Better to say so at once than in the middle of the first step.
    """
    asyncio.run(_wait(role, peers, stop, patience))


async def _wait(role: str, peers: Peers, stop: Callable[[], bool], patience: float) -> None:
    end, problems = time.monotonic() + patience, dict[str, str]()
    async with httpx.AsyncClient(timeout=_TIMEOUT, trust_env=False) as http:
        while not stop():
            for url in await peers():
                problem = await _problem(http, url)
                if problem is None:
                    return
                problems[url] = problem
            if time.monotonic() > end:
                found = "; ".join(f"{url}: {why}" for url, why in sorted(problems.items())) or "no address was found"
                raise PhaseStalled(
                    f"spec.roles.{role}: none of its servers answers within {patience:g} s ({found}); see its pods, "
                    "their Service, and what a NetworkPolicy lets through"
                )
            await asyncio.sleep(_ASK_AGAIN)


async def _problem(http: httpx.AsyncClient, url: str) -> str | None:
    """Why a server is not ready; None where it is."""
    try:
        answer = await http.get(f"{url}/healthz")
    except httpx.HTTPError as error:
        return describe(error)
    return None if answer.status_code == httpx.codes.OK else f"{answer.status_code}: {answer.text[:200].strip()}"
