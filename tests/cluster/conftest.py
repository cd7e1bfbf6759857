"""The cluster suite runs against a control plane without nodes; see tests/rig."""

from tests.rig.fixtures import build_before_tests as pytest_collection_finish
from tests.rig.fixtures import control_plane

__all__ = ["control_plane", "pytest_collection_finish"]
