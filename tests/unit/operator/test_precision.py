"""The planner's view of the precision: GPUs tell at once, CPUs through `prepare`; one answer sizes every role."""

from __future__ import annotations

import pytest
from tests.unit.operator.small_cluster import SmallCluster, make_job, ppo_spec

from alignment_api.contract.platform import Gpu, Platform, Pool, Pools
from alignment_api.contract.status import ModelReport, PrecisionReport
from alignment_api.derived.decoder import Decoder
from alignment_api.derived.precision import as_far_as_known, training_gpu
from alignment_api.derived.sizing import size_of

H100 = Gpu(product="H100-SXM5", memory_gib=80)
V100 = Gpu(product="V100", memory_gib=32, bf16=False)
BILLIONS = ModelReport(parameters=10**10, fingerprint="m")


def platform(on_demand: Gpu | None, spot: Gpu | None) -> Platform:
    return Platform(pools=Pools(on_demand=Pool(gpu=on_demand), spot=Pool(gpu=spot), cpu=Pool()))


@pytest.mark.parametrize("algorithm", [{}, ppo_spec()], ids=["dpo", "ppo"])
@pytest.mark.parametrize(("gpu", "precision"), [(H100, "bf16"), (V100, "fp32"), (None, "auto")])
def test_the_pool_that_trains_tells_what_auto_is(algorithm: dict[str, object], gpu: Gpu | None, precision: str) -> None:
    spec = make_job(algorithm).spec
    assert as_far_as_known(spec, platform(gpu, spot=H100)).training.precision == precision
    assert training_gpu(spec, platform(gpu, spot=V100)) == gpu


def test_a_policy_on_spot_trains_on_the_gpus_of_spot() -> None:
    spec = make_job({"roles": {"policy": {"placement": "spot"}}}).spec
    assert training_gpu(spec, platform(H100, spot=V100)) == V100


def test_what_was_decided_holds_whatever_the_platform_says_now() -> None:
    recorded = PrecisionReport(value="fp32", why="then")
    assert as_far_as_known(make_job().spec, platform(H100, H100), recorded).training.precision == "fp32"


@pytest.mark.parametrize("decided", ["bf16", "fp32"])
def test_frozen_roles_are_sized_by_what_prepare_decided(decided: str) -> None:
    """In bf16 the weights of products take half of what they take in fp32."""
    cluster = SmallCluster(make_job({"roles": {"policy": {"memory": "2Ti"}}}), platform(None, None))
    cluster.reconcile()
    name = cluster.pod("prepare").name
    cluster.start(name)
    report = PrecisionReport.model_validate({"value": decided, "why": "so"})
    cluster.poll(name, model=BILLIONS, precision=report)
    cluster.reconcile()
    cluster.vanish(cluster.pod("reference").name)
    created = [instance for _ in range(3) for instance in cluster.reconcile().create]
    spec = make_job({"training": {"precision": decided}}).spec
    expected = size_of(spec, "reference", Pool(), Decoder.reported(BILLIONS)).memory
    assert [instance.memory for instance in created if instance.role == "reference"] == [expected]
    assert expected == {"bf16": "30Gi", "fp32": "49Gi"}[decided]
