"""Teleoperation: nothing is asked for unless the deadman is held, and taking hold of a leader arm makes nothing jump."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from harness import ACTIVATE, CONFIGURE, PATIENCE_S, Client, FakeArm, gate, node, nodes, wait_until
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool
from trajectory_msgs.msg import JointTrajectory

from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS, joint_state

RATES = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]


class Operator:
    """Holds or lets go of the deadman, and hears what the node asks for."""

    def __init__(self, client: Client) -> None:
        self.held = False
        self.rows: list[np.ndarray] = []
        node = client.node
        self._deadman = node.create_publisher(Bool, "teleop/deadman", SENSOR_QOS)
        self._heard = node.create_subscription(JointTrajectory, "teleop/chunk", self._on_chunk, COMMAND_QOS)
        self._client, self._end = client, client.every(0.02, lambda: self._deadman.publish(Bool(data=self.held)))

    def _on_chunk(self, message: JointTrajectory) -> None:
        assert message.header.frame_id == '{"source": "teleop"}'
        self.rows.append(np.array(message.points[0].positions))

    def wait_for(self, row: list[float] | np.ndarray) -> None:
        wait_until(lambda: bool(self.rows) and np.allclose(self.rows[-1], row, atol=1e-9), what=f"{row}; came {self.rows[-1:]}")

    def let_go(self) -> None:
        """Release, and wait until nothing comes any more."""
        self.held = False
        self.wait_for_silence()

    def wait_for_silence(self) -> None:
        count = -1
        while count != len(self.rows):
            count = len(self.rows)
            time.sleep(0.5)

    def close(self) -> None:
        self._end()
        self._client.node.destroy_publisher(self._deadman)
        self._client.node.destroy_subscription(self._heard)


@pytest.fixture
def operator(client: Client) -> Iterator[Operator]:
    made = Operator(client)
    yield made
    made.close()


def test_twists_are_passed_on_only_while_the_deadman_is_held(
    client: Client, operator: Operator, tmp_path: Path, domain: str
) -> None:
    twists = client.node.create_publisher(TwistStamped, "teleop/twist", SENSOR_QOS)
    message = TwistStamped()
    message.twist.linear.x, message.twist.angular.z = 0.5, -0.25
    end = client.every(0.02, lambda: twists.publish(message))
    scales = [1.0, 1.0, 1.0, 1.0, 1.0, 2.0]
    teleop = node("teleop_node", device="twist", names=RATES, scales=scales, timeout_s=PATIENCE_S)
    with nodes(tmp_path, teleop, domain=domain):
        assert client.transition("teleop_node", CONFIGURE, ACTIVATE)
        time.sleep(0.5)
        assert operator.rows == []  # twists come, but nobody holds the deadman
        operator.held = True
        operator.wait_for([0.5, 0, 0, 0, 0, -0.5, -1])
        operator.let_go()
        operator.held = True
        operator.wait_for([0.5, 0, 0, 0, 0, -0.5, -1])
        end()  # the device falls silent with the deadman held
        operator.wait_for_silence()


def test_a_leader_moves_the_robot_by_what_it_moves_itself_while_held(
    client: Client, operator: Operator, tmp_path: Path, domain: str
) -> None:
    names = ["shoulder_pan_joint", "elbow_joint"]
    robot, leader = np.array([0.2, -0.3]), np.array([1.0, 1.0])
    state = {"leader": leader}
    robots = client.node.create_publisher(JointState, "joint_states", SENSOR_QOS)
    leaders = client.node.create_publisher(JointState, "leader/joint_states", SENSOR_QOS)

    def publish() -> None:
        robots.publish(joint_state(names, robot, time.time_ns()))
        leaders.publish(joint_state(names, state["leader"], time.time_ns()))

    end = client.every(0.02, publish)
    teleop = node("teleop_node", device="leader", robot="ur5e", names=names, scale=0.5, timeout_s=PATIENCE_S)
    with nodes(tmp_path, teleop, domain=domain):
        assert client.transition("teleop_node", CONFIGURE, ACTIVATE)
        time.sleep(0.5)
        operator.held = True
        operator.wait_for(robot)  # where the robot is, wherever the leader is
        state["leader"] = leader + np.array([0.1, 0.0])
        operator.wait_for(robot + np.array([0.05, 0.0]))
        operator.let_go()
        state["leader"] = leader + np.array([3.0, -2.0])  # the clutch: the leader is put elsewhere
        time.sleep(1.0)
        before = len(operator.rows)
        operator.held = True
        wait_until(lambda: len(operator.rows) > before, what="a chunk")
        np.testing.assert_allclose(operator.rows[before], robot, atol=1e-9)
    end()


def test_a_leaders_gripper_is_mapped_from_its_own_range(client: Client, operator: Operator, tmp_path: Path, domain: str) -> None:
    names = ["shoulder_pan", "gripper"]
    leaders = client.node.create_publisher(JointState, "leader/joint_states", SENSOR_QOS)
    robots = client.node.create_publisher(JointState, "joint_states", SENSOR_QOS)
    reading = {"gripper": 1.5}

    def publish() -> None:
        robots.publish(joint_state(names[:1], np.array([0.2]), time.time_ns()))  # a driver that reports no gripper
        leaders.publish(joint_state(names, np.array([0.9, reading["gripper"]]), time.time_ns()))

    end = client.every(0.02, publish)
    common = {"device": "leader", "names": names, "timeout_s": PATIENCE_S}
    wrong = {
        "no_robot": common,
        "no_range": common | {"robot": "so101"},
        "no_span": common | {"robot": "so101", "gripper_open": [1.5], "gripper_closed": [1.5]},
        "two_for_one": common | {"robot": "so101", "gripper_open": [1.5, 0.0], "gripper_closed": [-0.1, 1.0]},
        "other_joint": common | {"robot": "so101", "names": ["shoulder_pan", "grip"]},
        "no_gripper": common | {"robot": "so101", "names": names[:1], "gripper_open": [1.5]},
    }
    right = node("teleop_node", robot="so101", gripper_open=[1.5], gripper_closed=[-0.1], **common)
    refused = [node("teleop_node", name=name, **parameters) for name, parameters in wrong.items()]
    with nodes(tmp_path, right, *refused, domain=domain) as running:
        for name in wrong:
            assert not client.transition(name, CONFIGURE), name
        assert "for each of the grippers ['gripper']" in running.tail("no_range")
        assert client.transition("teleop_node", CONFIGURE, ACTIVATE), running.tail("teleop_node")
        time.sleep(0.5)
        operator.held = True
        operator.wait_for([0.2, -1.0])  # open; the arm is where it was
        reading["gripper"] = 0.3
        operator.wait_for([0.2, 0.5])  # (0.3 - 1.5) / (-0.1 - 1.5) = 3/4 of the way: 2 * 3/4 - 1
        reading["gripper"] = -0.2
        operator.wait_for([0.2, 1.0])  # a little beyond
        reading["gripper"] = -6.0  # degrees
        wait_until(lambda: "another unit?" in running.tail("teleop_node"), what="the refusal")
        operator.wait_for_silence()
    end()
    for publisher in (leaders, robots):
        client.node.destroy_publisher(publisher)


def test_a_joystick_commands_while_its_button_is_held_and_asks_for_a_stop(
    client: Client, operator: Operator, tmp_path: Path, domain: str
) -> None:
    sticks = client.node.create_publisher(Joy, "joy", SENSOR_QOS)
    stops: list[bool] = []
    heard = client.node.create_subscription(Bool, "e_stop", lambda message: stops.append(message.data), COMMAND_QOS)
    state = {"axes": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "buttons": [0, 0, 0, 0, 0, 0]}
    end = client.every(0.02, lambda: sticks.publish(Joy(**state)))
    # Rates from axes in another order, each at half; deadman is button 4, gripper 0, stop 1.
    parameters = {"names": RATES, "axes": [1, 0, 2, 5, 4, 3], "scales": [0.5] * 6, "estop_button": 1}
    teleop = node("teleop_node", device="joy", timeout_s=PATIENCE_S, **parameters)
    with nodes(tmp_path, teleop, domain=domain) as running:
        assert client.transition("teleop_node", CONFIGURE, ACTIVATE)
        wait_until(lambda: stops[-1:] == [False], what="the e-stop's heartbeat")
        assert operator.rows == []  # nobody holds the button
        state["buttons"] = [0, 0, 0, 0, 1, 0]
        operator.wait_for([0.1, 0.05, 0.15, 0.3, 0.25, 0.2, -1])
        state["buttons"] = [1, 0, 0, 0, 1, 0]
        operator.wait_for([0.1, 0.05, 0.15, 0.3, 0.25, 0.2, 1])
        state["buttons"] = [0, 0, 0, 0, 0, 0]
        operator.wait_for_silence()
        state["buttons"] = [0, 1, 0, 0, 0, 0]
        wait_until(lambda: stops[-1], what="the request to stop")
        state["buttons"] = [0, 0, 0, 0, 1, 0]
        operator.wait_for([0.1, 0.05, 0.15, 0.3, 0.25, 0.2, -1])
        assert stops[-1]  # released, but not forgotten
        state["axes"] = [0.1, 0.2]  # another joystick: it lets go
        wait_until(lambda: "The joystick has 2 axes" in running.tail("teleop_node"), what="the refusal")
        operator.wait_for_silence()
    end()
    client.node.destroy_subscription(heard)
    client.node.destroy_publisher(sticks)


def test_an_operator_takes_over_from_a_running_policy_and_gives_back(
    client: Client, operator: Operator, tmp_path: Path, domain: str
) -> None:
    arm = FakeArm(client, "ur5e")
    home = np.array(arm.spec.home)
    leaders = client.node.create_publisher(JointState, "leader/joint_states", SENSOR_QOS)
    leader = {"position": np.zeros(6)}
    wanted = {"policy": home + 0.02}

    def publish() -> None:
        leaders.publish(joint_state(arm.spec.joints, leader["position"], time.time_ns()))
        arm.send_chunk(wanted["policy"])

    teleop = node("teleop_node", device="leader", robot="ur5e", names=list(arm.spec.joints), timeout_s=PATIENCE_S)
    with nodes(tmp_path, teleop, gate(robot="ur5e", resume_window_s=60.0), domain=domain):
        assert client.transition("teleop_node", CONFIGURE, ACTIVATE)
        arm.bring_up()
        end = client.every(0.05, publish)
        wait_until(lambda: np.abs(arm.position - wanted["policy"]).max() < 1e-3, what="the policy's target")
        operator.held = True
        wait_until(lambda: len(operator.rows) > 0, what="the operator's first chunk")
        leader["position"] = np.full(6, -0.05)
        # The policy goes on asking for its own target; the leader's motion, from where the robot was, is what is followed.
        wait_until(lambda: np.abs(arm.position - (wanted["policy"] - 0.05)).max() < 2e-3, what="the leader's motion")
        wait_until(lambda: client.count("gate_node", "refused_preempted") > 0, what="the policy's refused chunks")
        operator.held = False
        wait_until(lambda: np.abs(arm.position - wanted["policy"]).max() < 1e-3, what="the policy again")
        assert arm.stopped_for("silent_teleop")  # in between the arm stood still
        end()
    arm.close()
