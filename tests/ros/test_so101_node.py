"""An SO-101 behind LeRobot's robot class: degrees stay on that side, and what is no command for this arm is not sent."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import ACTIVATE, CONFIGURE, PATIENT, WORKSPACE, Client, FakeArm, environment, node, wait_until
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from robolearn.deploy.launcher import Launched, WorkspacePackages
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS

pytest.importorskip("lerobot")
CLASS = "motors_model:Motors"
START = np.append(np.radians([10.0, -80.0, 80.0, 45.0, 0.0]), -1.0)
"""Where the motors begin: 100 percent is open, which is -1."""


def launched(folder: Path, domain: str, *processes: object) -> Launched:
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environ = environment(domain, PYTHONPATH=paths, HF_HOME=str(folder / "hf"))
    return Launched(processes, WorkspacePackages(WORKSPACE), log_folder=folder / "logs", environ=environ)


class Peer:
    """Hears the arm, commands it, and reads what its motors were told."""

    def __init__(self, client: Client, log: Path) -> None:
        self._client, self._log = client, log
        self.states: list[JointState] = []
        self._heard = client.node.create_subscription(JointState, "joint_states", self.states.append, SENSOR_QOS)
        self._publishers: list[Any] = []

    def take_command(self) -> None:
        """Publish commands from now on; a gate refuses to be the second to do so."""
        topics = ("forward_position_controller/commands", "gripper_controller/commands")
        self._publishers = [self._client.node.create_publisher(Float64MultiArray, topic, COMMAND_QOS) for topic in topics]
        wait_until(lambda: all(p.get_subscription_count() for p in self._publishers), what="the arm's subscriptions")

    def send(self, arm: list[float] | np.ndarray, gripper: float | None = None) -> None:
        if gripper is not None:
            self._publishers[1].publish(Float64MultiArray(data=[gripper]))
        self._publishers[0].publish(Float64MultiArray(data=[float(q) for q in arm]))

    @property
    def told(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []

    def close(self) -> None:
        self._client.node.destroy_subscription(self._heard)
        for publisher in self._publishers:
            self._client.node.destroy_publisher(publisher)


@pytest.fixture
def peer(client: Client, tmp_path: Path) -> Iterator[Peer]:
    made = Peer(client, tmp_path / "bus")
    yield made
    made.close()


def test_radians_here_degrees_there_and_nothing_that_is_no_command(
    client: Client, domain: str, tmp_path: Path, peer: Peer
) -> None:
    parameters = {"port": str(tmp_path / "bus"), "robot_class": CLASS}
    wrong = {
        "uncalibrated": parameters | {"id": "new"},
        "broken": parameters | {"id": "calibrated", "port": str(tmp_path / "broken")},
        "no_class": parameters | {"robot_class": "motors_model:Motor"},
        "no_robot": parameters | {"robot_class": "pathlib:Path"},
    }
    says = {"uncalibrated": "not calibrated", "broken": "no motor answers", "no_class": "Motor", "no_robot": "no LeRobot robot"}
    processes = [node("so101_node", name=name, **given) for name, given in wrong.items()]
    with launched(tmp_path, domain, node("so101_node", id="calibrated", **parameters), *processes) as running:
        for name, words in says.items():
            assert not client.transition(name, CONFIGURE)
            assert words in running.tail(name)
        assert client.transition("so101_node", CONFIGURE, ACTIVATE), running.tail("so101_node")
        wait_until(lambda: len(peer.states) > 3, what="joint states")
        assert list(peer.states[-1].name) == [
            "shoulder_pan",
            "shoulder_lift",
            "elbow_flex",
            "wrist_flex",
            "wrist_roll",
            "gripper",
        ]
        np.testing.assert_allclose(peer.states[-1].position, START, atol=1e-6)
        assert len(peer.told) == 1  # hold, at activation
        goal = START[:5] + np.array([0.1, 0.1, -0.1, 0.0, 0.2])
        peer.take_command()
        peer.send(goal, gripper=25.0)
        wait_until(lambda: len(peer.told) > 1, what="the command")
        # 10 deg + 0.1 rad = 15.73 deg; the gripper goes to 25 percent, which is +0.5 of [-1 open, 1 closed].
        wait_until(lambda: peer.told[-1]["gripper"] == pytest.approx(25.0), what="the gripper's command")
        assert peer.told[-1]["shoulder_pan"] == pytest.approx(10 + 0.1 * 180 / math.pi)
        wait_until(lambda: np.allclose(peer.states[-1].position, [*goal, 0.5], atol=1e-3), what="the motion")
        wait_until(lambda: client.says("so101_node", "state") == "holding", what="the watchdog")
        count = len(peer.told)
        for bad in ([math.nan, *goal[1:]], [*goal[:4]], [*goal[:4], 10.0], np.degrees(goal), goal + np.array([0.7, 0, 0, 0, 0])):
            refused = client.count("so101_node", "refused")
            peer.send(bad)
            wait_until(lambda n=refused: client.count("so101_node", "refused") > n, what=f"the refusal of {bad}")
        assert len(peer.told) == count
        # A bus that fails: no joint states, which is what a gate stops for; the node lives on.
        (tmp_path / "unplugged").touch()
        wait_until(lambda: "no status packet" in running.tail("so101_node"), what="the fault")
        (tmp_path / "unplugged").unlink()
        heard = len(peer.states)
        wait_until(lambda: len(peer.states) > heard + 3, what="joint states again")


def test_the_gate_drives_it(client: Client, domain: str, tmp_path: Path, peer: Peer) -> None:
    """The whole way in radians: chunks by name through the gate to motors in degrees."""
    arm = FakeArm(client, "so101")
    arm.joint_states_on = False  # the node's are the ones
    arm_node = node("so101_node", name="arm", port=str(tmp_path / "bus"), id="calibrated", robot_class=CLASS)
    gate = node("gate_node", robot="so101", interface="position", **PATIENT)
    with launched(tmp_path, domain, arm_node, gate) as running:
        assert client.transition("arm", CONFIGURE, ACTIVATE), running.tail("arm")
        wait_until(lambda: len(peer.states) > 3, what="joint states")
        arm.bring_up()
        arm.position = START[:5].copy()
        target = START[:5] + np.array([0.2, 0.1, -0.1, 0.1, 0.2])

        end = client.every(0.05, lambda: arm.send_chunk(target))
        wait_until(lambda: bool(np.allclose(peer.states[-1].position[:5], target, atol=0.01)), what=f"{target}; {arm.gate}")
        end()
        assert peer.told[-1]["shoulder_pan"] == pytest.approx(np.degrees(target[0]), abs=0.6)
        assert peer.told[-1]["gripper"] == pytest.approx(100.0)  # the chunk says -1: open
    arm.close()
