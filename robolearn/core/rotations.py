"""Rotations as arrays: quaternions are wxyz, matrices are (..., 3, 3), the 6-D form is the first two columns of the matrix.

The 6-D form is continuous (Zhou et al. 2019, "On the Continuity of Rotation Representations in Neural Networks"), so a network
never sees the sign flip of a quaternion.
"""

from __future__ import annotations

import numpy as np

from robolearn.core.types import Array


def matrix_from_quat_wxyz(quat_wxyz: Array) -> Array:
    """Return (..., 3, 3) matrices of unit quaternions (..., 4)."""
    w, x, y, z = np.moveaxis(np.asarray(quat_wxyz), -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_6d_from_matrix(matrix: Array) -> Array:
    """Return (..., 6): the first column, then the second column of (..., 3, 3)."""
    return np.concatenate([matrix[..., :, 0], matrix[..., :, 1]], axis=-1)


def matrix_from_rotation_6d(rotation_6d: Array) -> Array:
    """Return the rotation matrix (..., 3, 3) nearest to (..., 6) by Gram-Schmidt (Zhou et al. 2019, eq. 15)."""
    first, second = rotation_6d[..., :3], rotation_6d[..., 3:]
    x = first / np.linalg.norm(first, axis=-1, keepdims=True)
    y = second - (x * second).sum(-1, keepdims=True) * x
    y = y / np.linalg.norm(y, axis=-1, keepdims=True)
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def yaw_from_matrix(matrix: Array) -> Array:
    """Return the heading of the body x axis about the world z axis, in radians, for (..., 3, 3) matrices."""
    return np.arctan2(matrix[..., 1, 0], matrix[..., 0, 0])


def wrap_angle(angle: Array) -> Array:
    """Wrap radians to [-pi, pi)."""
    return (np.asarray(angle) + np.pi) % (2 * np.pi) - np.pi
