"""What `prepare` has pinned, for any role: who has the job's storage reads it there, servers have none and are told."""

from __future__ import annotations

import logging
import time

import httpx
from pydantic import ValidationError

from alignment_api.contract.context import InstanceStatus, Pins
from alignment_trainer.data.prepared import Manifest, read_manifest
from alignment_trainer.data.storage import storage_of
from alignment_trainer.process.instance import Instance

_TICK_SECONDS = 1.0
"""Between questions to `prepare`, as between all questions to servers."""
_TIMEOUT = httpx.Timeout(10.0, connect=3.0)

log = logging.getLogger(__name__)


def pins_of(instance: Instance) -> Pins | None:
    """From storage where it is at hand, else from the runtime, which has it from the outcome of `prepare`, else from
    `prepare` itself while it runs. None where it has pinned nothing yet."""
    manifest = manifest_of(instance)
    if manifest is not None:
        return Pins(
            model=manifest.model,
            precision=manifest.precision,
            micro_batch=manifest.micro_batch,
            reward_models=manifest.reward_models,
        )
    return instance.context.pins or _asked(instance)


def manifest_of(instance: Instance) -> Manifest | None:
    """Of what was prepared for this stage; None where nothing was, and in a role that has no storage."""
    return read_manifest(storage_of(instance)) if instance.context.storage is not None else None


def _asked(instance: Instance) -> Pins | None:
    """What `prepare` tells, as soon as it does; None where there is none to ask, or this process shall go."""
    urls = instance.context.peers.get("prepare", ())
    if not urls:
        return None
    instance.board.update(state="asking prepare what it has pinned")
    with httpx.Client(timeout=_TIMEOUT, trust_env=False) as http:
        while not instance.stop():
            told = _status(http, urls[0])
            if told is not None and told.model is not None and told.precision is not None:
                return Pins(model=told.model, precision=told.precision, micro_batch=told.micro_batch)
            time.sleep(_TICK_SECONDS)
    return None


def _status(http: httpx.Client, url: str) -> InstanceStatus | None:
    try:
        answer = http.get(f"{url}/status")
        answer.raise_for_status()
        return InstanceStatus.model_validate_json(answer.content)
    except (httpx.HTTPError, ValidationError) as error:
        log.info("prepare does not answer yet", extra={"url": url, "error": repr(error)})
        return None
