"""The e2e suite runs on a cluster of three nodes; see tests/rig."""

from pathlib import Path

import pytest
from tests.e2e.jobs import NAMESPACE, Jobs, make_claims
from tests.rig import Rig, install_operator
from tests.rig.fixtures import build_before_tests as pytest_collection_finish
from tests.rig.fixtures import rig

__all__ = ["pytest_collection_finish", "rig"]

ROWS = 400


@pytest.fixture(scope="session")
def work(rig: Rig) -> Path:
    """The operator installed by helm, and the claims of tests/e2e/jobs.py; the folder behind the claim `work`."""
    install_operator(rig)
    rig.kubectl("create", "namespace", NAMESPACE)
    return make_claims(rig, ROWS)


@pytest.fixture(scope="session")
def jobs(rig: Rig, work: Path) -> Jobs:
    """The AlignmentJobs of the suite's namespace."""
    return Jobs(rig)
