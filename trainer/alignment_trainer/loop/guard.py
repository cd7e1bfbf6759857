"""What is not finite is never applied; here it is counted, named, and ends an attempt that has too much of it.

The engines leave weights and moments alone where the norm of the gradient is not finite, on every rank alike; a loss
that is not finite makes the whole gradient so (`engines.base`). Both loops ask here after each optimizer step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from alignment_trainer.checkpoint.run_state import Skips
from alignment_trainer.data.examples import PromptExample
from alignment_trainer.data.experience import Experience
from alignment_trainer.process import distributed
from alignment_trainer.process.errors import UserError, name_rows

log = logging.getLogger(__name__)

MOST_IN_A_ROW = 3
"""Steps that were not applied, one after the other, that end an attempt: what is wrong with one row passes with it."""
MOST_SHARE, FREE = 0.01, 2
"""Of all steps so far that may be left out; so many are free, so that an early one does not end a job."""


def was_skipped(*norms: float) -> bool:
    """Whether an engine left its step out, by the gradient norm that it returned."""
    return not all(map(math.isfinite, norms))


def rows_to_blame(losses: Iterable[tuple[Sequence[int], Tensor]], batch: Sequence[int]) -> tuple[int, ...]:
    """Rows whose own loss is not finite, of all ranks; all of the batch's where the gradient alone is. Collective.

    losses: of this rank, (rows,) for the rows beside it. batch: the rows of the whole step.
    """
    here = [row for rows, loss in losses for row, fine in zip(rows, loss.isfinite().tolist(), strict=True) if not fine]
    odd = {row for rows in distributed.gather_objects(here) for row in rows}
    return tuple(sorted(odd or set(batch)))


def prompts_to_blame(experience: Experience, indices: Sequence[int], step: Iterable[PromptExample]) -> tuple[int, ...]:
    """Rows of the prompts of which something that was sampled or judged is not finite; else of all completions.

    indices: the update's completions. step: the prompts of the online step.
    """
    rows = {example.prompt: example.row for example in step}
    of_completion = [rows[group.prompt] for group in experience.groups for _ in group.completions]
    judged = (experience.rollout_logprobs, experience.policy_logprobs, experience.ref_logprobs, experience.values)
    fine = torch.stack([numbers.isfinite().all(dim=1) for numbers in judged]).all(dim=0)
    odd = {of_completion[index] for index in indices if not fine[index]}
    return tuple(sorted(odd or {of_completion[index] for index in indices}))


def count(skips: Skips, step: int, norms: Sequence[float], learning_rate: float, rows: Sequence[int]) -> Skips:
    """The count after one more optimizer step, or update of an online step.

    step: its number, from 1. norms: of the gradients of all that it moves. rows: those to blame where it was skipped.
    Raises UserError where too many were.
    """
    skips = skips.after(was_skipped(*norms))
    if was_skipped(*norms):
        if distributed.rank() == 0:
            told = {"step": step, "rows": list(rows), "skipped_steps": skips.skipped}
            log.warning("step %d was not applied: not finite; rows of the data: %s", step, name_rows(rows), extra=told)
        _end_if_too_many(skips, learning_rate, rows)
    return skips


def _end_if_too_many(skips: Skips, learning_rate: float, rows: Sequence[int]) -> None:
    if skips.in_a_row < MOST_IN_A_ROW and skips.skipped <= max(FREE, MOST_SHARE * skips.steps):
        return
    raise UserError(
        "NotFinite",
        f"the loss or the gradient of {skips.skipped} of {skips.steps} optimizer steps was not finite "
        f"({skips.in_a_row} in a row), so they were not applied; the last had rows {name_rows(rows)} of the data, at a "
        f"learning rate of {learning_rate:g}. Lower `learningRate`; or look at these rows and mend or drop them; or, "
        "where they are fine, set `precision: fp32`",
    )
