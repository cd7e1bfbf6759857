"""Where the servers of a role are now: by a name that may stand for several addresses, again and again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

Peers = Callable[[], Awaitable[frozenset[str]]]
"""The base URLs of the servers that may be asked now, each with an address instead of a name."""


def resolved(urls: Sequence[str]) -> Peers:
    """Every address that the hosts of these URLs stand for. A name that does not resolve has no servers now."""

    async def addresses() -> frozenset[str]:
        found: set[str] = set()
        for url in urls:
            parts = urlsplit(url)
            port = parts.port or 80
            with contextlib.suppress(socket.gaierror):
                infos = await asyncio.get_running_loop().getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
                found |= {base_url(str(info[4][0]), port) for info in infos}
        return frozenset(found)

    return addresses


def base_url(host: str, port: int) -> str:
    """http://host:port, an IPv6 address in brackets."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
