"""Scripted Door: grip the handle obliquely, turn it up with a turn of the whole hand, then pull the door open along its arc.

The handle's bar lies 8 cm in front of the panel, less than half the width of the hand, so the hand comes in tilted about the bar.
From then on the hand keeps its pose in the frame of the handle: both turns are written as "where would the grip be, had the
handle (or the door) moved a little further", which makes every phase after the approach a law of the observed handle pose alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robolearn.core.types import Array
from sim_envs.experts.hand import rotation_vector
from sim_envs.experts.phases import ScriptedExpert
from sim_envs.experts.scene import CLOSED, OPEN, Command, Phase, Scene

_APPROACH, _CLOSE, _TURN, _PULL = range(4)
_FRAME, _HANDLE = 0, 1
_AXIS_IN_HANDLE_M = np.array([0.125, -0.10, 0.0])  # handle site seen from the latch's axis, handle frame
_HINGE_IN_FRAME_M = np.array([0.555, 0.0, 0.0])
_TURNED_RAD = 1.28  # the latch lets go at about 1.2
_AJAR_RAD = 0.08
_TURN_AHEAD_RAD, _PULL_AHEAD_RAD = 0.25, 0.12
_CLOSE_STEPS = 9
_SLIPPED_M = 0.035


class DoorExpert(ScriptedExpert):
    """Demonstrator of Door; object 0 is the door's frame, object 1 the handle; then hinge and handle angles [rad]."""

    objects, scalars = 2, 2
    style_fields = (("tilt", "f8"), ("along", "f8"), ("standoff", "f8"), ("side", "f8", (2,)))

    def phases(self) -> tuple[Phase, ...]:
        """Approach, close, turn, pull."""
        return _approach, _close, _turn, _pull

    def draw_style(self, rng: np.random.Generator) -> Mapping[str, object]:
        """Draw the tilt of the hand [rad], the point of the bar that is gripped [m] and the way there."""
        return {
            "tilt": np.radians(rng.uniform(50.0, 65.0)),
            "along": rng.uniform(-0.03, -0.015),
            "standoff": rng.uniform(0.06, 0.10),
            "side": rng.uniform(-0.05, 0.05, 2) * (rng.random() < 0.7),
        }


def _grip(scene: Scene) -> tuple[Array, Array]:
    """Return where the hand holds the bar: position (n, 3) and orientation (n, 3, 3)."""
    sine, cosine, zero = np.sin(scene.memory["tilt"]), np.cos(scene.memory["tilt"]), np.zeros(len(scene.timer))
    fingers, forward = np.stack([zero, -cosine, -sine], -1), np.stack([zero, sine, -cosine], -1)
    hand_in_handle = np.stack([fingers, np.cross(forward, fingers), forward], axis=-1)
    along, _, across = (scene.misjudge(0) * [0.05, 0.0, 0.03]).T
    offset = np.stack([scene.memory["along"] + along, zero, across], -1)
    rotation = scene.object_rot[:, _HANDLE]
    return scene.object_pos[:, _HANDLE] + _apply(rotation, offset), rotation @ hand_in_handle


def _approach(scene: Scene) -> Command:
    goal, rotation = _grip(scene)
    forward = rotation[..., 2]
    offset = scene.eef_pos - goal
    away = -(offset * forward).sum(-1)
    lateral = np.linalg.norm(offset + away[:, None] * forward, axis=-1)
    angle = np.linalg.norm(rotation_vector(rotation @ np.swapaxes(scene.eef_rot, -1, -2)), axis=-1)
    standoff = scene.memory["standoff"]
    deep = away < standoff - 0.02
    inside = (lateral < np.where(deep, 0.02, 0.01)) & (angle < np.where(deep, 0.3, 0.12)) & (away < standoff + 0.03)
    unturned = np.clip(angle - 0.2, 0.0, 1.0)  # an untilted hand would hit the bar from below: it keeps off until it has turned
    position = goal - np.where(inside, 0.0, standoff + 0.12 * unturned)[:, None] * forward
    position[:, [0, 2]] += scene.memory["side"] * unturned[:, None]
    following = np.where(inside & (np.linalg.norm(offset, axis=-1) < 0.012), _CLOSE, _APPROACH)
    return Command(position, rotation, OPEN, following, contact=inside)


def _close(scene: Scene) -> Command:
    return Command(scene.anchor, _grip(scene)[1], CLOSED, np.where(scene.timer >= _CLOSE_STEPS - 1, _TURN, _CLOSE), contact=True)


def _turn(scene: Scene) -> Command:
    grip, rotation = _grip(scene)
    handle = scene.object_rot[:, _HANDLE]
    axis_point = scene.object_pos[:, _HANDLE] - _apply(handle, _AXIS_IN_HANDLE_M)
    step = _axis_rotation(handle[..., 1], -_TURN_AHEAD_RAD)
    position = axis_point + _apply(step, grip - axis_point)
    hinge, turned = scene.scalars[:, 0], -scene.scalars[:, 1]
    enough = (turned > _TURNED_RAD - 0.5 * np.abs(scene.misjudge(1)[:, 0])) | (hinge > _AJAR_RAD)
    return Command(position, step @ rotation, CLOSED, _unless_slipped(scene, grip, np.where(enough, _PULL, _TURN)), contact=True)


def _pull(scene: Scene) -> Command:
    grip, rotation = _grip(scene)
    hinge_point = scene.object_pos[:, _FRAME] + _apply(scene.object_rot[:, _FRAME], _HINGE_IN_FRAME_M)
    upwards = np.broadcast_to(np.array([0.0, 0.0, 1.0]), grip.shape)
    step = _axis_rotation(upwards, _PULL_AHEAD_RAD)
    position = hinge_point + _apply(step, grip - hinge_point)
    following = _unless_slipped(scene, grip, np.full(len(scene.timer), _PULL))
    return Command(position, step @ rotation, CLOSED, following, contact=True)


def _unless_slipped(scene: Scene, grip: Array, following: Array) -> Array:
    lost = (np.linalg.norm(scene.eef_pos - grip, axis=-1) > _SLIPPED_M) | (scene.timer > 60)
    return np.where(lost & ~scene.gives_up(), _APPROACH, following)


def _apply(rotation: Array, vector: Array) -> Array:
    return np.einsum("nij,nj->ni", rotation, np.broadcast_to(vector, (len(rotation), 3)))


def _axis_rotation(axis: Array, angle: float) -> Array:
    """Return (n, 3, 3) rotations by ``angle`` [rad] about the unit vectors ``axis`` (n, 3) (Rodrigues' formula)."""
    zero = np.zeros(len(axis))
    x, y, z = axis.T
    cross = np.stack([np.stack([zero, -z, y], -1), np.stack([z, zero, -x], -1), np.stack([-y, x, zero], -1)], axis=-2)
    return np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * cross @ cross
