"""Orientations of the hand: pointing down with a heading, and the turn from one to another."""

from __future__ import annotations

import numpy as np

from robolearn.core.types import Array


def top_down(yaw: Array) -> Array:
    """Return (..., 3, 3) hand orientations that point straight down, fingers opening along the heading ``yaw`` [rad]."""
    cos, sin, zero = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)
    rows = [[cos, sin, zero], [sin, -cos, zero], [zero, zero, zero - 1.0]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_vector(matrix: Array) -> Array:
    """Return the (..., 3) axis times angle [rad] of rotation matrices (..., 3, 3) that turn by less than half a turn."""
    twice_sin_axis = np.stack(
        [
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ],
        axis=-1,
    )
    twice_sin = np.linalg.norm(twice_sin_axis, axis=-1, keepdims=True)
    twice_cos = np.trace(matrix, axis1=-2, axis2=-1)[..., None] - 1.0
    return twice_sin_axis * np.where(twice_sin > 1e-9, np.arctan2(twice_sin, twice_cos) / np.maximum(twice_sin, 1e-9), 0.5)
