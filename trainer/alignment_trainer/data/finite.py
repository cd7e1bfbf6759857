"""Numbers about rows are finite, or the rows are refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alignment_trainer.process.errors import UserError, name_rows


def refuse_rows(what: str, rows: Sequence[int], values: NDArray[Any]) -> None:
    """Raises UserError for rows of the data whose values are not finite.

    what: `the reference's log-probs`. values: (rows, ...).
    """
    fine = np.isfinite(values.reshape(len(rows), -1)).all(axis=1)
    if odd := [row for row, is_fine in zip(rows, fine.tolist(), strict=True) if not is_fine]:
        raise UserError(
            "NotFinite",
            f"{what} of rows {name_rows(odd)} of the data are not finite; mend or drop these rows, or, where they are "
            "fine, set `precision: fp32` or take another model",
        )
