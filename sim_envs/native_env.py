"""The native lift task as a batch of environments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import mujoco
import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.seeding import generator
from robolearn.core.types import ENVIRONMENT_STATE, IMAGES_PREFIX, STATE, Array, EnvSpec, FeatureSpec, Observation, Spaces, Step
from sim_envs.native_kernel import ACTION_DIM, ARM_DOF, ENVIRONMENT_DIM, NQ, STATE_DIM, Buffers, observe_rows, step_rows
from sim_envs.native_model import CONTROL_RATE_HZ, NativeScene, address_row, native_scene
from sim_envs.task import EnvOptions

if TYPE_CHECKING:
    from sim_envs.render import CameraRenderer

JOINTS = "observation.joint_position"
CAMERAS = ("agentview", "robot0_eye_in_hand", "frontview")
JOINT_NOISE_RAD = 0.02
"""Standard deviation of the start pose, as robosuite's."""
CUBE_HALF_RANGE_M = (0.08, 0.12)
"""The cube starts within +- this of the table's centre in x and y, at any yaw: a blind policy cannot succeed."""


def native_lift_spaces(cameras: tuple[str, ...] = (), image_size: int = 84) -> Spaces:
    """Return the spaces of the native lift task; the layout is that of robosuite's Lift."""
    rot6d = tuple(range(6))
    state = (*_xyz("eef_pos"), *(f"eef_rot6d_{i}" for i in rot6d), "gripper_qpos_0", "gripper_qpos_1")
    cube = (*_xyz("cube_pos"), *(f"cube_rot6d_{i}" for i in rot6d), *_xyz("cube_to_eef"))
    observation = {
        STATE: FeatureSpec((STATE_DIM,), names=state),
        JOINTS: FeatureSpec((ARM_DOF,), names=tuple(f"joint_position_{i}" for i in range(ARM_DOF))),
        ENVIRONMENT_STATE: FeatureSpec((ENVIRONMENT_DIM,), names=cube),
        **{IMAGES_PREFIX + c: FeatureSpec((image_size, image_size, 3), dtype="uint8") for c in cameras},
    }
    names = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
    return Spaces(
        robot="panda",
        observation=observation,
        action=FeatureSpec((ACTION_DIM,), names=names),
        action_low=(-1.0,) * ACTION_DIM,
        action_high=(1.0,) * ACTION_DIM,
        control_rate_hz=CONTROL_RATE_HZ,
    )


def _xyz(stem: str) -> tuple[str, ...]:
    return tuple(f"{stem}_{axis}" for axis in "xyz")


class Start(NamedTuple):
    """State in which an episode begins."""

    qpos: Array
    """(nq,)."""
    qvel: Array
    """(nv,)."""
    ctrl: Array
    """(nu,)."""


class NativeLiftEnv:
    """A batch of native lift environments stepped by one compiled kernel; see :class:`robolearn.core.protocols.Env`.

    An environment whose simulation diverges ends terminated without success and keeps its last finite observation. A task with
    another scene around the same arm and cube derives from it and says its name, scene, start and picture.
    """

    task = "native_lift"

    def __init__(self, options: EnvOptions, max_episode_steps: int) -> None:
        for camera in options.cameras:
            if camera not in CAMERAS:
                raise RefusedError(f"{self.task} has no camera {camera!r}. {nearest(camera, CAMERAS)}")
        self._options = options
        self.num_envs = b = options.num_envs
        self.spec = EnvSpec(
            task=self.task,
            fidelity="native",
            spaces=native_lift_spaces(options.cameras, options.image_size),
            max_episode_steps=options.max_episode_steps or max_episode_steps,
            cameras=CAMERAS,
        )
        self._scene = self._compiled()
        self._data = [mujoco.MjData(self._scene.model) for _ in range(b)]
        self._buffers = Buffers(
            pointers=np.stack([address_row(d) for d in self._data]),
            state=np.zeros((b, STATE_DIM), np.float32),
            joints=np.zeros((b, ARM_DOF), np.float32),
            environment=np.zeros((b, ENVIRONMENT_DIM), np.float32),
            success=np.zeros(b, np.bool_),
            diverged=np.zeros(b, np.bool_),
            ended=np.ones(b, np.bool_),
        )
        size = options.image_size
        self._images = {c: np.zeros((b, size, size, 3), np.uint8) for c in options.cameras}
        self._started = np.zeros(b, np.bool_)
        self._elapsed = np.zeros(b, np.int64)
        edges = np.linspace(0, b, min(options.num_threads, b) + 1).astype(np.int64)
        self._chunks = list(itertools.pairwise(edges))
        self._pool = ThreadPoolExecutor(len(self._chunks)) if len(self._chunks) > 1 else None

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> Observation:
        """Start episodes; see :meth:`robolearn.core.protocols.Env.reset`.

        Raises:
            RefusedError: not one non-negative integer seed per environment, or a mask of another shape; nothing has been reset.
        """
        seeds = np.asarray(seeds)
        if seeds.shape != (self.num_envs,) or seeds.dtype.kind not in "iu":
            raise RefusedError(f"reset got {seeds.dtype} seeds of shape {seeds.shape} for {self.num_envs} environments.")
        chosen = np.ones(self.num_envs, np.bool_) if mask is None else np.asarray(mask)
        if chosen.shape != (self.num_envs,) or chosen.dtype != np.bool_:
            raise RefusedError(f"reset mask must be bool of shape ({self.num_envs},), got {chosen.dtype} {chosen.shape}.")
        rows = np.flatnonzero(chosen)
        starts = [self._start(int(seeds[row])) for row in rows]
        for row, start in zip(rows, starts, strict=True):
            data = self._data[row]
            mujoco.mj_resetData(self._scene.model, data)
            data.qpos[:], data.qvel[:], data.ctrl[:] = start
        self._buffers.ended[rows] = False
        self._started[rows] = True
        self._elapsed[rows] = 0
        observe_rows(rows, self._buffers, self._scene.kernel)
        self._draw(rows)
        return self._observation()

    def _compiled(self) -> NativeScene:
        """Return the compiled scene."""
        return native_scene()

    def _renderer(self) -> CameraRenderer:
        """Return what draws the scene; its positions are those of the physics model."""
        from sim_envs.native_visual import native_renderer

        return native_renderer()

    def _start(self, seed: int) -> Start:
        """Return how an episode starts: home pose plus joint noise, cube somewhere on the table, nothing moves."""
        rng = generator(seed, "native_lift", "reset")
        qpos = self._scene.home_qpos.copy()
        qpos[:ARM_DOF] += JOINT_NOISE_RAD * rng.standard_normal(ARM_DOF)
        x, y = rng.uniform(-1.0, 1.0, 2) * CUBE_HALF_RANGE_M
        yaw = rng.uniform(-np.pi, np.pi)
        qpos[9:11] = x, y
        qpos[12:16] = np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)
        ctrl = self._scene.home_ctrl.copy()
        ctrl[:ARM_DOF] = qpos[:ARM_DOF]
        return Start(qpos, np.zeros(self._scene.model.nv), ctrl)

    def step(self, action: Array) -> Step:
        """Advance one control step; see :meth:`robolearn.core.protocols.Env.step`.

        Raises:
            RefusedError: wrong shape, a value that is not finite, or an environment that was never reset; nothing has moved.
        """
        action = np.ascontiguousarray(action, dtype=np.float64)
        if action.shape != (self.num_envs, ACTION_DIM):
            raise RefusedError(f"{self.task} needs actions of shape ({self.num_envs}, {ACTION_DIM}), got {action.shape}.")
        if not np.isfinite(action).all():
            row, column = np.argwhere(~np.isfinite(action))[0]
            raise RefusedError(f"{self.task}: action[{row}, {column}] is {action[row, column]}; actions must be finite.")
        if not self._started.all():
            raise RefusedError(f"{self.task}: environment {int(np.argmin(self._started))} steps before its first reset.")
        running = ~self._buffers.ended
        self._elapsed += running
        if self._pool is None:
            step_rows(0, self.num_envs, action, self._buffers, self._scene.kernel)
        else:
            list(self._pool.map(lambda c: step_rows(c[0], c[1], action, self._buffers, self._scene.kernel), self._chunks))
        success = self._buffers.success.copy()
        terminated = success | self._buffers.diverged
        truncated = (self._elapsed >= self.spec.max_episode_steps) & ~terminated
        self._buffers.ended[:] = terminated | truncated
        self._draw(np.flatnonzero(running & ~self._buffers.diverged))
        return Step(self._observation(), success.astype(np.float32), terminated, truncated, success)

    def _draw(self, rows: Array) -> None:
        """Renew the camera observations of ``rows``; those of ended environments stay, as all of their observation does."""
        size = self._options.image_size
        for camera, images in self._images.items():
            for row in rows:
                images[row] = self.render(int(row), camera, size, size)

    def _observation(self) -> Observation:
        return {
            STATE: self._buffers.state.copy(),
            JOINTS: self._buffers.joints.copy(),
            ENVIRONMENT_STATE: self._buffers.environment.copy(),
            **{IMAGES_PREFIX + camera: images.copy() for camera, images in self._images.items()},
        }

    def render(self, index: int, camera: str, height: int, width: int) -> Array:
        """Return a (height, width, 3) uint8 picture of environment ``index``.

        Raises:
            RefusedError: unknown camera or environment, or no OpenGL on this machine.
        """
        if camera not in CAMERAS:
            raise RefusedError(f"{self.task} has no camera {camera!r}. {nearest(camera, CAMERAS)}")
        if not 0 <= index < self.num_envs or not self._started[index]:
            raise RefusedError(
                f"{self.task}: environment {index} cannot be drawn; there are {self.num_envs}, each after a reset."
            )
        from sim_envs.render import View

        return self._renderer().render(self._data[index].qpos, View(camera, height, width, self._options.supersample))

    def close(self) -> None:
        """Stop the threads; the simulators are freed with the object."""
        if self._pool is not None:
            self._pool.shutdown()

    def qpos(self) -> Array:
        """Return a copy of the positions (b, 16) of arm, fingers and cube; for tests and for drawing, never for a policy."""
        return np.stack([d.qpos[:NQ].copy() for d in self._data])
