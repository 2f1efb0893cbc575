"""What leaves the gate in the units of each kind of driver."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from bundles import untrained_bundle
from geometry_msgs.msg import TwistStamped
from harness import ACTIVATE, CONFIGURE, DEACTIVATE, Client, FakeArm, gate, nodes, wait_until
from trajectory_msgs.msg import JointTrajectory

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.deploy.gate_config import Command, GateState
from robolearn_bridge.adapters import TwistScale, joint_outputs, twist_outputs
from robolearn_bridge.messages import COMMAND_QOS, chunk_message

RATES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")


def command(position: np.ndarray, velocity: np.ndarray, error: np.ndarray | None = None) -> Command:
    error = np.zeros_like(position) if error is None else error
    return Command(position, velocity, error, True, GateState.RUNNING, "", 1, 1.0)


def test_velocities_are_sent_in_the_drivers_order() -> None:
    spec = load_robot("ur5e")
    (output,) = joint_outputs(spec, "velocity")
    assert output.topic == "forward_velocity_controller/commands"
    velocity = np.arange(6) / 10
    message = output.make(command(np.ones(6), velocity), 0)
    np.testing.assert_allclose(message.data, velocity)
    # 2 /s of an error of 0.2 rad is 0.4 rad/s more, up to the gate's limit: a quarter of the maker's pi.
    behind = output.make(command(np.ones(6), velocity, np.full(6, 0.2)), 0)
    np.testing.assert_allclose(behind.data, np.minimum(velocity + 0.4, np.pi / 4))
    with pytest.raises(RefusedError, match="takes no 'velocity'"):
        joint_outputs(load_robot("panda"), "velocity")


def test_a_trajectory_ends_at_rest_inside_the_limits() -> None:
    spec = load_robot("ur5e")
    (output,) = joint_outputs(spec, "trajectory")
    # Joint 3 is 0.06 rad from its limit (0.05 of that is the margin) and moves towards it at 0.5 rad/s.
    position, velocity = np.array(spec.home), np.zeros(6)
    position[2], velocity[2] = spec.position_high[2] - 0.06, 0.5
    first, last = output.make(command(position, velocity), 0).points
    np.testing.assert_allclose(first.velocities, velocity)
    np.testing.assert_allclose(last.velocities, 0)
    assert last.positions[2] == pytest.approx(spec.position_high[2] - 0.05)


def test_twists_need_pose_rates_in_order() -> None:
    scale = TwistScale(0.25, 0.5, "base_link")
    (output,) = twist_outputs(RATES, scale)
    message = output.make(command(np.array([1, -1, 0.5, 1, 0, -0.5, 1]), np.zeros(7)), 3_000_000_004)
    assert (message.header.frame_id, message.header.stamp.sec, message.header.stamp.nanosec) == ("base_link", 3, 4)
    linear, angular = message.twist.linear, message.twist.angular
    np.testing.assert_allclose([linear.x, linear.y, linear.z], [0.25, -0.25, 0.125])
    np.testing.assert_allclose([angular.x, angular.y, angular.z], [0.5, 0, -0.25])
    with pytest.raises(RefusedError, match="rates that begin with"):
        twist_outputs(("dy", "dx", *RATES[2:]), scale)


def test_a_gate_for_twists_sends_zero_last(client: Client, domain: str, tmp_path: Path) -> None:
    bundle = untrained_bundle(tmp_path)
    arm = FakeArm(client)
    twists: list[np.ndarray] = []

    def on_twist(message: TwistStamped) -> None:
        linear = message.twist.linear
        twists.append(np.array([linear.x, linear.y, linear.z]))

    heard = client.node.create_subscription(TwistStamped, "servo_node/delta_twist_cmds", on_twist, COMMAND_QOS)
    chunks = client.node.create_publisher(JointTrajectory, "policy/chunk", COMMAND_QOS)
    rates = np.array([0.2, -0.1, 0.3, 0, 0, 0, -1])

    def ask() -> None:
        message = chunk_message(
            np.tile(rates, (8, 1)), RATES, stamp_ns=time.time_ns(), period_ns=50_000_000, source='{"source": "policy"}'
        )
        chunks.publish(message)

    process = gate(interface="twist", bundle=str(bundle.folder), twist_linear_m_s=0.1, twist_angular_rad_s=0.2, rate_hz=50.0)
    with nodes(tmp_path / "logs", process, domain=domain) as running:
        assert client.transition("gate_node", CONFIGURE, ACTIVATE), running.tail("gate_node")
        assert client.set_bool("gate_node/arm", True)[0]
        arm.wait_for_reset()
        end = client.every(0.05, ask)
        wait_until(lambda: any(np.allclose(t, 0.1 * rates[:3]) for t in twists), what="the twist")
        end()
        assert client.transition("gate_node", DEACTIVATE)
        time.sleep(0.5)
    np.testing.assert_array_equal(twists[-1], 0)
    client.node.destroy_subscription(heard)
    client.node.destroy_publisher(chunks)
    arm.close()
