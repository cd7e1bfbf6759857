"""Whether the apiserver serves AlignmentJobs: their CRD may come after the operator, or again after it went."""

from __future__ import annotations

import asyncio
import logging

from alignment_api.contract.job import API_VERSION, GROUP, KIND, PLURAL
from alignment_operator.kube.client import UNAVAILABLE, ApiError, KubeClient
from alignment_operator.kube.paths import collection

EVERY_SECONDS = 2.0
NOT_SERVED = (
    f"the apiserver serves no {PLURAL} of {API_VERSION} yet; apply crds/{PLURAL}.{GROUP}.yaml, as the chart does"
)

log = logging.getLogger(__name__)


class JobKind:
    """kopf looks for a kind once, when it starts, and serves nothing for ever where it was not there: so it is waited
    for before that."""

    def __init__(self, client: KubeClient, namespace: str | None) -> None:
        self._client = client
        self._jobs = collection(KIND, namespace)
        self.problem: str | None = "AlignmentJobs have not been looked for yet"
        """Why no job can be served; None where they can."""

    async def served(self) -> None:
        """Wait until AlignmentJobs are announced and can be listed."""
        while (problem := await self._look()) is not None:
            if problem != self.problem:
                log.warning("waiting for AlignmentJobs", extra={"error": problem})
            self.problem = problem
            await asyncio.sleep(EVERY_SECONDS)
        self.problem = None

    async def _look(self) -> str | None:
        try:
            groups = await self._client.get("/apis")
            if GROUP not in (group["name"] for group in groups["groups"]):
                return NOT_SERVED
            kinds = await self._client.get(f"/apis/{API_VERSION}")
            if PLURAL not in (kind["name"] for kind in kinds["resources"]):
                return NOT_SERVED
            await self._client.get(self._jobs, {"limit": "1"})  # announced comes before served
        except UNAVAILABLE as error:
            missing = isinstance(error, ApiError) and error.status == 404
            return NOT_SERVED if missing else f"AlignmentJobs cannot be listed: {str(error) or repr(error)}"
        return None
