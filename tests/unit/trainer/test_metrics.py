"""What a scrape of a role's process finds."""

import time

from prometheus_client import generate_latest

from alignment_trainer.process.metrics import GAUGES, Metrics


def scraped(metrics: Metrics) -> dict[str, float]:
    lines = generate_latest(metrics.registry).decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_a_component_of_the_reward_is_found_by_its_name() -> None:
    metrics = Metrics("job", "actor")
    metrics.set_component("numeric_answer", 0.25)
    metrics.set_component("regex", 0.5)
    found = scraped(metrics)
    assert found['alignment_reward_component{component="numeric_answer",job_name="job",role="actor"}'] == 0.25
    assert found['alignment_reward_component{component="regex",job_name="job",role="actor"}'] == 0.5


def test_what_is_counted_so_far_adds_up() -> None:
    metrics = Metrics("job", "actor")
    metrics.add("reissued_requests", 2)
    metrics.add("reissued_requests", 0)
    metrics.add("reissued_requests", 3)
    assert scraped(metrics)['alignment_reissued_requests{job_name="job",role="actor"}'] == 5


def test_time_outside_of_work_is_idle_and_time_inside_is_not() -> None:
    began = time.monotonic()
    metrics = Metrics("job", "critic")
    series = 'alignment_idle_seconds{job_name="job",role="critic"}'
    with metrics.working(), metrics.working():
        time.sleep(0.2)
    before = scraped(metrics)[series]
    assert before <= time.monotonic() - began - 0.2
    time.sleep(0.2)
    assert 0.2 <= scraped(metrics)[series] - before <= time.monotonic() - began - 0.2


def test_a_metric_that_was_never_set_is_not_shown_as_zero() -> None:
    assert not [series for series in scraped(Metrics("job", "prepare")) if "reward" in series]


def test_no_two_short_names_share_a_metric() -> None:
    names = [name for name, _ in GAUGES.values()]
    assert len(set(names)) == len(names)
