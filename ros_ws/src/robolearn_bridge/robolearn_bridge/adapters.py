"""From the gate's command to the messages of one kind of driver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import TwistStamped
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.robot import RobotSpec
from robolearn.core.types import Array
from robolearn.deploy.gate_config import Command
from robolearn_bridge.arm_sdk import ArmSdk, vendor_types
from robolearn_bridge.messages import time_message

INTERFACES = ("rates", "joints", "twist", "trajectory", "position", "velocity", "arm_sdk")
"""What the gate can speak: a simulated task's own rates or joint positions, MoveIt Servo's twists, ros2_control's three, and
Unitree's blended arms."""


_CATCH_UP = 2.0
"""Part of a position error that is made up for per second with velocities [1/s]."""


@dataclass(frozen=True)
class Output:
    """One topic that the gate writes."""

    topic: str
    message_type: type
    make: Callable[[Command, int], Any]
    """(command, stamp in nanoseconds) -> message, or None where nothing may be sent yet."""
    hears: tuple[tuple[type, str, Callable[[Any], None]], ...] = ()
    """(type, topic, what is called) of messages without which no command can be made."""


@dataclass(frozen=True)
class TwistScale:
    """What a rate of 1 means to a twist driver."""

    linear_m_s: float
    """[m/s]"""
    angular_rad_s: float
    """[rad/s]"""
    frame_id: str
    """Frame of the twist."""


def rate_outputs(names: tuple[str, ...]) -> list[Output]:
    """Return the output of a simulated task: its action as one stamped row, by name, on ``command``."""

    def make(command: Command, stamp_ns: int) -> JointTrajectory:
        message = JointTrajectory(joint_names=list(names))
        message.header.stamp = time_message(stamp_ns)
        message.points = [JointTrajectoryPoint(positions=command.position.tolist())]
        return message

    return [Output("command", JointTrajectory, make)]


def twist_outputs(names: tuple[str, ...], scale: TwistScale, gripper: Output | None = None) -> list[Output]:
    """Return the output of MoveIt Servo: the first six rates as a twist.

    Raises:
        RefusedError: the rates do not begin with dx dy dz drx dry drz.
    """
    wanted = ("dx", "dy", "dz", "drx", "dry", "drz")
    if names[:6] != wanted:
        raise RefusedError(f"A twist needs rates that begin with {wanted}, got {names}.")

    def make(command: Command, stamp_ns: int) -> TwistStamped:
        message = TwistStamped()
        message.header.stamp, message.header.frame_id = time_message(stamp_ns), scale.frame_id
        linear, angular = message.twist.linear, message.twist.angular
        linear.x, linear.y, linear.z = (command.position[:3] * scale.linear_m_s).tolist()
        angular.x, angular.y, angular.z = (command.position[3:6] * scale.angular_rad_s).tolist()
        return message

    outputs = [Output("servo_node/delta_twist_cmds", TwistStamped, make)]
    return [*outputs, gripper] if gripper else outputs


def joint_outputs(spec: RobotSpec, interface: str) -> list[Output]:
    """Return the outputs of a robot that takes joint commands: the arm's, and one per gripper that has a topic.

    Raises:
        RefusedError: the robot's driver does not take ``interface``, or its messages are not installed.
    """
    if interface not in spec.command_interfaces:
        raise RefusedError(f"Robot {spec.name!r} takes no {interface!r}. {nearest(interface, spec.command_interfaces)}")
    topic = spec.topic("command", interface).name
    if interface == "arm_sdk":
        command_type, state_type = vendor_types()
        arms = ArmSdk(spec, command_type)
        return [Output(topic, command_type, arms.make, ((state_type, spec.topic("low_state").name, arms.on_state),))]
    makers = {"trajectory": _trajectory, "position": _positions, "velocity": _velocities}
    if interface not in makers:
        raise RefusedError(f"Interface {interface!r} is not spoken by the gate. {nearest(interface, makers)}")
    kind = JointTrajectory if interface == "trajectory" else Float64MultiArray
    arm = Output(topic, kind, lambda command, stamp_ns: makers[interface](spec, command, stamp_ns))
    grippers = [t for t in spec.topics if t.role == "gripper_command"]
    return [arm, *(_gripper(spec, i, t.name) for i, t in enumerate(grippers))]


def _trajectory(spec: RobotSpec, command: Command, stamp_ns: int) -> JointTrajectory:
    """One period at the commanded velocity, then a stop inside the limits: what the robot does if nothing follows is safe."""
    n, period_s = spec.dim, 1 / spec.control_rate_hz
    q, v = command.position[:n], command.velocity[:n]
    brake_s = float((np.abs(v) / (spec.speed_scale * np.asarray(spec.max_acceleration))).max()) + 2 * period_s
    margin = spec.position_margin
    stop = np.clip(q + v * brake_s / 2, np.asarray(spec.position_low) + margin, np.asarray(spec.position_high) - margin)
    message = JointTrajectory(joint_names=list(spec.joints))
    # Stamp 0 is "start now": the point is reached one period after it arrives, whatever the clocks of the two machines say.
    message.points = [
        _point(spec, q, v, period_s),
        _point(spec, stop, np.zeros(n), period_s + brake_s),
    ]
    return message


def _point(spec: RobotSpec, position: Array, velocity: Array, after_s: float) -> JointTrajectoryPoint:
    point = JointTrajectoryPoint(
        positions=np.asarray(spec.to_wire(position), float).tolist(),
        velocities=np.asarray(spec.to_wire(velocity), float).tolist(),
    )
    nanoseconds = round(after_s * 1e9)
    point.time_from_start = Duration(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)
    return point


def _positions(spec: RobotSpec, command: Command, _: int) -> Float64MultiArray:
    return Float64MultiArray(data=np.asarray(spec.to_wire(command.position[: spec.dim]), float).tolist())


def _velocities(spec: RobotSpec, command: Command, _: int) -> Float64MultiArray:
    """The commanded velocity and a part of the way that is missing: alone, late or lost commands would add up to a drift.

    Nothing is made up for unless the gate is running, so the last velocity before its silence is zero: drivers go on with it.
    """
    limit = spec.speed_scale * np.asarray(spec.max_velocity)
    velocity = np.clip(command.velocity[: spec.dim] + _CATCH_UP * command.error[: spec.dim], -limit, limit)
    return Float64MultiArray(data=np.asarray(spec.to_wire(velocity), float).tolist())


def _gripper(spec: RobotSpec, index: int, topic: str) -> Output:
    gripper = spec.grippers[index]

    def make(command: Command, _: int) -> Float64MultiArray:
        closed = (float(command.position[spec.dim + index]) + 1) / 2
        return Float64MultiArray(data=[gripper.open + closed * (gripper.closed - gripper.open)])

    return Output(topic, Float64MultiArray, make)
