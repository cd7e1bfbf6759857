"""What an apiserver refuses, in words that help."""

from collections.abc import AsyncIterator

import pytest
from aiohttp import web
from kubernetes.aio.client import Configuration
from tests.unit.operator.small_cluster import make_job

from alignment_api.contract.platform import Platform
from alignment_api.contract.status import AlignmentJobStatus
from alignment_operator.kube.apply import Applier
from alignment_operator.kube.client import ApiError, KubeClient
from alignment_operator.kube.observe import see_pod
from alignment_operator.kube.reflector import Collection, Reflector
from alignment_operator.plan.types import Plan, Support

PLAN = Plan(AlignmentJobStatus(), support=Support(1, False, False, (), (), gang=2))


@pytest.fixture
async def client() -> AsyncIterator[KubeClient]:
    """Of an apiserver without scheduling.k8s.io/v1beta1: it takes everything else."""

    async def create(request: web.Request) -> web.Response:
        if "scheduling.k8s.io" in request.path:
            return web.Response(status=404, text="404 page not found\n")
        return web.json_response(await request.json(), status=201)

    app = web.Application()
    app.add_routes([web.post("/{path:.*}", create)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made = KubeClient(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}"), in_cluster=False)
    yield made
    await made.close()
    await runner.cleanup()


async def test_a_platform_that_asks_for_pod_groups_which_are_not_served_is_told_so(client: KubeClient) -> None:
    applier = Applier(client, Reflector(client, Collection("/pods", see_pod, lambda pod: pod.key), lambda key: None))
    with pytest.raises(ApiError) as refused:
        await applier.apply(make_job(), PLAN, Platform(gang="podGroup"))
    assert "the platform's `gang: podGroup` asks for; turn it on (Kubernetes 1.37" in refused.value.message
    assert refused.value.message.endswith("or write `gang: none`")
    await applier.apply(make_job(), PLAN, Platform())
