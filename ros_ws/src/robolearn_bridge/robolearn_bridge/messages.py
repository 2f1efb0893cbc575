"""Between arrays and standard ROS messages; the one place where quaternions change from wxyz to ROS's xyzw."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import PoseStamped
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn.deploy.codecs import MESSAGE_TYPES

SENSOR_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Sensors (REP-2003): a lost sample is replaced by the next one."""
COMMAND_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=10, reliability=ReliabilityPolicy.RELIABLE)
"""Chunks, commands, heartbeats."""
RECORD_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1000, reliability=ReliabilityPolicy.RELIABLE)
"""What must all be in the record, though its reader be away for seconds."""
RECORD_SENSOR_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=1000, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Sensors that are recorded: samples wait in the reader's queue while the process is held up, instead of replacing each other."""
RECORD_IMAGE_QOS = QoSProfile(history=HistoryPolicy.KEEP_LAST, depth=60, reliability=ReliabilityPolicy.BEST_EFFORT)
"""The same for cameras: two seconds at 30 Hz, which is 55 MB of a raw 640 x 480 stream."""
LATCHED_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""State that a late joiner must learn: mode, episode."""


def message_class(kind: str) -> type:
    """Return the message class of a kind of stream."""
    package, _, name = MESSAGE_TYPES[kind].partition("/msg/")
    return getattr(import_module(f"{package}.msg"), name)


def time_message(nanoseconds: int) -> Time:
    """Return a stamp."""
    return Time(sec=nanoseconds // 1_000_000_000, nanosec=nanoseconds % 1_000_000_000)


def joint_state(names: Sequence[str], position: Array, stamp_ns: int, velocity: Array | None = None) -> JointState:
    """Return a joint state [rad, rad/s]."""
    message = JointState(name=list(names), position=np.asarray(position, float).tolist())
    if velocity is not None:
        message.velocity = np.asarray(velocity, float).tolist()
    message.header.stamp = time_message(stamp_ns)
    return message


def pose(position: Array, quat_wxyz: Array, stamp_ns: int, frame_id: str) -> PoseStamped:
    """Return a pose of ``position`` [m] and a unit quaternion."""
    message = PoseStamped()
    message.header.stamp, message.header.frame_id = time_message(stamp_ns), frame_id
    p, q = message.pose.position, message.pose.orientation
    p.x, p.y, p.z = (float(x) for x in position)
    q.w, q.x, q.y, q.z = (float(x) for x in quat_wxyz)
    return message


def chunk_message(actions: Array, names: Sequence[str], *, stamp_ns: int, period_ns: int, source: str) -> JointTrajectory:
    """Return a chunk (h, a): row k holds from ``stamp_ns + k * period_ns`` for one period; ``source`` says what made it."""
    message = JointTrajectory(joint_names=list(names))
    message.header.stamp, message.header.frame_id = time_message(stamp_ns), source
    for k, row in enumerate(np.asarray(actions, float).tolist()):
        after = k * period_ns
        point = JointTrajectoryPoint(positions=row)
        point.time_from_start = Duration(sec=after // 1_000_000_000, nanosec=after % 1_000_000_000)
        message.points.append(point)
    return message


def chunk_rows(message: Any, names: Sequence[str]) -> tuple[Array, Array]:
    """Return the rows (h, a) of a chunk in the order of ``names``, and their times after the stamp (h,) in nanoseconds.

    Raises:
        RefusedError: names differ, a row has another length, or the times do not rise evenly from 0. Numbers that are not
            finite pass: refusing them is the gate's part, which knows what to send instead.
    """
    if sorted(message.joint_names) != sorted(names) or len(set(message.joint_names)) != len(names):
        raise RefusedError(f"Chunk for {list(message.joint_names)}, but the gate commands {list(names)}.")
    if not message.points:
        raise RefusedError("A chunk without points.")
    order = [list(message.joint_names).index(name) for name in names]
    rows = [np.asarray(point.positions, float) for point in message.points]
    if any(row.shape != (len(names),) for row in rows):
        raise RefusedError(f"A chunk's points need {len(names)} positions each, got {[len(row) for row in rows]}.")
    times = np.array([p.time_from_start.sec * 1_000_000_000 + p.time_from_start.nanosec for p in message.points], np.int64)
    steps = np.diff(times)
    # One step is what a gate knows; a hundredth of it is for rounding.
    if times[0] != 0 or (steps <= 0).any() or (np.abs(steps - steps[:1]) > steps[:1] / 100).any():
        raise RefusedError(f"A chunk's times must rise from 0 in equal steps, got {times.tolist()} ns.")
    return np.stack(rows)[:, order], times
