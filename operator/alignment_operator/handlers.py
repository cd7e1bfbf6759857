"""kopf: delivers AlignmentJobs and shutdown. The only file that knows it.

Events alone: no finalizer, no annotation, no handler that detects changes (it would keep the whole spec in an
annotation). An event that fails is not repeated by kopf, so it only puts the job's key in the queue.
"""

from __future__ import annotations

from typing import Any

import kopf

from alignment_api.contract.job import GROUP, PLURAL, VERSION
from alignment_operator.kube.client import KubeClient
from alignment_operator.kube.operator import Operator
from alignment_operator.plan.types import JobKey

WATCH_SECONDS = 300


async def run(operator: Operator, client: KubeClient, namespace: str | None) -> None:
    """Serve until SIGTERM or SIGINT."""
    await kopf.operator(
        registry=_registry(operator, client),
        settings=_settings(),
        standalone=True,  # peering is not leader election; the Lease is
        # Given, or kopf asks for the user's name, which a container's user does not have.
        identity=operator.identity,  # type: ignore[arg-type]  # kopf keeps its NewType of str to itself
        clusterwide=namespace is None,
        namespaces=() if namespace is None else (namespace,),
    )


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # Events are posted on transitions, by ourselves
    settings.scanning.disabled = True  # no rights on CRDs and namespaces; both are known
    settings.watching.server_timeout = WATCH_SECONDS
    settings.watching.client_timeout = WATCH_SECONDS + 30
    settings.watching.connect_timeout = 15
    settings.networking.request_timeout = 30
    settings.queueing.worker_limit = None  # N workers, each idle for 5 s, let N/5 jobs through a second
    settings.process.ultimate_exiting_timeout = 20
    return settings


def _registry(operator: Operator, client: KubeClient) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**_: Any) -> kopf.AiohttpSession:
        return kopf.AiohttpSession(server=client.server, aiohttp_session=client.new_session())

    @kopf.on.cleanup(registry=registry)
    async def cleanup(**_: Any) -> None:
        await operator.stop()

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job_changed(event: kopf.RawEvent, namespace: str | None, name: str, **_: Any) -> None:
        version = event["object"]["metadata"]["resourceVersion"]
        operator.job_changed(JobKey(namespace or "", name), version, gone=event["type"] == "DELETED")

    return registry
