"""What a simulated task observes, as the messages of its contract: the inverse of the resampler."""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from sensor_msgs.msg import Image

from robolearn.core.errors import RefusedError
from robolearn.core.rotations import matrix_from_rotation_6d
from robolearn.core.types import Array, Observation, Spaces, is_image
from robolearn.deploy.streams import ObservationContract
from robolearn_bridge.messages import joint_state, pose, time_message


class SimulatedStreams:
    """Turns one observation into one message per stream."""

    def __init__(self, contract: ObservationContract, spaces: Spaces) -> None:
        contract.require_fits(spaces, what="simulated streams")
        self._contract = contract
        self._where: dict[str, list[tuple[str, slice, str, tuple[str, ...]]]] = {name: [] for name in contract.streams}
        for key in spaces.observation:
            start = 0
            for part in contract.features[key]:
                stream = contract.streams[part.stream]
                stop = start + len(part.element_names(stream))
                if not part.minus:
                    self._where[part.stream].append((key, slice(start, stop), part.take, part.names or stream.names))
                start = stop

    def messages(self, observation: Observation, stamp_ns: int) -> dict[str, Any]:
        """Return stream -> message of an observation without batch axis."""
        return {name: self._message(name, observation, stamp_ns) for name, places in self._where.items() if places}

    def _message(self, name: str, observation: Observation, stamp_ns: int) -> Any:
        stream = self._contract.streams[name]
        key, _, _, _ = self._where[name][0]
        if is_image(key):
            return image(observation[key], stamp_ns, frame_id=name)
        values: dict[str, Array] = {}
        joints: dict[str, float] = {}
        for key, elements, take, names in self._where[name]:
            value = observation[key][elements].astype(float)
            values[take] = value
            if stream.kind == "joint_state":
                joints.update(zip(names, value.tolist(), strict=True))
        if stream.kind == "joint_state":
            missing = [joint for joint in stream.names if joint not in joints]
            if missing:
                raise RefusedError(f"Stream {name!r}: the task observes no {missing}.")
            return joint_state(stream.names, np.array([joints[j] for j in stream.names]), stamp_ns)
        return pose(values["position"], quat_wxyz_from_matrix(matrix_from_rotation_6d(values["rot6d"])), stamp_ns, "world")


def image(pixels: Array, stamp_ns: int, *, frame_id: str) -> Image:
    """Return a picture (h, w, 3) uint8 as rgb8."""
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding="rgb8", step=pixels.shape[1] * 3)
    message.header.stamp, message.header.frame_id = time_message(stamp_ns), frame_id
    # array.array takes bytes at once; an ndarray or list is checked element by element (66 to 92 ms a picture).
    message.data = array("B", np.ascontiguousarray(pixels).tobytes())
    return message


def quat_wxyz_from_matrix(matrix: Array) -> Array:
    """Return the unit quaternion (4,) of a rotation matrix (3, 3), by its largest component (Shepperd 1978)."""
    m = np.asarray(matrix, float)
    trace = np.trace(m)
    # Squares of (w, x, y, z), times four.
    squares = np.array([1 + trace, 1 + 2 * m[0, 0] - trace, 1 + 2 * m[1, 1] - trace, 1 + 2 * m[2, 2] - trace])
    products = np.array(
        [
            [squares[0], m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]],
            [m[2, 1] - m[1, 2], squares[1], m[0, 1] + m[1, 0], m[0, 2] + m[2, 0]],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], squares[2], m[1, 2] + m[2, 1]],
            [m[1, 0] - m[0, 1], m[0, 2] + m[2, 0], m[1, 2] + m[2, 1], squares[3]],
        ]
    )
    row = products[int(np.argmax(squares))]
    return row / np.linalg.norm(row)
