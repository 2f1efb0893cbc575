"""From sensor messages to arrays: a closed table, so that no file can name code to run.

Messages are read by attribute alone. A live ``rclpy`` message and one that :mod:`rosbags` read from a recording therefore go
through the same lines, and nothing here imports ROS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.rotations import matrix_from_quat_wxyz, rotation_6d_from_matrix
from robolearn.core.types import Array

type Sample = Mapping[str, Array]
"""What one message says: field name -> array."""

MESSAGE_TYPES: Mapping[str, str] = {
    "joint_state": "sensor_msgs/msg/JointState",
    "pose": "geometry_msgs/msg/PoseStamped",
    "wrench": "geometry_msgs/msg/WrenchStamped",
    "image": "sensor_msgs/msg/Image",
    "compressed_image": "sensor_msgs/msg/CompressedImage",
}
"""Kind of stream -> ROS message type."""

FIELDS: Mapping[str, tuple[str, ...]] = {
    "joint_state": ("position", "velocity", "effort"),
    "pose": ("position", "rot6d"),
    "wrench": ("force", "torque"),
    "image": ("image",),
    "compressed_image": ("image",),
}
"""Kind of stream -> the fields that a part of an observation can take from it."""

_CHANNELS = {"rgb8": 3, "bgr8": 3, "mono8": 1}
_UNIT_NORM_TOLERANCE = 1e-3


def stamp_ns(message: Any) -> int:
    """Return the header's stamp in nanoseconds."""
    return int(message.header.stamp.sec) * 1_000_000_000 + int(message.header.stamp.nanosec)


def decode(kind: str, message: Any, names: Sequence[str] = ()) -> dict[str, Array]:
    """Return what ``message`` says as arrays in SI units.

    Args:
        kind: a key of :data:`MESSAGE_TYPES`.
        message: the message, live or from a recording.
        names: joints to read, in the order that is wanted; matched by name, never by position. Only for joint states.

    Raises:
        RefusedError: a joint is missing or repeated, lengths differ, a number is not finite, a quaternion is not of unit length,
            or a picture is of an unknown encoding or size.
    """
    if kind not in _DECODERS:
        raise RefusedError(f"Unknown kind of stream {kind!r}. {nearest(kind, _DECODERS)}")
    sample = _DECODERS[kind](message, names)
    for field, value in sample.items():
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise RefusedError(f"{kind} message: {field} holds a value that is not finite.")
    return sample


def _joint_state(message: Any, names: Sequence[str]) -> dict[str, Array]:
    order = _order(tuple(message.name), tuple(names))
    sample = {}
    for field in FIELDS["joint_state"]:
        values = np.asarray(getattr(message, field), float)
        if values.size not in (0, len(message.name)):
            raise RefusedError(f"Joint state has {len(message.name)} names and {values.size} values of {field}.")
        if values.size:
            sample[field] = values[order]
    return sample


@lru_cache(maxsize=64)
def _order(given: tuple[str, ...], names: tuple[str, ...]) -> Array:
    """Return where each of ``names`` stands in ``given``; a driver gives the same names in every message."""
    index = {name: i for i, name in enumerate(given)}
    if len(index) != len(given):
        raise RefusedError(f"Joint state names a joint twice: {list(given)}.")
    missing = [name for name in names if name not in index]
    if missing:
        raise RefusedError(f"Joint state lacks {missing}; it has {sorted(index)}.")
    return np.array([index[name] for name in names], int)


def _pose(message: Any, _: Sequence[str]) -> dict[str, Array]:
    p, q = message.pose.position, message.pose.orientation
    quat_wxyz = np.array([q.w, q.x, q.y, q.z], float)
    norm = float(np.linalg.norm(quat_wxyz))
    if not abs(norm - 1) <= _UNIT_NORM_TOLERANCE:
        raise RefusedError(f"Orientation (w, x, y, z) = {quat_wxyz.tolist()} is not a unit quaternion.")
    rotation = rotation_6d_from_matrix(matrix_from_quat_wxyz(quat_wxyz / norm))
    return {"position": np.array([p.x, p.y, p.z], float), "rot6d": rotation}


def _wrench(message: Any, _: Sequence[str]) -> dict[str, Array]:
    f, t = message.wrench.force, message.wrench.torque
    return {"force": np.array([f.x, f.y, f.z], float), "torque": np.array([t.x, t.y, t.z], float)}


def _image(message: Any, _: Sequence[str]) -> dict[str, Array]:
    if message.encoding not in _CHANNELS:
        raise RefusedError(f"Picture encoding {message.encoding!r}. {nearest(message.encoding, _CHANNELS)}")
    height, width, channels = int(message.height), int(message.width), _CHANNELS[message.encoding]
    data = np.frombuffer(message.data, np.uint8)
    if message.step < width * channels or data.size != message.step * height:
        raise RefusedError(f"A {height} x {width} {message.encoding} picture of step {message.step} came with {data.size} bytes.")
    pixels: Array = data.reshape(height, message.step)[:, : width * channels].reshape(height, width, channels)
    if message.encoding == "mono8":
        pixels = np.repeat(pixels, 3, axis=2)
    return {"image": np.ascontiguousarray(pixels[:, :, ::-1] if message.encoding == "bgr8" else pixels)}


def _compressed_image(message: Any, _: Sequence[str]) -> dict[str, Array]:
    from PIL import Image, UnidentifiedImageError

    try:
        picture = Image.open(BytesIO(bytes(message.data)), formats=("JPEG", "PNG")).convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise RefusedError(f"A compressed picture of {len(message.data)} bytes is neither JPEG nor PNG: {error}.") from error
    return {"image": np.asarray(picture)}


_DECODERS: Mapping[str, Callable[[Any, Sequence[str]], dict[str, Array]]] = {
    "joint_state": _joint_state,
    "pose": _pose,
    "wrench": _wrench,
    "image": _image,
    "compressed_image": _compressed_image,
}
