"""Scripted NutAssemblySquare: grasp the nut by its handle, turn it, centre it over the square peg and lower it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from robolearn.core.rotations import wrap_angle, yaw_from_matrix
from robolearn.core.types import Array
from sim_envs.experts.hand import top_down
from sim_envs.experts.phases import ScriptedExpert
from sim_envs.experts.pick import AFTER_LIFT, APPROACH, PICK_STYLE, Pick, draw_pick_style, hand_yaw, missed, pick_phases
from sim_envs.experts.scene import CLOSED, OPEN, Command, Phase, Scene

_INSERT, _RELEASE = AFTER_LIFT, AFTER_LIFT + 1
_HANDLE_M = 0.058  # along the nut's x axis
_PEG_M = np.array([0.23, 0.10])
_PEG_TOP_Z_M, _CARRY_Z_M, _SEATED_Z_M = 0.95, 0.985, 0.862
_JOINT_7_REACH_RAD = 2.6  # its limit is 2.9
_HANDLE_SIDES = np.array([0.0, np.pi])  # which finger is on which side of the handle
_PEG_YAWS = np.array([np.pi / 2, np.pi, -np.pi / 2])  # never 0: the handle would point away from the robot, beyond its reach


class SquareExpert(ScriptedExpert):
    """Demonstrator of NutAssemblySquare; object 0 is the square nut."""

    style_fields = (*PICK_STYLE, ("whim", "f8", (6,)), ("finger_turn", "f8"), ("peg_yaw", "f8"))

    def phases(self) -> tuple[Phase, ...]:
        """Approach, close, lift, insert, release."""
        return (*pick_phases(_PICK), _insert, _release)

    def draw_style(self, rng: np.random.Generator) -> Mapping[str, object]:
        """Draw the approach and a whim: how much longer a turn each of the six plans may be and still be chosen."""
        return {**draw_pick_style(rng), "whim": rng.exponential(0.25, 6)}

    def begin(self, scene: Scene) -> Mapping[str, Array]:
        """Choose handle side and final heading of the nut: the plan with the least turning that joint 7 can do."""
        nut, hand, joint_7 = yaw_from_matrix(scene.object_rot[:, 0]), hand_yaw(scene), scene.joint_position[:, 6]
        side, goal = (grid.ravel() for grid in np.meshgrid(_HANDLE_SIDES, _PEG_YAWS, indexing="ij"))
        first = wrap_angle((nut - hand)[:, None] + np.pi / 2 + side)
        second = wrap_angle(goal - nut[:, None])
        # Turning the hand, which points down, by an angle about the world's z axis turns joint 7 by minus that angle.
        after = np.abs(joint_7[:, None] - np.stack([first, first + second]))
        unreachable = (after > _JOINT_7_REACH_RAD).any(axis=0)
        plan = np.argmin(np.abs(first) + np.abs(second) + scene.memory["whim"] + 10.0 * unreachable, axis=1)
        return {"finger_turn": np.pi / 2 + side[plan], "peg_yaw": goal[plan]}


def _grasp(scene: Scene) -> tuple[Array, Array]:
    rotation = scene.object_rot[:, 0]
    return scene.object_pos[:, 0] + _HANDLE_M * rotation[:, :, 0], yaw_from_matrix(rotation) + scene.memory["finger_turn"]


_PICK = Pick(_grasp, blur_m=(0.025, 0.015, 0.02), rise_m=0.15, close_steps=10)


def _insert(scene: Scene) -> Command:
    nut = scene.object_pos[:, 0]
    error = _PEG_M - nut[:, :2] + 0.012 * scene.misjudge(1)[:, :2]
    lateral = np.linalg.norm(error, axis=-1)
    turn = wrap_angle(scene.memory["peg_yaw"] - yaw_from_matrix(scene.object_rot[:, 0]))
    around_peg = (nut[:, 2] < _PEG_TOP_Z_M - 0.005) & (lateral < 0.015)
    lower = around_peg | ((lateral < 0.006) & (np.abs(turn) < 0.05))
    too_low = (nut[:, 2] < _PEG_TOP_Z_M + 0.015) & (lateral > 0.015)
    position = scene.eef_pos.copy()
    position[:, :2] += np.where(too_low[:, None], 0.0, error)
    position[:, 2] += np.where(lower, -0.03, _CARRY_Z_M - nut[:, 2])
    rotation = top_down(hand_yaw(scene) + turn)
    following = np.where(around_peg & (nut[:, 2] < _SEATED_Z_M), _RELEASE, _INSERT)
    following = np.where(missed(scene, _PICK) & ~scene.gives_up(), APPROACH, following)
    near = lateral < 0.03
    return Command(position, rotation, CLOSED, following, contact=near, speed=np.where(near, 0.6, 1.0))


def _release(scene: Scene) -> Command:
    away = np.where(scene.timer < 4, 0.0, 0.12)
    position = scene.anchor + away[:, None] * np.array([0.0, 0.0, 1.0])
    failed = (scene.timer > 20) & ~scene.gives_up()
    return Command(position, top_down(hand_yaw(scene)), OPEN, np.where(failed, APPROACH, _RELEASE), contact=True)
