"""The simulated twin of a robot at its joints, in real time: takes and publishes what the driver does, with faults on demand."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import Any

import numpy as np
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS, joint_state
from robolearn_bridge.parameters import declare, read

FAULTS = ("command_delay_s", "state_delay_s", "command_loss", "state_loss", "position_noise", "velocity_noise")
MESSAGES = {"trajectory": JointTrajectory, "position": Float64MultiArray, "velocity": Float64MultiArray}


class TwinNode(SafeLifecycleNode):
    """:class:`sim_envs.twin.RobotTwin` behind the topics of its :class:`robolearn.core.robot.RobotSpec`."""

    def __init__(self) -> None:
        super().__init__("twin_node")
        declare(self, "robot", "", "Name of the robot in hardware/.", read_only=True)
        declare(self, "frozen_after_s", -1.0, "Joint states freeze this long after activation; negative: never.", read_only=True)
        declare(self, "stuck_joint", "", "Joint that no longer moves.", read_only=True)
        for name in FAULTS:
            declare(self, name, 0.0, f"See sim_envs.twin.TwinFaults.{name}.", read_only=True)

    def configure(self) -> None:
        """Build the twin and its topics."""
        from sim_envs.twin import JointFault, RobotTwin, TwinFaults

        self._spec = load_robot(read(self, "robot"))
        stuck = read(self, "stuck_joint")
        frozen = read(self, "frozen_after_s")
        faults = TwinFaults(
            **{name: read(self, name) for name in FAULTS},
            frozen_since_s=frozen if frozen >= 0 else None,
            joints=(JointFault(stuck, "stuck"),) if stuck else (),
        )
        self._twin = RobotTwin(self._spec, faults=faults)
        self._begin_s = time.monotonic()
        topics = [t for t in self._spec.topics if t.role == "command" and t.interface in MESSAGES]
        self._heard = [
            self.create_subscription(
                MESSAGES[t.interface], t.name, self.guarded(partial(self._on_command, t.interface), t.name), COMMAND_QOS
            )
            for t in topics
        ]
        self._states = self.create_lifecycle_publisher(JointState, self._spec.topic("joint_states").name, SENSOR_QOS)
        self._timer: Any = None

    def activate(self) -> None:
        """Begin to move and to publish."""
        self._begin_s = time.monotonic()
        self._twin.reset()
        self._timer = self.create_timer(1 / self._spec.control_rate_hz, self.guarded(self._on_timer, "timer"))

    def deactivate(self) -> None:
        """Fall silent and stand still."""
        if self._timer is not None:
            self.destroy_timer(self._timer)
            self._timer = None

    def cleanup(self) -> None:
        """Remove topics."""
        self.deactivate()
        for subscription in self._heard:
            self.destroy_subscription(subscription)
        self.destroy_lifecycle_publisher(self._states)

    def _now_s(self) -> float:
        return time.monotonic() - self._begin_s

    def _on_timer(self) -> None:
        now = self._now_s()
        self._twin.advance(now)
        reading = self._twin.reading(now)
        if reading is None:
            return
        stamp = time.time_ns() - round((now - reading.stamp_s) * 1e9)
        position, velocity = (np.asarray(self._spec.to_wire(v), float) for v in (reading.position, reading.velocity))
        self._states.publish(joint_state(self._spec.joints, position, stamp, velocity))

    def _on_command(self, interface: str, message: Any) -> None:
        now = self._now_s()
        if interface == "trajectory":
            points = np.stack([self._by_name(message.joint_names, p.positions) for p in message.points])
            after = [p.time_from_start.sec + p.time_from_start.nanosec / 1e9 for p in message.points]
            self._twin.send_trajectory(points, times_s=now + np.array(after), now_s=now)
        elif interface == "position":
            self._twin.send_position(self._from_wire(message.data), now_s=now)
        else:
            self._twin.send_velocity(self._from_wire(message.data), now_s=now)

    def _by_name(self, names: list[str], values: Any) -> Array:
        if sorted(names) != sorted(self._spec.joints) or len(values) != len(names):
            raise RefusedError(f"A trajectory for {list(names)} came to {list(self._spec.joints)}.")
        order = [list(names).index(joint) for joint in self._spec.joints]
        return self._from_wire(np.asarray(values, float)[order])

    def _from_wire(self, values: Any) -> Array:
        # The wire's unit is a factor: dividing by what 1 rad is on it inverts to_wire.
        return np.asarray(values, float) / np.asarray(self._spec.to_wire(np.ones(self._spec.dim)), float)


def main() -> int:
    """Run the node."""
    return run(TwinNode)


if __name__ == "__main__":
    sys.exit(main())
