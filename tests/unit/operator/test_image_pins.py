"""A tag that is moved changes nothing of a job that runs; and what cannot be asked for is compared."""

from dataclasses import replace

import pytest
from tests.unit.operator.pods import PLATFORM, instance_of
from tests.unit.operator.small_cluster import START, SmallCluster, make_job

from alignment_api.contract.platform import Platform
from alignment_api.contract.status import ImagePin
from alignment_operator.plan.image_pins import MOST_IMAGES, learn_images, pinned_image
from alignment_operator.plan.types import PodView
from alignment_operator.resources import build_pod

IMAGE = "registry.example/trainer:1"
OLD, NEW = (f"registry.example/trainer@sha256:{digit * 64}" for digit in "12")
RUNS = PodView("a", "a", "policy", 0, 1, "train", "Running", START, image_id=OLD)
LOADED, RELOADED = (f"sha256:{digit * 64}" for digit in "34")


def image_of(job_image_pins: tuple[ImagePin, ...], platform: Platform = PLATFORM) -> str:
    job = make_job()
    job = job.model_copy(update={"status": job.status.model_copy(update={"images": job_image_pins})})
    (container,) = build_pod(job, instance_of({}, "policy"), platform)["spec"]["containers"]
    return str(container["image"])


def started(*ids: str) -> SmallCluster:
    """A job whose first pods have run, each with one of these as its image."""
    cluster = SmallCluster(platform=PLATFORM)
    cluster.reconcile()
    for name, image_id in zip(sorted(cluster.pods, reverse=True), ids, strict=False):
        cluster.start(name)
        cluster.change(name, image=IMAGE, image_id=image_id)
        cluster.reconcile()
    return cluster


def test_a_later_pod_asks_for_the_digest_that_the_first_one_ran() -> None:
    cluster = started(OLD)
    cluster.run_until("train")
    assert cluster.status.images == (ImagePin(image=IMAGE, id=OLD),)
    cluster.fail(cluster.pod("policy").name)
    cluster.wait(1)
    cluster.reconcile()
    cluster.wait(60)
    (policy,) = cluster.reconcile().create
    (container,) = build_pod(cluster.job, policy, PLATFORM)["spec"]["containers"]
    assert container["image"] == OLD
    condition = cluster.condition("ImagePinned")
    assert condition is not None
    assert (condition.status, condition.reason) == ("True", "Pinned")


def test_an_image_is_named_as_before_until_a_pod_has_run_it() -> None:
    assert image_of(()) == IMAGE
    assert image_of((ImagePin(image="registry.example/other:1", id=NEW),)) == IMAGE


def test_what_may_never_be_pulled_is_not_asked_for_by_digest() -> None:
    assert image_of((ImagePin(image=IMAGE, id=OLD),)) == OLD
    never = PLATFORM.model_copy(update={"image_pull_policy": "Never"})
    assert image_of((ImagePin(image=IMAGE, id=OLD),), never) == IMAGE


@pytest.mark.parametrize(
    ("image", "image_id", "pullable"),
    [
        ("registry.example/a/trainer:1", f"registry.example/a/trainer@{LOADED}", True),
        ("registry.example:5000/trainer", f"registry.example:5000/trainer@{LOADED}", True),
        ("localhost/trainer:1", f"localhost/trainer@{LOADED}", True),
        ("trainer:1", f"docker.io/library/trainer@{LOADED}", True),
        ("team/trainer:1", f"docker.io/team/trainer@{LOADED}", True),
        ("trainer:1", LOADED, False),  # loaded by `ctr images import`
        ("trainer:1", f"docker.io/library/import-2026-11-27@{LOADED}", False),  # loaded by `kind load`
    ],
)
def test_only_a_digest_of_the_named_repository_can_be_pulled(image: str, image_id: str, pullable: bool) -> None:
    assert (pinned_image([ImagePin(image=image, id=image_id)], image) == image_id) is pullable


@pytest.mark.parametrize(("first", "second"), [(OLD, NEW), (LOADED, RELOADED)])
def test_two_digests_in_one_job_are_said_and_stay_said(first: str, second: str) -> None:
    cluster = started(first, second)
    condition = cluster.condition("ImagePinned")
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "DigestsDiffer")
    assert first in condition.message
    assert second in condition.message
    cluster.run_until("train")
    assert cluster.condition("ImagePinned") == condition


@pytest.mark.parametrize(("first", "second"), [(OLD, LOADED), (LOADED, OLD), (LOADED, LOADED)])
def test_an_image_pulled_here_and_loaded_there_is_no_difference(first: str, second: str) -> None:
    condition = started(first, second).condition("ImagePinned")
    assert condition is not None
    assert condition.reason != "DigestsDiffer"


def test_the_status_holds_a_bounded_number_of_images() -> None:
    many = [replace(RUNS, image=f"registry.example/trainer:{tag}") for tag in range(MOST_IMAGES + 5)]
    pins = learn_images((), many)
    assert [pin.image for pin in pins] == [pod.image for pod in many[:MOST_IMAGES]]
    assert learn_images(pins, many) == pins


def test_a_pod_that_names_a_digest_teaches_nothing() -> None:
    assert learn_images((), [replace(RUNS, image=OLD)]) == ()
