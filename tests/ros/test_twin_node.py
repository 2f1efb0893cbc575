"""Chunks of joint positions through the gate's trajectory adapter to the UR5e's twin, all three in their own processes."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from harness import ACTIVATE, CONFIGURE, PATIENCE_S, WORKSPACE, Client, environment, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool
from trajectory_msgs.msg import JointTrajectory

from hardware import load_robot
from robolearn.deploy.launch_file import read_launch_file
from robolearn.deploy.launcher import Launched, WorkspacePackages
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS, chunk_message

LIMITS = ("policy_timeout_s", "estop_timeout_s", "state_timeout_s", "max_tick_gap_s")


@pytest.mark.parametrize("interface", ["trajectory", "velocity"])
def test_a_twin_follows_the_gate_to_the_target(client: Client, domain: str, tmp_path: Path, interface: str) -> None:
    spec = load_robot("ur5e")
    packages = WorkspacePackages(WORKSPACE)
    file = packages.share("robolearn_bringup") / "launch" / "twin.launch.xml"
    arguments = {"robot": "ur5e", "namespace": "robot", "interface": interface}
    arguments |= {name: str(PATIENCE_S) for name in LIMITS}
    processes = read_launch_file(file, arguments, find_package=packages.share, environ={})
    measured: list[np.ndarray] = []
    chunks = client.node.create_publisher(JointTrajectory, "policy/chunk", COMMAND_QOS)
    estop = client.node.create_publisher(Bool, "e_stop", COMMAND_QOS)

    def on_state(message: JointState) -> None:
        assert tuple(message.name) == spec.joints
        measured.append(np.array(message.position))

    heard = client.node.create_subscription(JointState, "joint_states", on_state, SENSOR_QOS)
    end_estop = client.every(0.05, lambda: estop.publish(Bool(data=False)))
    names = spec.joints + tuple(g.joint for g in spec.grippers)
    home = np.array(spec.home)
    target = home + 0.05

    def ask() -> None:
        way = np.clip(np.arange(1, 9) / 8, 0, 1)[:, None]
        joints = measured[-1] + way * (target - measured[-1])
        rows = np.concatenate([joints, np.zeros((8, len(spec.grippers)))], axis=1)
        message = chunk_message(rows, names, stamp_ns=time.time_ns(), period_ns=100_000_000, source='{"source": "policy"}')
        chunks.publish(message)

    with Launched(processes, packages, log_folder=tmp_path, environ=environment(domain)):
        assert client.transition("twin_node", CONFIGURE, ACTIVATE)
        wait_until(lambda: bool(measured), what="joint states")
        np.testing.assert_allclose(measured[0], home, atol=1e-3)
        assert client.transition("gate_node", CONFIGURE, ACTIVATE)
        assert client.set_bool("gate_node/arm", True)[0]
        wait_until(lambda: client.trigger("gate_node/reset")[0], what="reset")
        end = client.every(0.1, ask)
        wait_until(lambda: np.abs(measured[-1] - target).max() < 0.01, what="the target")
        end()
        # The policy is silent from here on: the robot stays where it was brought.
        seen = len(measured)
        wait_until(
            lambda: len(measured) >= seen + 100 and np.abs(measured[-1] - measured[-50]).max() < 1e-4,
            what="rest after the policy's last chunk",
        )
        # With velocities, what goes wrong while it brakes stays: the last one holds until the next comes, however late.
        assert np.abs(measured[-1] - target).max() < (0.02 if interface == "trajectory" else 0.1)
    end_estop()
    for publisher in (chunks, estop):
        client.node.destroy_publisher(publisher)
    client.node.destroy_subscription(heard)
