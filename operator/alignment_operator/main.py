"""The operator's process: arguments, logs, the health and metrics server, the lease."""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvloop
from aiohttp import web
from kubernetes.aio.config import ConfigException
from prometheus_client import CONTENT_TYPE_LATEST
from pythonjsonlogger.json import JsonFormatter

from alignment_api.yaml.manifest import InvalidManifest
from alignment_operator import handlers
from alignment_operator.kube.client import ApiError, KubeClient
from alignment_operator.kube.lease import Lease, LeaseLost
from alignment_operator.kube.operator import Operator
from alignment_operator.kube.platform import SCHEME, PlatformSource
from alignment_operator.kube.telemetry import Telemetry

SILENCE_SECONDS = 300.0
"""Without a pass or an idle tick for this long, the process hangs."""
NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")

log = logging.getLogger(__name__)


def main() -> None:
    """`alignment-operator`."""
    arguments = parser().parse_args()
    _log_json(arguments.log_level)
    try:
        uvloop.run(operate(arguments))
    except* (ConfigException, InvalidManifest, ApiError, OSError, LeaseLost) as errors:
        for error in errors.exceptions:
            log.critical("%s", error)
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    """Arguments of the command line."""
    parse = argparse.ArgumentParser(
        prog="alignment-operator", description="Runs AlignmentJobs on a Kubernetes cluster."
    )
    parse.add_argument("--kubeconfig", type=Path, help="cluster to serve; default: the one this process runs in")
    parse.add_argument("--platform", required=True, help=f"pools and defaults: a file, or {SCHEME}namespace/name")
    parse.add_argument("--namespace", help="serve the jobs of this namespace alone; default: all")
    parse.add_argument("--lease-namespace", default=_own_namespace(), help="namespace of the Lease (%(default)s)")
    parse.add_argument("--port", type=int, default=8080, help="port of /healthz and /metrics (%(default)s)")
    parse.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING"), default="INFO", help="%(default)s")
    return parse


async def operate(arguments: argparse.Namespace) -> None:
    """Wait for the lease, then serve until told to stop. Raises what made it impossible to go on."""
    telemetry = Telemetry()
    client = await KubeClient.connect(arguments.kubeconfig)
    identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    served = f"alignment-operator.{arguments.namespace}" if arguments.namespace else "alignment-operator"
    lease = Lease(client, arguments.lease_namespace, served, identity)
    platform = PlatformSource(arguments.platform, client, telemetry)
    try:
        await platform.load()
        async with _serving(telemetry, arguments.port):
            await lease.acquire()
            telemetry.lead()
            operator = Operator(client, platform, telemetry, arguments.namespace, identity)
            await _lead(operator, client, lease, arguments.namespace)
    finally:
        await client.close()


async def _lead(operator: Operator, client: KubeClient, lease: Lease, namespace: str | None) -> None:
    """The work, with the mirrors and the lease's renewal beside it: the first of them to fail ends all."""
    async with asyncio.TaskGroup() as tasks:
        beside = (tasks.create_task(lease.keep()), tasks.create_task(operator.run()))
        await operator.ready()  # also because kopf, when it ends, waits for every task that is younger than itself
        await handlers.run(operator, client, namespace)
        for task in beside:
            task.cancel()
    await lease.release()


@asynccontextmanager
async def _serving(telemetry: Telemetry, port: int) -> AsyncIterator[None]:
    """/healthz and /metrics. Ours and not kopf's, which answers only after start-up, so that a standby is alive too."""

    async def healthz(_: web.Request) -> web.Response:
        silence = telemetry.silence_seconds
        healthy = not telemetry.leads or silence < SILENCE_SECONDS
        return web.Response(status=200 if healthy else 503, text=f"last pass or idle tick {silence:.0f} s ago\n")

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=telemetry.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/metrics", metrics)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, port=port).start()
        yield
    finally:
        await runner.cleanup()


def _log_json(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it logs every event it delivers


def _own_namespace() -> str:
    return NAMESPACE_FILE.read_text().strip() if NAMESPACE_FILE.exists() else "default"
