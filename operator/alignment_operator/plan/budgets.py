"""What ends use up: counted for each group within a window, paid back by lasting progress."""

from __future__ import annotations

from datetime import datetime, timedelta

from alignment_api.contract.spec import Budgets
from alignment_api.contract.status import BudgetUse
from alignment_operator.plan.terminations import Termination

WINDOW = timedelta(days=1)
"""Long enough for four starts of a large model that each crash an hour in, short enough that a healthy job's rare
crashes never add up."""
FIRST_BACKOFF = timedelta(seconds=10)
"""After the first end that calls for one; doubled by each further one."""
LONGEST_BACKOFF = timedelta(minutes=5)
"""Long enough to spare the cluster, short enough to still be watched."""
LAST_CHARACTERS = 500
"""Of the newest end's words."""


def spend(use: BudgetUse | None, termination: Termination, budgets: Budgets, now: datetime) -> BudgetUse:
    """The use after one more end. Beyond the budget a disruption backs off too."""
    if use is None or now - use.since > WINDOW:
        use = BudgetUse(since=now)
    policy = termination.policy
    failures = use.failures + (policy.budget == "failures")
    disruptions = use.disruptions + (policy.budget == "disruptions")
    waits = policy.backs_off or (policy.budget == "disruptions" and disruptions > budgets.disruptions)
    return BudgetUse(
        since=use.since,
        failures=failures,
        disruptions=disruptions,
        waits=use.waits + waits,
        not_before=now + backoff(use.waits + 1) if waits else None,
        last=termination.words[:LAST_CHARACTERS],
    )


def refilled(use: BudgetUse, now: datetime) -> BudgetUse | None:
    """The use after lasting progress: nothing but a wait that goes on."""
    if use.not_before is None or use.not_before <= now:
        return None
    return BudgetUse(since=use.since, not_before=use.not_before, last=use.last)


def as_a_disruption(use: BudgetUse, termination: Termination) -> BudgetUse:
    """The use after its newest failure has turned out to be a disruption."""
    changed = {
        "failures": max(use.failures - 1, 0),
        "disruptions": use.disruptions + 1,
        "waits": max(use.waits - 1, 0),
        "not_before": None,
        "last": termination.words[:LAST_CHARACTERS],
    }
    return use.model_copy(update=changed)


def backoff(waits: int) -> timedelta:
    """10 s, 20 s, 40 s, ... up to 5 minutes."""
    doublings: int = 2 ** min(waits - 1, 10)
    return min(FIRST_BACKOFF * doublings, LONGEST_BACKOFF)
