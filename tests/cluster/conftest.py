"""The cluster suite runs against a control plane without nodes; see tests/rig."""

import subprocess

import pytest
from tests.cluster.operating import eventually
from tests.rig.cluster import Rig
from tests.rig.fixtures import build_before_tests as pytest_collection_finish
from tests.rig.fixtures import control_plane

from alignment_api.crd import custom_resource_definition

__all__ = ["cluster", "control_plane", "pytest_collection_finish"]


@pytest.fixture(scope="session")
def cluster(control_plane: Rig) -> Rig:
    """The control plane, with the CRD served."""
    control_plane.apply(custom_resource_definition())
    eventually(lambda: _serves_jobs(control_plane), "the CRD")
    return control_plane


def _serves_jobs(rig: Rig) -> bool:
    """Established comes first; a list may still be refused for a moment (429, storage is initializing)."""
    try:
        rig.kubectl("get", "alignmentjobs", "--all-namespaces")
    except subprocess.CalledProcessError:
        return False
    return True
