"""Scripted PickPlaceCan: grasp the can near its top, carry it over the wall, lower it into its quarter of the bin and let go."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robolearn.core.types import Array
from sim_envs.experts.hand import top_down
from sim_envs.experts.phases import ScriptedExpert
from sim_envs.experts.pick import AFTER_LIFT, APPROACH, PICK_STYLE, Pick, draw_pick_style, missed, pick_phases
from sim_envs.experts.scene import CLOSED, OPEN, Command, Phase, Scene

_PLACE, _RELEASE = AFTER_LIFT, AFTER_LIFT + 1
_HOME_YAW = np.pi / 2
_DROP_CENTRE_M = (
    0.1575,
    0.3525,
)  # the middle of the quarter, moved 4 cm and 5 cm towards the robot: its centre is at arm's length
_DROP_SPREAD_M = (0.025, 0.03)
_CARRY_Z_M, _RELEASE_Z_M = 0.99, 0.91  # released with the finger tips just above the walls, which end at 0.90


class CanExpert(ScriptedExpert):
    """Demonstrator of PickPlaceCan; object 0 is the can."""

    style_fields = (*PICK_STYLE, ("yaw", "f8"), ("drop", "f8", (2,)))

    def phases(self) -> tuple[Phase, ...]:
        """Approach, close, lift, place, release."""
        return (*pick_phases(_PICK), _place, _release)

    def draw_style(self, rng: np.random.Generator) -> Mapping[str, object]:
        """Draw the approach, one of three finger headings (the can is round) and where in the quarter the can goes."""
        turn = rng.choice([-0.6, 0.0, 0.6], p=[0.25, 0.5, 0.25])
        drop = np.array(_DROP_CENTRE_M) + np.array(_DROP_SPREAD_M) * rng.uniform(-1.0, 1.0, 2)
        return {**draw_pick_style(rng), "yaw": _HOME_YAW + turn, "drop": drop}


def _grasp(scene: Scene) -> tuple[Array, Array]:
    return scene.object_pos[:, 0] + np.array([0.0, 0.0, 0.012]), scene.memory["yaw"]


_PICK = Pick(_grasp, blur_m=(0.025, 0.025, 0.04), rise_m=0.13)


def _place(scene: Scene) -> Command:
    can = scene.object_pos[:, 0]
    error = scene.memory["drop"] + scene.misjudge(1)[:, :2] * [0.04, 0.05] - can[:, :2]
    lateral = np.linalg.norm(error, axis=-1)
    over = lateral < 0.03 + 0.08 * np.abs(scene.misjudge(1)[:, 2])
    position = scene.eef_pos.copy()
    position[:, :2] += error
    position[:, 2] += np.where(over, _RELEASE_Z_M - 0.02, _CARRY_Z_M) - can[:, 2]
    low = (can[:, 2] < _CARRY_Z_M - 0.03) & ~over
    position[low, :2] = scene.eef_pos[low, :2]
    following = np.where(over & (can[:, 2] < _RELEASE_Z_M), _RELEASE, _PLACE)
    following = np.where(missed(scene, _PICK) & ~scene.gives_up(), APPROACH, following)
    return Command(position, top_down(scene.memory["yaw"]), CLOSED, following)


def _release(scene: Scene) -> Command:
    away = np.where(scene.timer < 4, 0.0, 0.12)
    position = scene.anchor + away[:, None] * np.array([0.0, 0.0, 1.0])
    failed = (scene.timer > 20) & ~scene.gives_up()
    return Command(position, top_down(scene.memory["yaw"]), OPEN, np.where(failed, APPROACH, _RELEASE), contact=True)
