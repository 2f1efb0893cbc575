"""Scripted Stack: grasp the small cube, carry it over the large one, set it down square on top and let go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robolearn.core.rotations import yaw_from_matrix
from robolearn.core.types import Array
from sim_envs.experts.hand import top_down
from sim_envs.experts.phases import ScriptedExpert
from sim_envs.experts.pick import (
    AFTER_LIFT,
    APPROACH,
    PICK_STYLE,
    Pick,
    choose_faces,
    draw_pick_style,
    hand_yaw,
    missed,
    nearest_quarter,
    pick_phases,
)
from sim_envs.experts.scene import CLOSED, OPEN, Command, Phase, Scene

_PLACE, _RELEASE = AFTER_LIFT, AFTER_LIFT + 1
_STACKED_M = 0.045  # centre to centre: half of 4 cm and half of 5 cm
_CLEAR_M = 0.03


class StackExpert(ScriptedExpert):
    """Demonstrator of Stack; object 0 is the small cube A, object 1 the large cube B."""

    objects = 2
    style_fields = (*PICK_STYLE, ("other_faces", "?"), ("cube_turn", "f8"))

    def phases(self) -> tuple[Phase, ...]:
        """Approach, close, lift, place, release."""
        return (*pick_phases(_PICK), _place, _release)

    def draw_style(self, rng: np.random.Generator) -> Mapping[str, object]:
        """Draw the approach and whether the faces that need the larger turn of the hand are taken (a quarter of the episodes)."""
        return {**draw_pick_style(rng), "other_faces": rng.random() < 0.25}

    def begin(self, scene: Scene) -> Mapping[str, Array]:
        """Fix which faces are grasped; where cube B is close, those that keep the fingers clear of it."""
        nearest, other = (choose_faces(scene, 0, np.full(len(scene.timer), flag)) for flag in (False, True))
        apart = (scene.object_pos[:, 1] - scene.object_pos[:, 0])[:, :2]
        heading = np.arctan2(apart[:, 1], apart[:, 0]) - yaw_from_matrix(scene.object_rot[:, 0])
        close_by = np.linalg.norm(apart, axis=-1) < 0.13
        other_is_clearer = np.abs(np.cos(other - heading)) < np.abs(np.cos(nearest - heading))
        return {"cube_turn": np.where(np.where(close_by, other_is_clearer, scene.memory["other_faces"]), other, nearest)}


def _grasp(scene: Scene) -> tuple[Array, Array]:
    return scene.object_pos[:, 0], yaw_from_matrix(scene.object_rot[:, 0]) + scene.memory["cube_turn"]


_PICK = Pick(_grasp, blur_m=(0.03, 0.03, 0.03), rise_m=0.10)


def _place(scene: Scene) -> Command:
    cube, base = scene.object_pos[:, 0], scene.object_pos[:, 1]
    error = base - cube + scene.misjudge(1) * [0.03, 0.03, 0.0]
    height = cube[:, 2] - base[:, 2] - _STACKED_M
    lateral = np.linalg.norm(error[:, :2], axis=-1)
    inside = lateral < np.where(height < _CLEAR_M, 0.015, 0.006)
    position = scene.eef_pos + error
    position[:, 2] = scene.eef_pos[:, 2] - height + np.where(inside, 0.0, _CLEAR_M + 0.02)
    own, under = (yaw_from_matrix(scene.object_rot[:, i]) for i in (0, 1))
    rotation = top_down(hand_yaw(scene) + nearest_quarter(under, own) - own)
    low_enough = 0.004 + 0.03 * np.abs(scene.misjudge(1)[:, 2])
    following = np.where(inside & (height < low_enough), _RELEASE, _PLACE)
    following = np.where(missed(scene, _PICK) & ~scene.gives_up(), APPROACH, following)
    return Command(position, rotation, CLOSED, following, contact=height < _CLEAR_M, speed=0.8)


def _release(scene: Scene) -> Command:
    away = np.where(scene.timer < 4, 0.0, 0.10)
    position = scene.anchor + away[:, None] * np.array([0.0, 0.0, 1.0])
    failed = (scene.timer > 15) & ~scene.gives_up()
    return Command(position, top_down(hand_yaw(scene)), OPEN, np.where(failed, APPROACH, _RELEASE), contact=True)
