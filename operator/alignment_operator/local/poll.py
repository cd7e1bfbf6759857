"""What a role's process says of itself, over its HTTP server on this machine."""

from __future__ import annotations

from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from pydantic import ValidationError

from alignment_api.contract.context import InstanceStatus
from alignment_operator.local.context import HOST

_TIMEOUT = 2.0
"""Seconds; a process deep in arithmetic answers late, and then its last word stands."""
_OPENER = build_opener(ProxyHandler({}))


def poll(port: int) -> InstanceStatus | None:
    """GET /status, whose `ready` is what /healthz says; None when it does not answer (yet)."""
    try:
        with _OPENER.open(f"http://{HOST}:{port}/status", timeout=_TIMEOUT) as answer:
            return InstanceStatus.model_validate_json(answer.read(), strict=True, extra="ignore")
    except (HTTPError, URLError, TimeoutError, ConnectionError, ValidationError):
        return None
