"""Batched robosuite environments: episodes, observations and pictures around :mod:`sim_envs.robosuite_slots`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import ENVIRONMENT_STATE, IMAGES_PREFIX, STATE, Array, EnvSpec, Observation, Step
from sim_envs.robosuite_model import MAX_SEED, visual_xml
from sim_envs.robosuite_slots import EXACT_TIMESTEP_S, TURBO_TIMESTEP_S, FastSlots, ReferenceSlots, Simulators
from sim_envs.robosuite_task import FIDELITIES, JOINT_POSITION, RobosuiteTask
from sim_envs.task import EnvOptions


class RobosuiteEnv:
    """A batch of one robosuite task (:class:`robolearn.core.protocols.Env`).

    Fidelity ``reference`` steps robosuite itself, in one thread; ``exact`` makes the same states by the compiled kernel on a
    model without visual meshes; ``turbo`` is ``exact`` with 5 ms physics, which is another dynamics. Actions beyond [-1, 1] are
    clipped as robosuite clips them. An environment whose simulation diverges is reported as terminated without success and keeps
    its last finite observation.
    """

    def __init__(self, task: RobosuiteTask, options: EnvOptions) -> None:
        unknown = [c for c in options.cameras if c not in task.cameras]
        if unknown:
            raise RefusedError(f"Task {task.name!r} has no camera {unknown[0]!r}. {nearest(unknown[0], task.cameras)}")
        self.num_envs = options.num_envs
        self._task, self._options = task, options
        fidelity = options.fidelity or FIDELITIES[0]
        spaces = task.spaces(options.cameras, options.image_size)
        steps = options.max_episode_steps or task.max_episode_steps
        self.spec = EnvSpec(task.name, fidelity, spaces, steps, task.cameras)
        self._simulators = _simulators(task, fidelity, options)
        n = self.num_envs
        self._steps = np.zeros(n, dtype=np.int64)
        self._started, self._success = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self._terminated, self._truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        self._images = {
            IMAGES_PREFIX + c: np.zeros((n, options.image_size, options.image_size, 3), dtype=np.uint8) for c in options.cameras
        }

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> Observation:
        """See :class:`robolearn.core.protocols.Env`."""
        chosen = self._chosen(mask)
        seeds = self._checked_seeds(seeds, chosen)
        for index in np.flatnonzero(chosen):
            self._simulators.reset(int(index), int(seeds[index]))
        for array in (self._success, self._terminated, self._truncated):
            array[chosen] = False
        self._steps[chosen] = 0
        self._started[chosen] = True
        self._draw(np.flatnonzero(chosen))
        return self._observation()

    def step(self, action: Array) -> Step:
        """See :class:`robolearn.core.protocols.Env`."""
        action = self._checked_action(action)
        running = np.flatnonzero(~(self._terminated | self._truncated))
        if running.size:
            self._simulators.step(running, action[running])
            diverged = self._simulators.slots.diverged[running]
            self._steps[running] += 1
            self._success[running] = self._simulators.success(running) & ~diverged
            self._terminated[running] = self._success[running] | diverged
            self._truncated[running] = (self._steps[running] >= self.spec.max_episode_steps) & ~self._terminated[running]
            self._draw(running)
        return Step(
            observation=self._observation(),
            reward=self._success.astype(np.float32),
            terminated=self._terminated.copy(),
            truncated=self._truncated.copy(),
            success=self._success.copy(),
        )

    def render(self, index: int, camera: str, height: int, width: int) -> Array:
        """See :class:`robolearn.core.protocols.Env`.

        Raises:
            RefusedError: no such environment or camera, or nothing was reset yet.
        """
        if not 0 <= index < self.num_envs or not self._started[index]:
            raise RefusedError(f"Environment {index} cannot be drawn: there are {self.num_envs}, and it must have been reset.")
        if camera not in self._task.cameras:
            raise RefusedError(f"Task {self._task.name!r} has no camera {camera!r}. {nearest(camera, self._task.cameras)}")
        from sim_envs.render import View, shared_renderer

        renderer = shared_renderer(f"robosuite/{self._task.name}", self._visual_model)
        qpos, model = self._simulators.datas[index].qpos, self._simulators.models[index]
        moved = {"body_pos": model.body_pos, "body_quat": model.body_quat} if self._task.reset_moves_bodies else {}
        return renderer.render(qpos, View(camera, height, width, self._options.supersample), **moved)

    def _visual_model(self) -> Any:
        import mujoco

        from sim_envs.light_model import light_model

        return light_model(mujoco.MjModel.from_xml_string(visual_xml(self._task)))

    def close(self) -> None:
        """See :class:`robolearn.core.protocols.Env`."""
        self._simulators.close()

    def _observation(self) -> Observation:
        slots = self._simulators.slots
        observation = {
            STATE: slots.state.copy(),
            JOINT_POSITION: slots.joint_position.copy(),
            ENVIRONMENT_STATE: slots.environment_state.copy(),
        }
        observation.update({key: images.copy() for key, images in self._images.items()})
        return observation

    def _draw(self, indices: Array) -> None:
        size = self._options.image_size
        for camera in self._options.cameras:
            for index in indices:
                if not self._simulators.slots.diverged[index]:
                    self._images[IMAGES_PREFIX + camera][index] = self.render(int(index), camera, size, size)

    def _chosen(self, mask: Array | None) -> Array:
        if mask is None:
            return np.ones(self.num_envs, dtype=bool)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != bool:
            raise RefusedError(f"A reset mask is bool of shape ({self.num_envs},), got {mask.dtype} of shape {mask.shape}.")
        return mask

    def _checked_seeds(self, seeds: Sequence[int] | Array, chosen: Array) -> Array:
        array = np.asarray(seeds)
        if array.shape != (self.num_envs,) or array.dtype.kind not in "iu":
            raise RefusedError(f"Seeds are {self.num_envs} integers, one per environment, got {array.dtype} of {array.shape}.")
        bad = array[chosen][(array[chosen] < 0) | (array[chosen] > MAX_SEED)]
        if bad.size:
            raise RefusedError(f"Seed {bad[0]} must lie in [0, {MAX_SEED}]; no environment was reset.")
        return array

    def _checked_action(self, action: Array) -> Array:
        action = np.asarray(action, dtype=np.float64)
        wanted = (self.num_envs, self.spec.spaces.action_dim)
        if action.shape != wanted:
            raise RefusedError(f"Action of task {self._task.name!r} has shape {wanted}, got {action.shape}; nothing has moved.")
        if not np.isfinite(action).all():
            row = int(np.flatnonzero(~np.isfinite(action).all(axis=1))[0])
            raise RefusedError(f"Action of environment {row} is not finite: {action[row].tolist()}; nothing has moved.")
        if not self._started.all():
            raise RefusedError(f"Environment {int(np.flatnonzero(~self._started)[0])} must be reset before it can be stepped.")
        return action


def _simulators(task: RobosuiteTask, fidelity: str, options: EnvOptions) -> Simulators:
    if fidelity == "reference":
        return ReferenceSlots(task, options.num_envs)
    timestep_s = TURBO_TIMESTEP_S if fidelity == "turbo" else EXACT_TIMESTEP_S
    return FastSlots(task, options.num_envs, num_threads=options.num_threads, timestep_s=timestep_s)
