"""An SO-101 through LeRobot's robot class, with the topics and units of ``hardware/so101.py``: radians here, degrees there."""

from __future__ import annotations

import sys
import time
from dataclasses import fields
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray

from hardware import load_robot
from hardware.so101 import So101Driver
from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn_bridge.diagnostics import report
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS, joint_state
from robolearn_bridge.parameters import declare, read

ROBOT_CLASS = "lerobot.robots.so_follower:SO101Follower"
STEP_LIMITS = 2.0
"""How far from the measured position a command may be, in the gate's own ``max_relative_target``. The gate keeps within one as it
saw the robot; what is further out is in another unit, or from somebody who is no gate."""


class So101Node(SafeLifecycleNode):
    """One bus read, one write and one joint state per control period.

    Every command must be whole, finite, within the joints' limits and near the measured position, or nothing of it is sent; the
    servos then hold the last one, as they do when commands end: after ``watchdog_s`` the diagnostics say so. Deactivated, nothing
    is sent; the end of the process leaves the torque on unless ``release_on_end``.
    """

    def __init__(self) -> None:
        super().__init__("so101_node")
        declare(self, "port", "", "Serial port of the bus, such as /dev/ttyACM0.", read_only=True)
        declare(self, "id", "", "LeRobot's name of this arm: its calibration is looked up by it.", read_only=True)
        declare(self, "robot_class", ROBOT_CLASS, "module:class of a LeRobot robot with the SO-101's motors.", read_only=True)
        declare(self, "watchdog_s", 0.25, "Silence of the commands after which the arm is said to hold [s].", read_only=True)
        declare(self, "release_on_end", False, "Turn the torque off at the end: the arm falls.", read_only=True)
        self._robot: Any = None

    def configure(self) -> None:
        """Connect to the arm, read it once, and take commands."""
        self._spec = load_robot("so101")
        self._low = np.append(np.asarray(self._spec.position_low), -1.0)
        self._high = np.append(np.asarray(self._spec.position_high), 1.0)
        if not (np.isfinite(read(self, "watchdog_s")) and read(self, "watchdog_s") > 0):
            raise RefusedError(f"watchdog_s={read(self, 'watchdog_s')} must be positive and finite.")
        self._robot = self._connected()
        self._driver = So101Driver(self._robot, spec=self._spec)
        self._measured = self._driver.read()
        self._wanted: dict[str, Array] = {}
        self._commanded_at = -np.inf
        self._goal = self._measured
        self._active = False
        self._counts = {"reads": 0, "writes": 0, "refused": 0}
        self._problem = ""
        self._states = self.create_lifecycle_publisher(JointState, self._spec.topic("joint_states").name, SENSOR_QOS)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", COMMAND_QOS)
        roles = {
            "command": self._spec.topic("command", "position").name,
            "gripper_command": self._spec.topic("gripper_command").name,
        }
        self._heard = [
            self.create_subscription(Float64MultiArray, topic, self.guarded(partial(self._on_command, role), topic), COMMAND_QOS)
            for role, topic in roles.items()
        ]
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timers = [
            self.create_timer(1 / self._spec.control_rate_hz, self.guarded(self._on_timer, "bus"), clock=steady),
            self.create_timer(1.0, self.guarded(self._report, "diagnostics"), clock=steady),
        ]

    def activate(self) -> None:
        """Hold where the arm is, from now on by commands."""
        self._measured = self._driver.read()
        self._goal = np.clip(self._measured, self._low, self._high)
        self._driver.write(self._goal)
        self._wanted, self._active = {}, True

    def deactivate(self) -> None:
        """Send nothing any more: the servos hold."""
        self._active = False

    def cleanup(self) -> None:
        """Disconnect."""
        self._active = False
        for timer in self._timers:
            self.destroy_timer(timer)
        for subscription in self._heard:
            self.destroy_subscription(subscription)
        self.destroy_lifecycle_publisher(self._states)
        self.destroy_publisher(self._diagnostics)
        self._disconnect()

    def stop(self) -> None:
        """Send nothing any more; the bus is closed with the process, or by cleanup."""
        self._active = False

    def fault(self, where: str, error: BaseException) -> None:
        """A command that is refused is not sent; a bus that fails gives no joint states, which stops the gate."""
        self._counts["refused"] += 1
        self._problem = f"{where}: {error}"
        self.get_logger().warning(self._problem, throttle_duration_sec=1.0)

    def _connected(self) -> Any:
        """Return the robot, connected and calibrated.

        Raises:
            RefusedError: there is no such class, it has other motors, nothing answers, or it is not calibrated.
        """
        where = read(self, "robot_class")
        kind = _robot_class(where)
        known = {f.name for f in fields(kind.config_class)}
        given = {"port": read(self, "port"), "id": read(self, "id") or None}
        given |= {"disable_torque_on_disconnect": read(self, "release_on_end"), "use_degrees": True}
        robot = kind(kind.config_class(**{key: value for key, value in given.items() if key in known}))
        motors = {f"{name}.pos" for name in (*self._spec.joints, self._spec.grippers[0].joint)}
        if set(robot.action_features) != motors:
            raise RefusedError(f"{where} moves {sorted(robot.action_features)}; an SO-101 has {sorted(motors)}.")
        try:
            robot.connect(calibrate=False)
        except Exception as error:  # whatever a serial port, a bus or the vendor's library raises
            raise RefusedError(f"{where} on port {read(self, 'port')!r} does not connect: {error}") from error
        if not robot.is_calibrated:
            robot.disconnect()
            raise RefusedError(f"The arm {read(self, 'id')!r} is not calibrated: run lerobot-calibrate with this id first.")
        return robot

    def _disconnect(self) -> None:
        robot, self._robot = self._robot, None
        if robot is not None:
            robot.disconnect()

    def _on_command(self, role: str, message: Float64MultiArray) -> None:
        values = np.asarray(message.data, float)
        if role == "gripper_command":
            gripper = self._spec.grippers[0]
            values = 2 * (values - gripper.open) / (gripper.closed - gripper.open) - 1
        part = slice(0, self._spec.dim) if role == "command" else slice(self._spec.dim, None)
        low, high = self._low[part], self._high[part]
        if values.shape != low.shape or not ((values >= low) & (values <= high)).all():
            raise RefusedError(
                f"{role} {list(message.data)} must be {len(low)} finite numbers within the limits; nothing was sent."
            )
        if role == "command":
            self._require_near(values)
            self._commanded_at = time.monotonic()
        self._wanted[role] = values

    def _require_near(self, values: Array) -> None:
        far = np.abs(values - self._measured[: self._spec.dim]).max()
        allowed = STEP_LIMITS * float(np.max(self._spec.max_relative_target))
        if far > allowed:
            raise RefusedError(f"A command {far:.2f} rad from the measured position (allowed {allowed:.2f}); nothing was sent.")

    def _on_timer(self) -> None:
        if not self._active:
            return
        # What came before a read is for where the arm was then: a bus that fails may be back when the arm is elsewhere.
        wanted, self._wanted = self._wanted, {}
        self._measured = self._driver.read()
        stamp_ns = time.time_ns()
        self._counts["reads"] += 1
        joints = (*self._spec.joints, self._spec.grippers[0].joint)
        self._states.publish(joint_state(joints, self._measured, stamp_ns))
        if not wanted:
            return
        if "command" in wanted:
            self._require_near(wanted["command"])
        arm, gripper = self._goal[: self._spec.dim], self._goal[self._spec.dim :]
        self._goal = np.concatenate([wanted.get("command", arm), wanted.get("gripper_command", gripper)])
        self._driver.write(self._goal)
        self._counts["writes"] += 1

    def _report(self) -> None:
        holds = time.monotonic() - self._commanded_at > read(self, "watchdog_s")
        problem, self._problem = self._problem, ""
        values = {"state": "holding" if holds else "following", "port": read(self, "port"), **self._counts}
        self._diagnostics.publish(report(self, problem, values))


def _robot_class(where: str) -> Any:
    """Return a LeRobot robot class.

    Raises:
        RefusedError: LeRobot, the module or the class is missing, or it is no LeRobot robot.
    """
    module, _, name = where.partition(":")
    try:
        from lerobot.robots import Robot

        kind = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise RefusedError(f"robot_class={where!r}: {error}. It needs LeRobot (pip install 'lerobot[feetech]').") from error
    if not (isinstance(kind, type) and issubclass(kind, Robot)):
        raise RefusedError(f"robot_class={where!r} is no LeRobot robot.")
    return kind


def main() -> int:
    """Run the node."""
    return run(So101Node)


if __name__ == "__main__":
    sys.exit(main())
