"""The conveyor task as a batch of environments: native lift's robot, and a cube that a belt carries past it."""

from __future__ import annotations

import numpy as np

from robolearn.core.seeding import generator
from sim_envs.conveyor_model import conveyor_renderer, conveyor_scene
from sim_envs.native_env import JOINT_NOISE_RAD, NativeLiftEnv, Start
from sim_envs.native_kernel import ARM_DOF
from sim_envs.native_model import NativeScene
from sim_envs.render import CameraRenderer

SPEED_M_S = (0.06, 0.12)
"""Slowest and fastest belt; at 0.1 m/s a decision that comes 4 control steps late is 2 cm behind, half the cube's width."""
START_X_M = 0.07
"""The cube starts within +- this of the table's centre line."""
START_Y_M = (0.1, 0.2)
"""How far before the middle of the table the cube starts, against the direction in which the belt moves."""
_CUBE_X, _CUBE_Y, _CUBE_QUAT = 9, 10, slice(12, 16)
_CUBE_VY = 10


class ConveyorEnv(NativeLiftEnv):
    """Native lift on a moving belt, which runs to the robot's left or right at a speed that the seed decides.

    Actions and observations are native lift's: how fast the cube moves has to be seen from where it was. A cube that is carried
    out of reach is a failed episode.
    """

    task = "conveyor"

    def _compiled(self) -> NativeScene:
        return conveyor_scene()

    def _renderer(self) -> CameraRenderer:
        return conveyor_renderer()

    def _start(self, seed: int) -> Start:
        """Return how an episode starts: belt and cube move at one speed."""
        rng = generator(seed, "conveyor", "reset")
        qpos, ctrl = self._scene.home_qpos.copy(), self._scene.home_ctrl.copy()
        qpos[:ARM_DOF] += JOINT_NOISE_RAD * rng.standard_normal(ARM_DOF)
        direction = rng.choice([-1.0, 1.0])
        speed = direction * rng.uniform(*SPEED_M_S)
        yaw = rng.uniform(-np.pi, np.pi)
        qpos[_CUBE_X] = rng.uniform(-START_X_M, START_X_M)
        qpos[_CUBE_Y] = -direction * rng.uniform(*START_Y_M)
        qpos[_CUBE_QUAT] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        qvel = np.zeros(self._scene.model.nv)
        qvel[_CUBE_VY] = qvel[-1] = speed
        ctrl[:ARM_DOF], ctrl[-1] = qpos[:ARM_DOF], speed
        return Start(qpos, qvel, ctrl)
