"""What the graphs of a dashboard show of a run that a test watches, in a real Prometheus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from prometheus_client import start_http_server
from tests.prometheus import Prometheus
from tests.rig.paths import REPOSITORY, RigUnavailable

from alignment_operator.kube.telemetry import Telemetry
from alignment_operator.local.context import PORTS
from alignment_operator.plan.types import JobKey

EXECUTES = """import alignment_cli.run, alignment_operator.local.world
alignment_cli.run.fork_or_execute = alignment_operator.local.world.execute
from alignment_cli.main import app
app()
"""
"""alignctl whose roles are all executed, as pods are: each answers while it imports torch, so that a scrape meets it. A
forked one may be done before."""
_LISTENS = "0A"
"""TCP's state in /proc/net/tcp."""
DASHBOARDS = REPOSITORY / "charts" / "alignment-operator" / "dashboards"


@dataclass
class Graphs:
    """Of one dashboard. unavailable: why nothing could be watched. empty: queries without data. roles: that were seen.

    Filled when the watching ends.
    """

    unavailable: str | None = None
    empty: list[str] = field(default_factory=list)
    roles: set[str] = field(default_factory=set)


@contextmanager
def watching(dashboard: str, folder: Path) -> Iterator[Graphs]:
    """Scrapes an operator's metrics, and every role that this process, or one below it, starts meanwhile."""
    graphs = Graphs()
    with ExitStack() as stack:
        port, roles = stack.enter_context(_operator()), _RolesBelow()
        prometheus = Prometheus(folder, lambda: {f"127.0.0.1:{port}", *roles.new()})
        try:
            stack.enter_context(prometheus.running())
        except RigUnavailable as reason:
            graphs.unavailable = str(reason)
        yield graphs
        if graphs.unavailable is None:
            graphs.empty = [query for query in queries(dashboard) if not prometheus.series(query)]
            memory = prometheus.series("alignment_resident_memory_bytes")
            graphs.roles = {line["metric"]["role"] for line in memory}


def queries(dashboard: str) -> list[str]:
    """Every query of its panels, for any job."""
    panels = json.loads((DASHBOARDS / f"{dashboard}.json").read_text())["panels"]
    found = [target["expr"].replace("$job", ".*") for panel in panels for target in panel["targets"]]
    assert len(found) > 15
    return found


@contextmanager
def _operator() -> Iterator[int]:
    """An operator's metrics after a few passes; on a laptop the planner runs without them."""
    telemetry = Telemetry()
    telemetry.saw_phase(JobKey("default", "tiny"), "Running")
    for result in ("done", "error"):
        telemetry.reconcile_seconds.labels(result).observe(0.02)
    server, thread = start_http_server(0, addr="127.0.0.1", registry=telemetry.registry)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _RolesBelow:
    """Where the roles below this process serve their metrics: whatever listens there on a port of a run's.

    A forked role's environment cannot be read from outside.
    """

    def __init__(self) -> None:
        self._sockets: set[str] = set()

    def new(self) -> Iterator[str]:
        """Those that have come since it was asked; processes are walked, which is dear, where a socket has."""
        before, self._sockets = self._sockets, _listening()
        if self._sockets <= before:
            return
        for process in psutil.Process().children(recursive=True):
            try:
                found = [c.laddr for c in process.net_connections("tcp4") if c.status == psutil.CONN_LISTEN]
            except psutil.Error:
                continue  # it has ended
            yield from (f"{address.ip}:{address.port}" for address in found if address.port in PORTS)


def _listening() -> set[str]:
    """The kernel's numbers of all sockets that listen on a port of some run's."""
    sockets = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return {fields[9] for fields in sockets if fields[3] == _LISTENS and int(fields[1][-4:], 16) in PORTS}
