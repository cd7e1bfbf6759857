"""The Kubernetes objects of a job, one builder per kind. Builders are pure: same input, same object.

`build_pod(job, instance, platform)` is the pod of one role instance;
`build_objects(job, support, platform)` is everything pods lean on but for the token's Secret, whose value is random:
`build_token(job, value)`.
"""

from alignment_operator.resources.objects import build_objects, build_token
from alignment_operator.resources.pod import build_pod

__all__ = ["build_objects", "build_pod", "build_token"]
