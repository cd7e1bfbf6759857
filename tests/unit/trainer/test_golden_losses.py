"""Moved, not changed: a refactor leaves every loss and gradient norm of these runs as it was."""

from __future__ import annotations

import pytest

import golden

pytest.importorskip("deepspeed")
TOLERANCE = 2e-5
"""Relative: two CPUs add fp32 numbers in different orders, and Adam's first steps are sensitive to it."""


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, golden.Figures]]:
    return golden.compute(tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("algorithm", golden.ALGORITHMS)
def test_every_engine_finds_the_golden_losses(algorithm, found):
    kept = golden.read()[algorithm]
    assert found[algorithm].keys() == kept.keys()
    for run, figures in kept.items():
        assert found[algorithm][run]["losses"] == pytest.approx(figures["losses"], rel=TOLERANCE, abs=1e-6), run
        assert found[algorithm][run]["norms"] == pytest.approx(figures["norms"], rel=TOLERANCE), run


@pytest.mark.parametrize("algorithm", golden.ALGORITHMS)
def test_golden_losses_move(algorithm):
    """A run that learnt nothing would hold its losses through any mistake."""
    for figures in golden.read()[algorithm].values():
        assert len(set(figures["losses"])) == len(figures["losses"]) >= 3
        assert min(figures["norms"]) > 1e-3
