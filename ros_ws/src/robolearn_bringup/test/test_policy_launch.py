"""policy.launch.xml by the real ros2 launch: an episode on the simulated robot, and every process ends by itself with 0.

Run by ``colcon test`` or ``launch_test``, in a Python that holds ROS 2 Jazzy with launch_testing, robolearn and its sources (the
bundle of an untrained policy is made by ``tests/ros/bundles.py``). Where launch is missing, `robolearn deploy` reads this file.
"""

import json
import sys
import tempfile
import unittest
from pathlib import Path

import launch
import launch_testing.actions
import launch_testing.asserts
import launch_testing.markers
import pytest
from ament_index_python.packages import get_package_share_directory
from launch.actions import IncludeLaunchDescription
from launch_xml.launch_description_sources import XMLLaunchDescriptionSource

import robolearn

sys.path.insert(0, str(Path(robolearn.__file__).resolve().parents[1] / "tests" / "ros"))
SEED = 7
FOLDER = Path(tempfile.mkdtemp(prefix="robolearn_launch_"))
RESULTS = FOLDER / "episodes.json"
NODES = ("sim_robot_node", "gate_node", "policy_node")


@pytest.mark.launch_test
@launch_testing.markers.keep_alive
def generate_test_description():
    """Start the launch file as a deployment in simulation does."""
    from bundles import untrained_bundle

    bundle = untrained_bundle(FOLDER)
    file = Path(get_package_share_directory("robolearn_bringup")) / "launch" / "policy.launch.xml"
    arguments = {
        "robot": "panda",
        "bundle": str(bundle.folder),
        "interface": "rates",
        "sim": "true",
        "sync": "lockstep",
        "policy_timeout_s": "20.0",
        "estop_timeout_s": "20.0",
        "workspace_low": "[-3.0, -3.0, -3.0]",
        "workspace_high": "[3.0, 3.0, 3.0]",
        "supervise": "true",
        "seeds": f"[{SEED}]",
        "results": str(RESULTS),
    }
    started = IncludeLaunchDescription(XMLLaunchDescriptionSource(str(file)), launch_arguments=arguments.items())
    return launch.LaunchDescription([started, launch_testing.actions.ReadyToTest()])


class TestEpisode(unittest.TestCase):
    """While the processes run."""

    def test_the_supervisor_runs_the_episode_to_its_end(self, proc_info):
        """It brings the nodes up, runs the seed's episode and ends; the others stay."""
        for name in (*NODES, "supervisor_node"):
            proc_info.assertWaitForStartup(process=name, timeout=60)
        proc_info.assertWaitForShutdown(process="supervisor_node", timeout=400)
        (episode,) = json.loads(RESULTS.read_text(encoding="utf-8"))
        assert episode["seed"] == SEED
        assert episode["ended"]
        assert episode["stopped_because"] == ""


@launch_testing.post_shutdown_test()
class TestEnd(unittest.TestCase):
    """After launch has asked all of them to end."""

    def test_every_process_ends_with_0(self, proc_info):
        """SIGINT is an ordinary end for each node."""
        launch_testing.asserts.assertExitCodes(proc_info)
