"""Scripted Lift: grasp the cube from above on one of its two pairs of faces and raise it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robolearn.core.rotations import yaw_from_matrix
from robolearn.core.types import Array
from sim_envs.experts.hand import top_down
from sim_envs.experts.phases import ScriptedExpert
from sim_envs.experts.pick import AFTER_LIFT, PICK_STYLE, Pick, choose_faces, draw_pick_style, pick_phases
from sim_envs.experts.scene import CLOSED, Command, Phase, Scene


class LiftExpert(ScriptedExpert):
    """Demonstrator of Lift; observation and action as in ``sim_envs/tasks/lift.py``."""

    style_fields = (*PICK_STYLE, ("other_faces", "?"), ("cube_turn", "f8"))

    def phases(self) -> tuple[Phase, ...]:
        """Approach, close, lift, hold."""
        return (*pick_phases(Pick(_grasp, blur_m=(0.035, 0.035, 0.03), rise_m=0.12)), _hold)

    def draw_style(self, rng: np.random.Generator) -> Mapping[str, object]:
        """Draw the approach and whether the faces that need the larger turn of the hand are taken (a quarter of the episodes)."""
        return {**draw_pick_style(rng), "other_faces": rng.random() < 0.25}

    def begin(self, scene: Scene) -> Mapping[str, Array]:
        """Fix which faces are grasped: the heading of the fingers relative to the cube."""
        return {"cube_turn": choose_faces(scene, 0, scene.memory["other_faces"])}


def _grasp(scene: Scene) -> tuple[Array, Array]:
    return scene.object_pos[:, 0], yaw_from_matrix(scene.object_rot[:, 0]) + scene.memory["cube_turn"]


def _hold(scene: Scene) -> Command:
    return Command(scene.anchor, top_down(_grasp(scene)[1]), CLOSED, np.full(len(scene.timer), AFTER_LIFT))
