"""CPU time of one pass of the planner that finds everything as it should be: `python -m benchmarks.plan_pass`."""

from __future__ import annotations

import time

from tests.unit.operator.small_cluster import SmallCluster, make_job, ppo_spec


def measure(cluster: SmallCluster, pods: int) -> float:
    """Seconds of the fastest of five passes."""
    while sum(pod.ready for pod in cluster.pods.values()) < pods:
        cluster.reconcile()
        cluster.do_well(holding="train")
    cluster.reconcile()
    times = []
    for _ in range(5):
        began = time.process_time()
        cluster.plan()
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    for replicas in (1, 1000, 4000):
        spec = {"training": {"batchSize": replicas}, "roles": {"policy": {"replicas": replicas}}}
        print(f"DPO, a gang of {replicas:,}: {1000 * measure(SmallCluster(make_job(spec)), replicas):.1f} ms")
    for servers in (1, 256):
        sizes = {role: {"replicas": servers} for role in ("rollout", "reference", "reward")}
        pods = 2 + 3 * servers
        print(f"PPO, {pods:,} pods: {1000 * measure(SmallCluster(make_job(ppo_spec(**sizes))), pods):.1f} ms")


if __name__ == "__main__":
    main()
