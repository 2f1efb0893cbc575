"""Joint positions that bring both hands of a robot to wanted poses: damped least squares on the robot's own kinematics."""

from __future__ import annotations

import mujoco
import numpy as np

from robolearn.core.robot import RobotSpec
from robolearn.core.types import Array

_DAMPING = 0.05
_TURN_WEIGHT_M = 0.1
"""An error of orientation of 1 rad counts as this many metres."""
_HOMING = 0.02
"""Part of the way to home per step that joints go which the hands do not need."""


class HandsIk:
    """One step of inverse kinematics at a time, from measured joints."""

    def __init__(self, spec: RobotSpec) -> None:
        assert spec.model is not None
        self._model = mujoco.MjModel.from_xml_path(str(spec.model.locate()))
        self._data = mujoco.MjData(self._model)
        joints = [self._model.joint(name) for name in spec.model.joints]
        self._q, self._v = [int(j.qposadr[0]) for j in joints], [int(j.dofadr[0]) for j in joints]
        self._bodies = [self._model.body(name).id for name in spec.model.tcp_bodies]
        self._home, self._low, self._high = (np.array(a) for a in (spec.home, spec.position_low, spec.position_high))
        self.home_turns = [pose[1] for pose in self.poses(self._home)]
        """Orientation (3, 3) of each hand at home."""

    def poses(self, joints: Array) -> list[tuple[Array, Array]]:
        """Return each hand's position (3,) and orientation (3, 3) in the base frame; the base is the world's origin."""
        self._data.qpos[self._q] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)
        return [(self._data.xpos[b].copy(), self._data.xmat[b].reshape(3, 3).copy()) for b in self._bodies]

    def step(self, joints: Array, goals: Array, turns: list[Array] | None, *, max_step: float) -> Array:
        """Return joint positions (n,) that lead from ``joints`` (n,) towards ``goals`` (hands, 3) [m].

        Args:
            joints: measured positions.
            goals: where the hands shall be, in the order of the robot's ``tcp_bodies``.
            turns: orientation (3, 3) of each hand, or None if it does not matter.
            max_step: largest change of a joint [rad].
        """
        poses = self.poses(joints)
        rows, errors = [], []
        for k, (body, (position, turn), goal) in enumerate(zip(self._bodies, poses, goals, strict=True)):
            linear, angular = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
            mujoco.mj_jacBody(self._model, self._data, linear, angular, body)
            rows.append(linear[:, self._v])
            errors.append(goal - position)
            if turns is not None:
                rows.append(_TURN_WEIGHT_M * angular[:, self._v])
                errors.append(_TURN_WEIGHT_M * 0.5 * np.cross(turn, turns[k], axisa=0, axisb=0).sum(axis=0))
        jacobian, error = np.concatenate(rows), np.concatenate(errors)
        inverse = jacobian.T @ np.linalg.inv(jacobian @ jacobian.T + _DAMPING**2 * np.eye(len(error)))
        free = np.eye(len(joints)) - inverse @ jacobian
        change = inverse @ error + free @ (_HOMING * (self._home - joints))
        largest = np.abs(change).max()
        return np.clip(joints + change * min(1.0, max_step / max(largest, 1e-9)), self._low + 0.06, self._high - 0.06)
