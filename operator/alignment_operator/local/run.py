"""The laptop's loop around the operator's pass."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

from alignment_operator.local.world import LocalWorld
from alignment_operator.plan.types import JobKey
from alignment_operator.reconcile import reconcile

_PACE = timedelta(seconds=0.5)
"""Between two passes: what a person would notice as delay."""


async def run_to_rest(key: JobKey, world: LocalWorld, after_each_pass: Callable[[], None]) -> None:
    """Passes until the job is complete, has failed, or is suspended with nothing running."""
    while True:
        look_again = await reconcile(key, world)
        after_each_pass()
        if world.at_rest:
            return
        await asyncio.sleep(min(look_again or _PACE, _PACE).total_seconds())
