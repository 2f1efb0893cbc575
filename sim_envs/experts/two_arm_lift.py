"""Scripted TwoArmLift: each arm grips the handle on its side from above; both close together and raise the pot level."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robolearn.core.rotations import wrap_angle, yaw_from_matrix
from robolearn.core.types import Array
from sim_envs.experts.hand import top_down
from sim_envs.experts.phases import ScriptedExpert
from sim_envs.experts.pick import funnel
from sim_envs.experts.scene import CLOSED, OPEN, Command, Phase, Scene

_APPROACH, _CLOSE, _LIFT = range(3)
_POT, _HANDLES = 0, (1, 2)
_BLUR_M = (0.024, 0.03, 0.03)  # at quality 0: along the fingers' opening, along the bar, upwards
_ARRIVED_M, _SLIPPED_M = 0.012, 0.045
_CLOSE_STEPS = 10
_RISE_M, _AHEAD_M = 0.14, 0.025


class TwoArmLiftExpert(ScriptedExpert):
    """Demonstrator of TwoArmLift; object 0 is the pot, objects 1 and 2 its handles, for arm 0 and arm 1."""

    arm_base_yaw = (np.pi / 2, -np.pi / 2)
    objects = 3
    style_fields = (("side", "f8", (2, 2)), ("hover", "f8", (2,)), ("finger_turn", "f8", (2,)), ("lag", "f8", (2,)))

    def phases(self) -> tuple[Phase, ...]:
        """Approach, close, lift."""
        return _approach, _close, _lift

    def draw_style(self, rng: np.random.Generator) -> Mapping[str, object]:
        """Draw side and height of either arm's approach, and how many steps it would be late in lifting at quality 0."""
        side = rng.uniform(-0.04, 0.04, (2, 2)) * (rng.random(2) < 0.7)[:, None]
        return {"side": side, "hover": rng.uniform(0.05, 0.09, 2), "lag": rng.exponential(15.0) * np.eye(2)[rng.integers(2)]}

    def begin(self, scene: Scene) -> Mapping[str, Array]:
        """Choose between the two ways of straddling a bar the one that leaves joint 7 nearest to its middle."""
        bar_normal = _pot_yaw(scene) + np.pi / 2
        joint_7 = scene.joint_position[:, [6, 13]]
        turn = wrap_angle(bar_normal - yaw_from_matrix(scene.eef_rot) - joint_7)
        flip = np.abs(turn) > np.pi / 2
        return {"finger_turn": np.pi / 2 + np.pi * flip}


def _pot_yaw(scene: Scene) -> Array:
    return yaw_from_matrix(scene.object_rot[:, _POT])[:, None]


def _grips(scene: Scene) -> tuple[Array, Array]:
    """Return where the two hands hold the bars: positions (n, 2, 3) and orientations (n, 2, 3, 3)."""
    yaw = _pot_yaw(scene) + scene.memory["finger_turn"]
    opening, along, up = np.moveaxis(np.stack([scene.misjudge(arm) * _BLUR_M for arm in (0, 1)], axis=1), -1, 0)
    cos, sin = np.cos(yaw), np.sin(yaw)
    misjudged = np.stack([cos * opening - sin * along, sin * opening + cos * along, np.abs(up)], axis=-1)
    return np.stack([scene.object_pos[:, h] for h in _HANDLES], axis=1) + misjudged, top_down(yaw)


def _approach(scene: Scene) -> Command:
    goal, rotation = _grips(scene)
    position, inside = funnel(scene, goal, rotation)
    arrived = inside & (np.linalg.norm(goal - scene.eef_pos, axis=-1) < _ARRIVED_M)
    return Command(position, rotation, OPEN, np.where(arrived.all(-1), _CLOSE, _APPROACH), contact=inside.min(-1))


def _close(scene: Scene) -> Command:
    following = np.where(scene.timer >= _CLOSE_STEPS - 1, _LIFT, _CLOSE)
    return Command(scene.anchor, _grips(scene)[1], CLOSED, following, contact=True)


def _lift(scene: Scene) -> Command:
    goal, rotation = _grips(scene)
    risen = scene.eef_pos[..., 2] - scene.anchor[..., 2]
    late = scene.timer[:, None] < scene.flaw * scene.memory["lag"]
    # Both stay level by not running ahead of the lower hand; who is not aware that the other is late does not wait.
    level = np.minimum(risen.min(-1, keepdims=True) + _AHEAD_M, _RISE_M)
    position = scene.anchor.copy()
    position[..., 2] += np.where(late, 0.0, np.where(late.any(-1, keepdims=True), _RISE_M, level))
    slipped = (np.linalg.norm(goal - scene.eef_pos, axis=-1) > _SLIPPED_M).any(-1) | (scene.timer > 60)
    following = np.where(slipped & ~scene.gives_up(), _APPROACH, _LIFT)
    return Command(position, rotation, CLOSED, following, contact=True)
