"""The e2e suite runs on a cluster of three nodes; see tests/rig."""

from tests.rig.fixtures import build_before_tests as pytest_collection_finish
from tests.rig.fixtures import rig

__all__ = ["pytest_collection_finish", "rig"]
