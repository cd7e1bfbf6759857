import asyncio

from alignment_operator.kube.throttle import SHARE, TokenBucket


def test_a_burst_passes_at_once_and_the_rest_at_the_rate() -> None:
    bucket = TokenBucket(rate=10, burst=3)
    assert [round(bucket.reserve(now=100.0), 6) for _ in range(5)] == [0, 0, 0, 0.1, 0.2]


def test_quiet_time_fills_the_bucket_to_the_burst_and_no_further() -> None:
    bucket = TokenBucket(rate=10, burst=2)
    for _ in range(4):
        bucket.reserve(now=0.0)
    # 0.1 s after two tokens were borrowed: one paid back, so the next waits for two
    assert round(bucket.reserve(now=0.1), 6) == 0.2
    assert [round(bucket.reserve(now=60.0), 6) for _ in range(3)] == [0, 0, 0.1]


async def test_takers_wait_their_turn() -> None:
    bucket = TokenBucket(rate=100, burst=1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    await asyncio.gather(*(bucket.take() for _ in range(6)))
    assert loop.time() - start >= 0.05


async def test_one_who_asks_for_a_thousand_delays_another_by_a_share() -> None:
    bucket = TokenBucket(rate=1000, burst=1)
    passed: list[str] = []

    async def take(owner: str) -> None:
        await bucket.take(owner)
        passed.append(owner)

    crowd = [asyncio.create_task(take("crowd")) for _ in range(1000)]
    await asyncio.sleep(0)
    await take("other")
    assert passed.index("other") <= SHARE + 1, "what waits already, and the one of the burst"
    await asyncio.gather(*crowd)
    assert len(passed) == 1001
