"""Session fixtures on the rig; a suite's conftest imports the one it uses.

from tests.rig.fixtures import build_before_tests, rig  # noqa: F401
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

import pytest
from tests.rig.cluster import Rig, prepare
from tests.rig.node import DEFAULT_NODES, NodeSpec
from tests.rig.paths import RigUnavailable


@pytest.fixture(scope="session")
def rig() -> Iterator[Rig]:
    """A cluster of three nodes for the whole session. A test that takes a node away gives it back."""
    yield from _running(DEFAULT_NODES)


@pytest.fixture(scope="session")
def control_plane() -> Iterator[Rig]:
    """etcd, API server and controller-manager for the whole session; pods stay pending forever."""
    yield from _running(())


def build_before_tests(session: pytest.Session) -> None:
    """As `pytest_collection_finish`: cold builds take a quarter of an hour, which no test's time limit should hold."""
    wanted = {name for item in session.items if isinstance(item, pytest.Function) for name in item.fixturenames}
    try:
        for fixture, control_plane_only in (("control_plane", True), ("rig", False)):
            if fixture in wanted and not session.config.option.collectonly:
                prepare(control_plane_only)
    except RigUnavailable:
        return  # the fixture says it, at every test that wanted the rig


def require_rig(control_plane_only: bool = False) -> None:
    """Skip, loudly, where this machine cannot run a rig; in CI, fail: a skip that nobody sees is a test nobody runs."""
    try:
        prepare(control_plane_only)
    except RigUnavailable as reason:
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run these tests, and this machine cannot: {reason}")
        pytest.skip(f"NOT RUN: {reason}")


def _running(nodes: Sequence[NodeSpec]) -> Iterator[Rig]:
    require_rig(control_plane_only=not nodes)
    with Rig.start(nodes) as running:
        yield running
