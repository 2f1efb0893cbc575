"""An operator's device to motion commands: nothing moves unless the deadman is held, and taking hold makes nothing jump."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import numpy as np
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import JointState, Joy
from std_msgs.msg import Bool
from trajectory_msgs.msg import JointTrajectory

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn.deploy.codecs import decode
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS, chunk_message
from robolearn_bridge.parameters import declare, read, read_choice

DEVICES = ("joy", "twist", "leader")
HORIZON = 3
"""Rows of a chunk: the last wish holds for this many periods when the device falls silent, then the gate stops."""
GRIPPER_SLACK = 0.25
"""How far beyond its range a leader's gripper may be read, in ranges: further out it is another unit or another gripper."""


class TeleopNode(SafeLifecycleNode):
    """Publishes ``teleop/chunk``, which the gate prefers to the policy's while it comes; releasing the deadman ends it.

    ``joy`` and ``twist`` command rates (``names``). ``leader`` commands positions relative to where leader and robot were when
    the deadman was pressed: the clutch; grippers follow absolutely, from the leader's range to [-1 open, 1 closed]. The deadman
    is a button of the joystick, or ``teleop/deadman`` (Bool, repeated) for the other two.
    """

    def __init__(self) -> None:
        super().__init__("teleop_node")
        declare(self, "device", "joy", f"One of {', '.join(DEVICES)}.", read_only=True)
        declare(
            self, "names", [""], "Names of the commanded elements: the policy's actions, or the robot's joints.", read_only=True
        )
        declare(self, "rate_hz", 20.0, "Chunks per second.", read_only=True)
        declare(self, "axes", [0], "With joy: axis of each rate but the last; the last is the gripper.", read_only=True)
        declare(self, "scales", [1.0], "With joy or twist: factor of each rate but the gripper.", read_only=True)
        declare(self, "deadman_button", 4, "With joy: held while commanding.", read_only=True)
        declare(self, "gripper_button", 0, "With joy: closes the gripper while held.", read_only=True)
        declare(self, "estop_button", -1, "With joy: requests a stop; -1: this node publishes no e-stop.", read_only=True)
        declare(self, "timeout_s", 0.2, "Silence of device or deadman that counts as letting go [s].", read_only=True)
        declare(self, "scale", 1.0, "With leader: robot radians per leader radian.", read_only=True)
        declare(self, "robot", "", "With leader: the robot that is commanded, a name in hardware/.", read_only=True)
        for end in ("open", "closed"):
            text = f"With leader: reading of its gripper when {end}, one for each gripper among names [rad or m]."
            declare(self, f"gripper_{end}", [0.0], text, read_only=True)

    def configure(self) -> None:
        """Subscribe to the device."""
        self._device = read_choice(self, "device", DEVICES)
        self._names = tuple(n for n in read(self, "names") if n)
        if not self._names:
            raise RefusedError("Parameter names is empty: name what is commanded.")
        rates = len(self._names) - 1
        if self._device == "joy" and len(read(self, "axes")) != rates:
            raise RefusedError(f"axes needs {rates} entries for {self._names}, got {list(read(self, 'axes'))}.")
        if self._device in ("joy", "twist") and len(read(self, "scales")) != rates:
            raise RefusedError(f"scales needs {rates} entries for {self._names}, got {list(read(self, 'scales'))}.")
        if self._device == "joy":
            self._require_buttons()
        elif read(self, "estop_button") >= 0:
            raise RefusedError(
                f"estop_button needs device=joy: a {self._device} has no button, so that it would never be pressed."
            )
        if self._device == "leader":
            self._configure_leader()
        self._wish: Array | None = None
        self._wish_at = self._held_at = -np.inf
        self._held = self._pressed = self._zeroed = False
        self._leader = self._robot = self._leader_zero = self._robot_zero = np.full(len(self._names), np.nan)
        self._chunks = self.create_lifecycle_publisher(JointTrajectory, "teleop/chunk", COMMAND_QOS)
        kinds: dict[str, list[tuple[type, str, Any]]] = {
            "joy": [(Joy, "joy", self._on_joy)],
            "twist": [(TwistStamped, "teleop/twist", self._on_twist), (Bool, "teleop/deadman", self._on_deadman)],
            "leader": [
                (JointState, "leader/joint_states", self._on_leader),
                (JointState, "joint_states", self._on_robot),
                (Bool, "teleop/deadman", self._on_deadman),
            ],
        }
        self._heard = [
            self.create_subscription(kind, topic, self.guarded(call, topic), SENSOR_QOS)
            for kind, topic, call in kinds[self._device]
        ]
        self._estop = self.create_publisher(Bool, "e_stop", COMMAND_QOS) if read(self, "estop_button") >= 0 else None
        self._timer = self.create_timer(1 / read(self, "rate_hz"), self.guarded(self._on_timer, "timer"))

    def _require_buttons(self) -> None:
        """Refuse negative numbers: they would be counted from the end; only estop_button may be -1, which is none."""
        used = [*read(self, "axes"), read(self, "deadman_button"), read(self, "gripper_button"), read(self, "estop_button") + 1]
        if min(used) < 0:
            raise RefusedError("axes, deadman_button and gripper_button must not be negative; estop_button must be -1 or more.")

    def _configure_leader(self) -> None:
        spec = load_robot(read(self, "robot"))
        known = (*spec.joints, *(gripper.joint for gripper in spec.grippers))
        unknown = [name for name in self._names if name not in known]
        if unknown:
            raise RefusedError(f"names holds {unknown}; {spec.name} has {list(known)}.")
        self._is_gripper = np.array([name not in spec.joints for name in self._names])
        grippers = [name for name in self._names if name not in spec.joints]
        self._joints = [name for name in self._names if name in spec.joints]
        opened, closed = (np.asarray(read(self, f"gripper_{end}"), float) for end in ("open", "closed"))
        given = len(opened) == len(closed) == max(1, len(grippers)) and np.isfinite([opened, closed]).all()
        if not given or (opened == closed).any() == bool(grippers):
            raise RefusedError(
                f"gripper_open={opened.tolist()} and gripper_closed={closed.tolist()} must give the leader's readings, which "
                f"differ, for each of the grippers {grippers} among names, and none where there are no grippers."
            )
        self._gripper_open, self._gripper_span = opened[: len(grippers)], (closed - opened)[: len(grippers)]

    def deactivate(self) -> None:
        """Let go."""
        self._held = False

    def cleanup(self) -> None:
        """Remove topics."""
        self.destroy_timer(self._timer)
        for subscription in self._heard:
            self.destroy_subscription(subscription)
        self.destroy_lifecycle_publisher(self._chunks)
        if self._estop is not None:
            self.destroy_publisher(self._estop)

    def fault(self, where: str, error: BaseException) -> None:
        """A device that sends nonsense has let go."""
        self._held = False
        self.get_logger().warning(f"{where}: {error}", throttle_duration_sec=1.0)

    def _on_joy(self, message: Joy) -> None:
        axes, buttons = np.asarray(message.axes, float), list(message.buttons)
        used = [int(a) for a in read(self, "axes")]
        deadman, closes, stop = (read(self, f"{name}_button") for name in ("deadman", "gripper", "estop"))
        if max(used) >= len(axes) or max(deadman, closes, stop) >= len(buttons):
            raise RefusedError(
                f"The joystick has {len(axes)} axes and {len(buttons)} buttons; axes {used} and buttons {deadman}, {closes}, "
                f"{stop} are configured."
            )
        self._pressed |= stop >= 0 and bool(buttons[stop])
        rates = axes[used] * np.asarray(read(self, "scales"))
        gripper = 1.0 if buttons[closes] else -1.0
        self._take(np.append(rates, gripper), bool(buttons[deadman]))

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        rates = np.array([linear.x, linear.y, linear.z, angular.x, angular.y, angular.z]) * np.asarray(read(self, "scales"))
        self._take(np.append(rates, -1.0), self._held)

    def _on_leader(self, message: JointState) -> None:
        self._leader = self._in_actions(decode("joint_state", message, self._names)["position"])
        if not (self._held and self._zeroed):
            self._leader_zero, self._robot_zero, self._zeroed = self._leader, self._robot, self._held
        moved = self._robot_zero + (self._leader - self._leader_zero) * read(self, "scale")
        self._take(np.where(self._is_gripper, self._leader, moved), self._held)

    def _in_actions(self, leader: Array) -> Array:
        """Return the leader's readings with its grippers in [-1 open, 1 closed]."""
        part = (leader[self._is_gripper] - self._gripper_open) / self._gripper_span
        if (np.abs(part - 0.5) > 0.5 + GRIPPER_SLACK).any():
            raise RefusedError(
                f"The leader's gripper reads {leader[self._is_gripper].tolist()}, far outside its range from "
                f"{read(self, 'gripper_open')} to {read(self, 'gripper_closed')}: another unit?"
            )
        leader[self._is_gripper] = np.clip(2 * part - 1, -1.0, 1.0)
        return leader

    def _on_robot(self, message: JointState) -> None:
        robot = np.zeros(len(self._names))
        robot[~self._is_gripper] = decode("joint_state", message, self._joints)["position"]
        self._robot = robot

    def _on_deadman(self, message: Bool) -> None:
        self._zeroed &= self._held and message.data  # a new grip begins at the next reading of the leader
        self._held, self._held_at = bool(message.data), time.monotonic()

    def _take(self, wish: Array, held: bool) -> None:
        if not np.isfinite(wish).all():
            raise RefusedError(f"The device's wish is not finite: {wish.tolist()}.")
        self._wish, self._held, self._wish_at = wish, held, time.monotonic()
        if self._device == "joy":
            self._held_at = self._wish_at

    def _on_timer(self) -> None:
        now, timeout = time.monotonic(), read(self, "timeout_s")
        if self._estop is not None and now - self._wish_at <= timeout:
            # A silent joystick publishes nothing, which the gate takes for a stop as well.
            self._estop.publish(Bool(data=self._pressed))
        fresh = now - self._wish_at <= timeout and now - self._held_at <= timeout
        self._held &= fresh  # what comes after a silence is a new grip
        if not self._held or self._wish is None or (self._device == "leader" and not self._zeroed):
            return
        period = round(1e9 / read(self, "rate_hz"))
        rows = np.repeat(self._wish[None], HORIZON, axis=0)
        source = json.dumps({"source": "teleop"})
        self._chunks.publish(chunk_message(rows, self._names, stamp_ns=time.time_ns(), period_ns=period, source=source))


def main() -> int:
    """Run the node."""
    return run(TeleopNode)


if __name__ == "__main__":
    sys.exit(main())
