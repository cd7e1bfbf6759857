"""The model of memory against what small training runs take: tensors of every engine, on one rank and on two."""

from __future__ import annotations

import measured_memory
import pytest

pytest.importorskip("deepspeed")
TOLERANCE = 0.15
"""Of the measured peak."""


@pytest.fixture(scope="module")
def found() -> dict[str, measured_memory.Found]:
    return measured_memory.compare_all()


@pytest.mark.parametrize("name", [case.name for case in measured_memory.CASES])
def test_the_peak_of_a_run_is_what_the_model_of_memory_says(name: str, found: dict[str, measured_memory.Found]) -> None:
    assert found[name].computed == pytest.approx(found[name].measured, rel=TOLERANCE)


def test_the_measure_sees_a_checkpoint_on_its_way(found: dict[str, measured_memory.Found]) -> None:
    """Three numbers of each of 262,720 weights."""
    plain, saving = (measured_memory.Case(snapshot=snapshot).name for snapshot in (False, True))
    assert found[saving].measured - found[plain].measured == pytest.approx(3 * 4 * 262_720, rel=0.01)
