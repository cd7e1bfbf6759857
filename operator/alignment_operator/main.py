"""The operator's process: arguments, logs, the lease."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import uvloop
from kubernetes.aio.config import ConfigException
from pythonjsonlogger.json import JsonFormatter

from alignment_operator import handlers
from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.leadership import Leadership
from alignment_operator.kube.lease import Lease, LeaseLost
from alignment_operator.kube.operator import Operator
from alignment_operator.kube.platform import SCHEME, UNREADABLE, PlatformSource
from alignment_operator.kube.probes import Probes
from alignment_operator.kube.telemetry import Telemetry

log = logging.getLogger(__name__)


def main() -> None:
    """`alignment-operator`."""
    arguments = parser().parse_args()
    _log_json(arguments.log_level)
    problems: list[BaseException] = []
    try:
        uvloop.run(_until_told(arguments))
    except* (ConfigException, LeaseLost, *UNREADABLE) as errors:
        problems += _each(errors)  # told below: before Python 3.11.4 an exit in here becomes a group with a traceback
    for problem in problems:
        log.critical("%s", problem)
    if problems:
        sys.exit(1)


def _each(errors: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in errors.exceptions:
        yield from _each(error) if isinstance(error, BaseExceptionGroup) else (error,)


def parser() -> argparse.ArgumentParser:
    """Arguments of the command line."""
    parse = argparse.ArgumentParser(
        prog="alignment-operator", description="Runs AlignmentJobs on a Kubernetes cluster."
    )
    parse.add_argument("--kubeconfig", type=Path, help="cluster to serve; default: the one this process runs in")
    parse.add_argument("--platform", required=True, help=f"pools and defaults: a file, or {SCHEME}namespace/name")
    parse.add_argument("--namespace", help="serve the jobs of this namespace alone; default: all")
    parse.add_argument(
        "--lease-namespace",
        default="kube-system",
        help="where those who serve all namespaces have their Lease, the same for all of them (%(default)s)",
    )
    parse.add_argument("--port", type=int, default=8080, help="port of /healthz, /livez and /metrics (%(default)s)")
    parse.add_argument("--log-level", choices=("DEBUG", "INFO", "WARNING"), default="INFO", help="%(default)s")
    return parse


async def _until_told(arguments: argparse.Namespace) -> None:
    """Operate until SIGTERM. kopf hears it while it runs; before that, process 1 of a container would be deaf to it."""
    work = asyncio.create_task(operate(arguments))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    with suppress(asyncio.CancelledError):
        await work


async def operate(arguments: argparse.Namespace) -> None:
    """Wait for the lease, then serve until told to stop. Raises what made it impossible to go on."""
    telemetry = Telemetry()
    client = await KubeClient.connect(arguments.kubeconfig)
    identity = f"{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
    leadership = Leadership(client, arguments.namespace, arguments.lease_namespace, identity)
    platform = PlatformSource(arguments.platform, client, telemetry)
    try:
        await platform.load()
        probes = Probes(telemetry, problem=lambda: leadership.lease.problem)
        async with probes.serving(arguments.port):
            await leadership.lease.acquire()
            telemetry.lead()
            operator = Operator(client.permitted(leadership.check), platform, telemetry, arguments.namespace, identity)
            probes.problem = operator.problem
            await _lead(operator, client, leadership, arguments.namespace)
    finally:
        await client.close()


async def _lead(operator: Operator, client: KubeClient, leadership: Leadership, namespace: str | None) -> None:
    """The work, with the mirrors and the lease's renewal beside it: the first of them to fail ends all."""
    lease = leadership.lease
    try:
        async with asyncio.TaskGroup() as tasks:
            keeping = tasks.create_task(_keep(lease, operator))
            await leadership.settle()
            beside = (keeping, tasks.create_task(operator.run()))
            await operator.ready()  # also because kopf, when it ends, waits for every task that is younger than itself
            await handlers.run(operator, client, namespace)
            for task in beside:
                task.cancel()
    finally:
        operator.halt()
        await lease.release()


async def _keep(lease: Lease, operator: Operator) -> None:
    """No pass outlives the lease: another operator may be acting already."""
    try:
        await lease.keep()
    except LeaseLost:
        operator.halt()
        raise


def _log_json(level: str) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)  # it logs every event it delivers
