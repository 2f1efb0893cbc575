"""SO-101 follower arm through LeRobot's robot class, whose wire is in degrees (arm) and percent (gripper).

The bridge's ``so101_node`` is the driver: its topics are in radians, and :class:`So101Driver` is where degrees begin.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.robot import GripperSpec, RobotSpec, TopicSpec, Workspace
from robolearn.core.types import Array

_JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
_URDF = "TheRobotStudio/SO-ARM100 Simulation/SO101/so101_new_calib.urdf (96f799e0)"
_SERVO = "chosen below the STS3215 servo's no-load speed of about 4.7 rad/s and stall torque of about 1.9 N m at 7.4 V"

SPEC = RobotSpec(
    name="so101",
    joints=_JOINTS,
    position_low=(-1.91986, -1.74533, -1.69, -1.65806, -2.74385),
    position_high=(1.91986, 1.74533, 1.69, 1.65806, 2.84121),
    max_velocity=(3.0,) * 5,
    max_acceleration=(20.0,) * 5,
    max_jerk=(400.0,) * 5,
    max_effort=(1.9,) * 5,
    home=(0.0, -1.4, 1.4, 0.8, 0.0),
    control_rate_hz=50.0,
    base_frame="base_link",
    tcp=("gripper_frame_link",),
    command_interfaces=("position",),
    topics=(
        TopicSpec("joint_states", "joint_states", "sensor_msgs/msg/JointState", qos="sensor", units="rad"),
        TopicSpec(
            "command", "forward_position_controller/commands", "std_msgs/msg/Float64MultiArray", units="rad", interface="position"
        ),
        TopicSpec("gripper_command", "gripper_controller/commands", "std_msgs/msg/Float64MultiArray", units="percent"),
    ),
    workspace=Workspace(low=(-0.1, -0.4, 0.0), high=(0.45, 0.4, 0.45), source="chosen: above the table; not checked: no model"),
    grippers=(
        GripperSpec(
            joint="gripper",
            open=100.0,
            closed=0.0,
            unit="percent",
            max_velocity=200.0,
            source="lerobot 0.6.1 so_follower.py: RANGE_0_100; speed chosen: open to closed within 0.5 s",
        ),
    ),
    max_relative_target=0.3,
    max_tracking_error=0.25,
    sources={
        "position_low": _URDF,
        "position_high": _URDF,
        "max_velocity": _SERVO,
        "max_acceleration": "chosen: full speed within 0.15 s",
        "max_jerk": "chosen: full acceleration within 50 ms",
        "max_effort": _SERVO,
        "home": "chosen: folded above the base",
        "position_margin": "chosen: 0.05 rad, near a control period at full speed (0.06 rad)",
        "max_tracking_error": "chosen: hobby servos lag by about 0.15 s, which is 0.11 rad at the gate's full speed (0.75 rad/s)",
        "control_rate_hz": "chosen: one bus read and write of six servos take about 10 ms at 1 Mbaud",
        "tcp": f"{_URDF}: gripper_frame_link",
        "command_interfaces": "lerobot 0.6.1 so_follower.py: Goal_Position",
        "topics": "robolearn's own names, of the bridge's so101_node; joint_states holds the gripper as [-1 open, 1 closed]",
    },
)


class LeRobotArm(Protocol):
    """The two methods of lerobot's Robot that are used; ``lerobot.robots.so_follower.SO101Follower`` is one."""

    def get_observation(self) -> Mapping[str, float]:
        """Return ``<motor>.pos``, degrees for the arm and percent for the gripper."""

    def send_action(self, action: dict[str, float]) -> Mapping[str, float]:
        """Take the same keys and units."""


class So101Driver:
    """Speaks radians and [-1 open, 1 closed] on this side and LeRobot's units on the other."""

    def __init__(self, robot: LeRobotArm, *, spec: RobotSpec = SPEC) -> None:
        self._robot, self._spec, self._gripper = robot, spec, spec.grippers[0]

    def read(self) -> Array:
        """Return the measured arm joints [rad] and the gripper [-1, 1], (6,).

        Raises:
            RefusedError: a motor is missing or not finite, or an angle is no possible angle in degrees.
        """
        seen = self._robot.get_observation()
        keys = [f"{name}.pos" for name in (*self._spec.joints, self._gripper.joint)]
        missing = [key for key in keys if key not in seen]
        if missing:
            raise RefusedError(f"The robot did not report {missing}; it reported {sorted(seen)}.")
        wire = np.array([seen[key] for key in keys], float)
        if not (np.isfinite(wire).all() and (np.abs(wire[:-1]) <= 180).all()):
            raise RefusedError(f"{dict(zip(keys, wire.tolist(), strict=True))} are not degrees in [-180, 180] and a percentage.")
        span = self._gripper.closed - self._gripper.open
        return np.append(np.radians(wire[:-1]), 2 * (wire[-1] - self._gripper.open) / span - 1)

    def write(self, command: Array) -> None:
        """Send joint positions [rad] and the gripper [-1 open, 1 closed], (6,).

        Raises:
            RefusedError: the shape is wrong, or a value is not finite or outside the limits; nothing was sent.
        """
        command = np.asarray(command, float)
        low, high = np.append(self._spec.position_low, -1.0), np.append(self._spec.position_high, 1.0)
        if command.shape != (self._spec.dim + 1,) or not ((command >= low) & (command <= high)).all():
            raise RefusedError(f"A command for {self._spec.name} is ({self._spec.dim + 1},) in [{low}, {high}]; came {command}.")
        wire = {f"{name}.pos": float(v) for name, v in zip(self._spec.joints, np.degrees(command[:-1]), strict=True)}
        gripper = self._gripper
        wire[f"{gripper.joint}.pos"] = float(gripper.open + (command[-1] + 1) / 2 * (gripper.closed - gripper.open))
        self._robot.send_action(wire)
