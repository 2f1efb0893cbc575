"""The first three phases of every pick task: approach, close, lift. Each is a feedback law of the present observation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from robolearn.core.rotations import wrap_angle, yaw_from_matrix
from robolearn.core.types import Array
from sim_envs.experts.hand import rotation_vector, top_down
from sim_envs.experts.scene import CLOSED, OPEN, Command, Phase, Scene

APPROACH, CLOSE, LIFT, AFTER_LIFT = range(4)
"""Numbers of the pick phases, and of the first phase after them."""
PICK_STYLE: tuple[tuple[object, ...], ...] = (("side", "f8", (2,)), ("hover", "f8"))
"""Style fields that a pick task needs."""

_ALIGNED_M, _DRIFTED_M, _ALIGNED_RAD = 0.008, 0.025, 0.08
_ARRIVED_M, _NEARLY_M = 0.010, 0.015
_PATIENT_STEPS = 60


@dataclass(frozen=True)
class Pick:
    """How one task picks its object."""

    grasp: Callable[[Scene], tuple[Array, Array]]
    """Scene -> where (n, 3) [m] and with which finger heading (n,) [rad] the object should be held, seen truly."""
    blur_m: tuple[float, float, float]
    """Standard deviation at quality 0 of the misjudged grasp: along the fingers' opening, across it, upwards."""
    rise_m: float
    """How far the object is lifted before the next phase."""
    close_steps: int = 9
    """Control steps that the fingers get to close: 7 to arrive, the rest to press."""


def draw_pick_style(rng: np.random.Generator) -> dict[str, object]:
    """Draw the approach side (up to 6 cm to either side in 70 % of the episodes) and the hover height [m]."""
    return {"side": rng.uniform(-0.06, 0.06, 2) * (rng.random() < 0.7), "hover": rng.uniform(0.05, 0.09)}


def pick_phases(pick: Pick) -> tuple[Phase, Phase, Phase]:
    """Return the phases APPROACH, CLOSE and LIFT of ``pick``; the last leads to AFTER_LIFT."""

    def aimed(scene: Scene) -> tuple[Array, Array]:
        position, yaw = pick.grasp(scene)
        along, across, up = (scene.misjudge(0) * pick.blur_m).T
        offset = np.stack(
            [along * np.cos(yaw) - across * np.sin(yaw), along * np.sin(yaw) + across * np.cos(yaw), np.abs(up)], -1
        )
        return position + offset, top_down(yaw)

    def approach(scene: Scene) -> Command:
        goal, rotation = aimed(scene)
        position, inside = funnel(scene, goal, rotation)
        error = np.linalg.norm(goal - scene.eef_pos, axis=-1)
        arrived = inside & ((error < _ARRIVED_M) | ((scene.timer > _PATIENT_STEPS) & (error < _NEARLY_M)))
        return Command(position, rotation, OPEN, np.where(arrived, CLOSE, APPROACH), contact=inside)

    def close(scene: Scene) -> Command:
        _, rotation = aimed(scene)
        following = np.where(scene.timer >= pick.close_steps - 1, LIFT, CLOSE)
        return Command(scene.anchor, rotation, CLOSED, following, contact=True)

    def lift(scene: Scene) -> Command:
        _, rotation = aimed(scene)
        position = scene.anchor + np.array([0.0, 0.0, pick.rise_m])
        risen = scene.eef_pos[:, 2] - scene.anchor[:, 2]
        again = (risen > 0.04) & missed(scene, pick) & ~scene.gives_up()
        following = np.where(risen > pick.rise_m - 0.01, AFTER_LIFT, LIFT)
        return Command(position, rotation, CLOSED, np.where(again, APPROACH, following))

    return approach, close, lift


def missed(scene: Scene, pick: Pick) -> Array:
    """(n,) bool: the object is not between the fingers, by more than the worst misjudgement that still holds it."""
    position, _ = pick.grasp(scene)
    return np.linalg.norm(position - scene.eef_pos, axis=-1) > 0.045


def funnel(scene: Scene, goal: Array, rotation: Array) -> tuple[Array, Array]:
    """Return the position to servo to on the way down to ``goal``, and whether the hand is inside the funnel that leads there.

    Above the hover height the way leads from the side that the style asks for; at it, the hand waits until it is aligned; below,
    it descends as long as it stays within a tolerance that widens from 8 to 25 mm, else it rises again. ``goal`` and ``rotation``
    may have an axis of arms, as ``Scene.eef_pos`` has.
    """
    offset = scene.eef_pos - goal
    above = offset[..., 2] - scene.memory["hover"]
    lateral = np.linalg.norm(offset[..., :2], axis=-1)
    angle = np.linalg.norm(rotation_vector(rotation @ np.swapaxes(scene.eef_rot, -1, -2)), axis=-1)
    depth = np.clip((0.02 - above) / 0.04, 0.0, 1.0)
    inside = (
        (lateral < _ALIGNED_M + depth * (_DRIFTED_M - _ALIGNED_M)) & (angle < _ALIGNED_RAD * (1.0 + 2.0 * depth)) & (above < 0.03)
    )
    position = goal.copy()
    position[..., :2] += scene.memory["side"] * np.clip(above / 0.08, 0.0, 1.0)[..., None]
    position[..., 2] += np.where(inside, 0.0, scene.memory["hover"])
    low = (above < -0.02) & (lateral > _DRIFTED_M)
    position[low, :2] = scene.eef_pos[low, :2]
    return position, inside


def choose_faces(scene: Scene, index: int, other: Array) -> Array:
    """Return (n,) finger heading relative to cube ``index`` [rad]: the faces nearest to the hand, or the next nearest."""
    cube, hand = yaw_from_matrix(scene.object_rot[:, index]), hand_yaw(scene)
    near = nearest_quarter(cube, hand)
    far = near - np.copysign(np.pi / 2, near - hand)
    return np.where(other, far, near) - cube


def nearest_quarter(yaw: Array, towards: Array) -> Array:
    """Return ``yaw`` turned by the quarter turns that bring it nearest to ``towards``; all in radians."""
    return towards + (wrap_angle(4.0 * (yaw - towards)) / 4.0)


def hand_yaw(scene: Scene) -> Array:
    """Return (n,) heading [rad] of the axis along which the fingers open."""
    return yaw_from_matrix(scene.eef_rot)
