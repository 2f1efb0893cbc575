"""Everything under tests/ros needs the ROS wheels (or a sourced ROS 2 Jazzy); without them it is skipped with that reason."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed (pip install -e '.[ros]', x86-64)")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "ros_ws" / "src" / "robolearn_bridge"))

from harness import Client, FakeArm, fresh_domain, gate, nodes

from robolearn.deploy.launcher import Launched


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/ros" in str(item.path):
            item.add_marker(pytest.mark.ros)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> str:
    os.environ["ROS_LOG_DIR"] = str(tmp_path_factory.mktemp("ros_log"))
    return fresh_domain()


@pytest.fixture(scope="module")
def client(domain: str) -> Iterator[Client]:
    """One client a module: what a test starts has the module's domain and its own node names or its own end."""
    made = Client(domain)
    yield made
    made.close()


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, domain: str) -> Iterator[Launched]:
    with nodes(tmp_path_factory.mktemp("gate"), gate(), domain=domain) as running:
        yield running


@pytest.fixture
def arm(client: Client, launched: Launched) -> Iterator[FakeArm]:
    """A driver and the module's gate, unconfigured."""
    made = FakeArm(client)
    yield made
    if launched.exit_code("gate_node") is None:
        made.take_down()
    made.close()
