"""Which digest an image has for a job: what the first pod ran that was seen. A tag that is moved later changes nothing.

An image goes by two names here: as a pod's spec names it, and as the kubelet names what it runs (`imageID`). The latter
is `repository@sha256:...` where the node knows the image from a registry. Of one that was loaded onto the node it is a
bare `sha256:...`, or a repository that no registry has: that can be compared and not asked for.
"""

from __future__ import annotations

from collections.abc import Iterable

from alignment_api.contract.status import ImagePin
from alignment_operator.plan.types import PodView

MOST_IMAGES = 16
"""Images of one job: by its podTemplates each of its eight roles may name one, and another once it is changed."""
_AT = "@sha256:"


def learn_images(known: tuple[ImagePin, ...], pods: Iterable[PodView]) -> tuple[ImagePin, ...]:
    """`known`, and what pods run of images that are not among them."""
    pins = {pin.image: pin for pin in known}
    for pod in pods:
        if pod.image_id and _AT not in pod.image and pod.image not in pins and len(pins) < MOST_IMAGES:
            pins[pod.image] = ImagePin(image=pod.image, id=pod.image_id)
    return tuple(pins.values())


def pinned_image(pins: Iterable[ImagePin], image: str) -> str | None:
    """By which name a registry gives the very image that the job has run; None where none can be asked for it."""
    pin = next((pin for pin in pins if pin.image == image), None)
    return pin.id if pin is not None and is_pullable(pin) else None


def is_pullable(pin: ImagePin) -> bool:
    """Whether its digest is of the repository that the spec names."""
    return _AT in pin.id and pin.id.partition("@")[0] == _repository(pin.image)


def runs_another(pins: Iterable[ImagePin], pod: PodView) -> ImagePin | None:
    """What the pod should run, where it runs something else. Names of two kinds do not compare: the same image may have
    been pulled onto one node and loaded onto another."""
    pin = next((pin for pin in pins if pin.image == pod.image), None)
    if pin is None or not pod.image_id or (_AT in pin.id) != (_AT in pod.image_id):
        return None
    return pin if pin.id.rpartition("sha256:")[2] != pod.image_id.rpartition("sha256:")[2] else None


def _repository(image: str) -> str:
    """Without its tag, and with the registry and the folder that a short name leaves out."""
    folder, _, name = image.rpartition("/")
    path = "/".join(part for part in (folder, name.partition(":")[0]) if part)
    registry = path.partition("/")[0]
    if folder and ("." in registry or ":" in registry or registry == "localhost"):
        return path
    return f"docker.io/{path}" if folder else f"docker.io/library/{path}"
