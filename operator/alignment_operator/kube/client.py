"""Requests to the apiserver: plain JSON over aiohttp, throttled, retried, with deadlines.

The package `kubernetes` reads the configuration (in-cluster, kubeconfig, exec plugins, rotating tokens). Its generated
client is not used: it builds a typed model of every object it receives, which costs several times the CPU of the JSON.
"""

from __future__ import annotations

import asyncio
import copy
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config, refresh_token

from alignment_operator.kube.throttle import LANES, Lane, TokenBucket, backoff_seconds, jittered

Manifest = dict[str, Any]
Params = Mapping[str, str]
Permit = Callable[[str], Awaitable[None]]
"""Asked with the namespace that is to be written in."""

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
METADATA_LIST = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML."""
TRANSIENT = frozenset({429, 500, 502, 503, 504})
CONNECT_SECONDS = 15.0
PROBE_BYTES = 64 * 1024
FIRST_BACKOFF_SECONDS = 0.2
MAX_BACKOFF_SECONDS = 10.0


class ApiError(Exception):
    """The apiserver said no. `status` is the HTTP code, `reason` its word (AlreadyExists, Conflict, NotFound, ...)."""

    def __init__(self, status: int, reason: str, message: str, request: str, retry_after: float | None = None) -> None:
        super().__init__(f"{request}: {status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


UNAVAILABLE = (ApiError, aiohttp.ClientError, TimeoutError)
"""What a request may end in: refused, or not answered."""


class KubeClient:
    """One connection pool to one apiserver.

    Every request may be sent twice: creates are by name, patches and deletes carry preconditions, so a repeat after a
    lost answer ends in AlreadyExists, Conflict or NotFound. That is what allows one retry policy for all of them. A
    409 is repeated too where another's write came between (a quota's count, a finalizer's end) and not the caller's
    view is old.
    """

    def __init__(self, configuration: Configuration, in_cluster: bool) -> None:
        self.in_cluster = in_cluster
        self._configuration = configuration
        self.permit: Permit = _always
        self._enter(LANES["work"])
        self._session = self.new_session()
        self._bare = aiohttp.ClientSession()
        self._refresh: asyncio.Task[None] | None = None

    @classmethod
    async def connect(cls, kubeconfig: Path | None) -> KubeClient:
        """The cluster of that kubeconfig, or with None the one this process runs in.

        Raises kubernetes' ConfigException where neither can be read.
        """
        configuration = Configuration()
        if kubeconfig is None:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
            return cls(configuration, in_cluster=True)
        loader = await load_kube_config(  # type: ignore[no-untyped-call]
            config_file=str(kubeconfig), client_configuration=configuration, persist_config=False
        )
        client = cls(configuration, in_cluster=False)
        refresh = refresh_token(loader, configuration)  # type: ignore[no-untyped-call]
        client._refresh = asyncio.create_task(refresh)  # ends at once where the token never expires
        return client

    def lane(self, purpose: str) -> KubeClient:
        """The same connections in a lane of LANES of their own; closed with the client that they are of."""
        other = copy.copy(self)
        other._enter(LANES[purpose])
        return other

    def permitted(self, permit: Permit) -> KubeClient:
        """The same connections; `permit` is asked before everything that is written, and raises where it may not be."""
        other = copy.copy(self)
        other.permit = permit
        return other

    @property
    def server(self) -> str:
        """URL of the apiserver."""
        return str(self._configuration.host)

    def new_session(self) -> aiohttp.ClientSession:
        """A session that carries the credentials; its owner closes it."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=_ssl_context(self._configuration)),
            timeout=aiohttp.ClientTimeout(total=self._lane.try_seconds),
            middlewares=(self._authenticate,),
        )

    async def close(self) -> None:
        """Close every connection."""
        if self._refresh is not None:
            self._refresh.cancel()
            await asyncio.gather(self._refresh, return_exceptions=True)
        await self._session.close()
        await self._bare.close()

    async def get(self, path: str, params: Params | None = None, accept: str = JSON) -> Manifest:
        """Read an object or a list."""
        return await self._json("GET", path, params=params, accept=accept)

    async def create(
        self, path: str, body: Manifest, params: Params | None = None, seconds: float | None = None
    ) -> Manifest:
        """Create an object. Raises ApiError 409 AlreadyExists. seconds: for how long it is tried again."""
        return await self._json("POST", path, params=params, body=body, seconds=seconds)

    async def patch(
        self,
        path: str,
        body: Any,
        content_type: str = MERGE_PATCH,
        params: Params | None = None,
        seconds: float | None = None,
    ) -> Manifest:
        """Patch an object; the answer is the object afterwards. Raises ApiError 409 where a precondition fails."""
        return await self._json("PATCH", path, params=params, body=body, content_type=content_type, seconds=seconds)

    async def replace(self, path: str, body: Manifest) -> Manifest:
        """Replace an object; its resourceVersion is the precondition."""
        return await self._json("PUT", path, body=body)

    async def delete(
        self, path: str, options: Manifest | None = None, params: Params | None = None, seconds: float | None = None
    ) -> Manifest:
        """Delete an object or, with a selector, a collection. Raises ApiError 409 where a precondition fails."""
        return await self._json("DELETE", path, params=params, body=options or {}, seconds=seconds)

    async def probe(self, url: str, seconds: float) -> bytes:
        """One GET without throttle or retry: a path of the apiserver, or a URL inside the cluster.

        The answer comes from a process that is not ours, so its size is limited. Credentials go to the apiserver alone.
        """
        session, where = (self._session, self.server + url) if url.startswith("/") else (self._bare, url)
        async with session.get(where, timeout=aiohttp.ClientTimeout(total=seconds), allow_redirects=False) as answer:
            answer.raise_for_status()
            text = b""
            async for chunk in answer.content.iter_any():
                text += chunk
                if len(text) > PROBE_BYTES:
                    raise aiohttp.ClientPayloadError(f"{where} answers with more than {PROBE_BYTES} bytes")
            return text

    async def watch(self, path: str, params: Params, idle_seconds: float) -> AsyncIterator[Manifest]:
        """Events of one watch, until the server ends it. Raises ApiError for an ERROR event, 410 among them.

        A stream that is silent for `idle_seconds` (bookmarks come about once a minute) raises TimeoutError.
        """
        await self._bucket.take()
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=idle_seconds)
        query = {**params, "watch": "true", "allowWatchBookmarks": "true"}
        async with self._session.get(self.server + path, params=query, timeout=timeout) as answer:
            if answer.status >= 400:
                raise await _error(answer, f"WATCH {path}")
            async for line in _lines(answer.content):
                event = _decoded(line, f"WATCH {path}")
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(
                        status.get("code", 500), status.get("reason", ""), status.get("message", ""), f"WATCH {path}"
                    )
                yield event

    def _enter(self, lane: Lane) -> None:
        self._lane = lane
        self._bucket = TokenBucket(lane.rate, lane.burst)

    async def _authenticate(
        self, request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # On every request, because a service account's token is replaced on disk about once an hour.
        token = await self._configuration.get_api_key_with_prefix("BearerToken")
        if token:
            request.headers["Authorization"] = token
        return await handler(request)

    async def _json(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        content_type: str = JSON,
        accept: str = JSON,
        seconds: float | None = None,
    ) -> Manifest:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": accept} | ({"Content-Type": content_type} if data is not None else {})
        timeout = aiohttp.ClientTimeout(total=self._lane.try_seconds)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + (self._lane.retry_seconds if seconds is None else seconds)
        namespace = path.partition("/namespaces/")[2].partition("/")[0]
        failures = 0
        while True:
            await self._bucket.take(owner=namespace)
            if method != "GET":
                await self.permit(namespace)  # after the wait: it is now that it is sent
            try:
                async with self._session.request(
                    method, self.server + path, params=params, data=data, headers=headers, timeout=timeout
                ) as answer:
                    if answer.status >= 400:
                        raise await _error(answer, f"{method} {path}")
                    return _decoded(await answer.read(), f"{method} {path}")
            except UNAVAILABLE as error:
                failures += 1
                pause = _pause(error, failures)
                if not _may_pass(error, body) or loop.time() + pause > deadline:
                    raise
            await asyncio.sleep(pause)


async def _always(namespace: str) -> None:
    """Nobody has set limits."""


def _may_pass(error: Exception, body: Any) -> bool:
    """Whether the same request, with this body, may be answered otherwise a moment later."""
    if not isinstance(error, ApiError):
        return True
    if error.status == 409:
        return error.reason != "AlreadyExists" and not _is_bound(body)
    return error.status in TRANSIENT


def _is_bound(body: Any) -> bool:
    """Whether a request asks for a version that was seen: what has changed since does not change back."""
    return isinstance(body, dict) and ("preconditions" in body or "resourceVersion" in body.get("metadata", {}))


def _pause(error: Exception, failures: int) -> float:
    """Seconds before the next try."""
    if isinstance(error, ApiError) and error.retry_after is not None:
        return error.retry_after
    return jittered(backoff_seconds(failures, FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS))


def _decoded(text: bytes, request: str) -> Manifest:
    """The JSON object of an answer. A proxy's page with code 200 is no answer of the apiserver: ask again."""
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise aiohttp.ClientPayloadError(f"{request}: answered with no JSON object: {text[:200]!r}")
    return found


async def _error(answer: aiohttp.ClientResponse, request: str) -> ApiError:
    text = await answer.text(errors="replace")
    try:
        status = json.loads(text)
    except ValueError:
        status = {}  # a proxy's page, not the apiserver's Status
    if not isinstance(status, dict):
        status = {}
    try:
        retry_after = float(answer.headers["Retry-After"])
    except (KeyError, ValueError):
        retry_after = None
    reason = status.get("reason") or answer.reason or ""
    return ApiError(answer.status, reason, status.get("message") or text[:500], request, retry_after)


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length: StreamReader.readline refuses those above its buffer, and pods can be large."""
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line


def _ssl_context(configuration: Configuration) -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https://"):
        return True
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert, cadata=configuration.ca_cert_data)
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, keyfile=configuration.key_file)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.disable_strict_ssl_verification:
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
