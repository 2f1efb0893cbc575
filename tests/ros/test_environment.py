"""Two installations of ROS in one process, or a middleware that is not there, are refused before rclpy is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import CONFIGURE, WORKSPACE, Client, environment, node

from robolearn.core.errors import RefusedError
from robolearn.deploy.launcher import Launched, WorkspacePackages
from robolearn_bridge.environment import foreign_environment, require_one_ros


@pytest.fixture
def other_ros(tmp_path: Path) -> Path:
    for folder in ("lib", "site-packages/rclpy", "share/rclpy"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "lib" / "librcl.so").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("variable", "place"), [("LD_LIBRARY_PATH", "lib"), ("PYTHONPATH", "site-packages"), ("AMENT_PREFIX_PATH", ".")]
)
def test_another_ros_is_refused_by_name(other_ros: Path, variable: str, place: str) -> None:
    with pytest.raises(RefusedError, match=f"{variable} names another ROS"):
        require_one_ros({variable: f"/usr/lib:{other_ros / place}"})
    require_one_ros({variable: "/usr/lib"})
    require_one_ros({variable: str(other_ros / place)}, wheels=False)  # a sourced ROS without wheels is the normal way


def test_a_node_ends_with_code_2_before_it_loads_rclpy(tmp_path: Path) -> None:
    changes = {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp", "PYTHONPATH": str(WORKSPACE / "robolearn_bridge")}
    done = subprocess.run(
        [sys.executable, "-m", "robolearn_bridge.gate_node"],
        env=os.environ | changes,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "RMW_IMPLEMENTATION='rmw_cyclonedds_cpp'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_transport_profile_is_refused() -> None:
    with pytest.raises(RefusedError, match="FASTRTPS_DEFAULT_PROFILES_FILE=''"):
        require_one_ros({"FASTRTPS_DEFAULT_PROFILES_FILE": ""})


def test_a_child_with_another_python_gets_no_library_path() -> None:
    given = {"LD_LIBRARY_PATH": "/x", "_ROS_WHEELS_BOOTSTRAP_COMPLETE": "1", "HOME": "/h"}
    assert foreign_environment(given) == {"HOME": "/h"}


@pytest.mark.parametrize("range_", ["SUBNET", "LOCALHOST"])
def test_a_gate_has_no_shared_memory_unless_the_discovery_range_brings_it_which_it_says(
    range_: str, domain: str, client: Client, tmp_path: Path
) -> None:
    """With the range LOCALHOST, which adds shared memory, a policy that was killed could hold up the gate's messages for 1 s."""
    processes = (node("gate_node", robot="panda", interface="position"),)
    own = environment(domain, ROS_AUTOMATIC_DISCOVERY_RANGE=range_)
    with Launched(processes, WorkspacePackages(WORKSPACE), log_folder=tmp_path, environ=own) as running:
        assert client.transition("gate_node", CONFIGURE), running.tail("gate_node")
        threads = Path(f"/proc/{running.pid('gate_node')}/task").iterdir()
        shared = any((thread / "comm").read_text().startswith("dds.shm") for thread in threads)
        assert shared == (range_ == "LOCALHOST")
        assert ("go through shared memory" in running.tail("gate_node")) == shared
