"""Our batched environments as ``gymnasium.Env`` and ``gymnasium.vector.VectorEnv`` (Gymnasium 1.x).

Episodes: ``reset(seed=s)`` starts the episode that seed ``s`` names everywhere in robolearn; a reset without a seed draws the
next episode's seed from the generator that the last seed started. Row i of a vector environment seeded with ``s`` behaves exactly
as a single environment seeded with ``s + i``. ``info["success"]`` says whether the task is solved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array, Observation, Spaces
from sim_envs.task import EnvOptions, make_env

_RENDER_SIZE = 256
_SEED_END = 2**31
"""Seeds of later episodes are drawn below this."""


def observation_space(described: Spaces) -> spaces.Space[Any]:
    """Return one environment's observation space: a Box for every key."""
    boxes: dict[str, spaces.Space[Any]] = {}
    for key, feature in described.observation.items():
        low, high = (0, 255) if feature.dtype == "uint8" else (-np.inf, np.inf)
        boxes[key] = spaces.Box(low, high, feature.shape, np.dtype(feature.dtype).type)
    return spaces.Dict(boxes)


def action_space(described: Spaces) -> spaces.Box:
    """Return one environment's action space."""
    return spaces.Box(np.array(described.action_low, np.float32), np.array(described.action_high, np.float32), dtype=np.float32)


def _checked_render(mode: str | None, camera: str | None, offered: Sequence[str]) -> str:
    """Return the camera to draw from; the first that the task offers by default."""
    if mode not in (None, "rgb_array"):
        raise RefusedError(f"render_mode {mode!r} is not offered. Allowed: 'rgb_array', or None.")
    if camera is not None and camera not in offered:
        raise RefusedError(f"No camera {camera!r} to render from. {nearest(camera, offered)}")
    if mode is not None and not offered:
        raise RefusedError(f"render_mode {mode!r}: this task has no camera to render from.")
    return camera or next(iter(offered), "")


class TaskEnv(gymnasium.Env[dict[str, Array], Array]):
    """One environment of a task; made by ``gymnasium.make("robolearn/Lift-v0", cameras=("agentview",))``.

    Args:
        task: name of a task file.
        fidelity: one that the task offers; None takes its default.
        cameras: cameras whose pictures are part of the observation, as ``observation.images.<camera>``.
        image_size: height and width of those pictures in pixels.
        render_mode: None or ``rgb_array``.
        render_camera: camera of :meth:`render`; None takes the task's first.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 - Gymnasium's own form

    def __init__(
        self,
        task: str,
        fidelity: str | None = None,
        *,
        cameras: Sequence[str] = (),
        image_size: int = 84,
        render_mode: str | None = None,
        render_camera: str | None = None,
    ) -> None:
        self._batch = make_env(task, EnvOptions(fidelity=fidelity, cameras=tuple(cameras), image_size=image_size))
        self._render_camera = _checked_render(render_mode, render_camera, self._batch.spec.cameras)
        self.render_mode = render_mode
        described = self._batch.spec.spaces
        self.observation_space = observation_space(described)
        self.action_space = action_space(described)
        self.metadata = {**TaskEnv.metadata, "render_fps": round(described.control_rate_hz)}

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start an episode; see the module for what ``seed`` means.

        Raises:
            RefusedError: a negative seed, or options, of which there are none.
        """
        super().reset(seed=seed)
        if options:
            raise RefusedError(f"These environments have no reset options, got {sorted(options)}.")
        episode = int(self.np_random.integers(_SEED_END)) if seed is None else seed
        return _row(self._batch.reset([episode]), 0), {"success": False}

    def step(self, action: Array) -> tuple[dict[str, Array], float, bool, bool, dict[str, Any]]:
        """Advance one control step of 1 / 20 s.

        Raises:
            RefusedError: an action of the wrong shape or not finite, or no reset before the first step.
        """
        step = self._batch.step(np.asarray(action)[None])
        return (
            _row(step.observation, 0),
            float(step.reward[0]),
            bool(step.terminated[0]),
            bool(step.truncated[0]),
            {"success": bool(step.success[0])},
        )

    def render(self) -> Array | None:  # type: ignore[override]
        """Return a (256, 256, 3) uint8 picture, or None without a render mode."""
        if self.render_mode is None:
            return None
        return self._batch.render(0, self._render_camera, _RENDER_SIZE, _RENDER_SIZE)

    def close(self) -> None:
        """Free the simulator."""
        self._batch.close()


class TaskVectorEnv(gymnasium.vector.VectorEnv[dict[str, Array], Array, Array]):
    """A batch of environments of a task that step together in compiled code, without a process or a Python loop per environment.

    Made by ``gymnasium.make_vec("robolearn/Lift-v0", num_envs=64, num_threads=2)``.

    Args:
        task, fidelity, cameras, image_size, render_mode, render_camera: as for :class:`TaskEnv`.
        num_envs: environments that step together.
        num_threads: threads that step them.
        autoreset_mode: what follows the end of an episode, as Gymnasium defines: ``NEXT_STEP`` (the next step ignores the action
            and returns the new episode's first observation), ``SAME_STEP`` (the same step does; the last observation and info are
            in ``infos["final_obs"]`` and ``infos["final_info"]``) or ``DISABLED`` (reset with ``options={"reset_mask": mask}``).
    """

    def __init__(
        self,
        task: str,
        fidelity: str | None = None,
        *,
        num_envs: int = 1,
        num_threads: int = 1,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        cameras: Sequence[str] = (),
        image_size: int = 84,
        render_mode: str | None = None,
        render_camera: str | None = None,
    ) -> None:
        try:
            self._autoreset = AutoresetMode(autoreset_mode)
        except ValueError:
            allowed = [mode.value for mode in AutoresetMode]
            raise RefusedError(f"Unknown autoreset_mode {autoreset_mode!r}. {nearest(str(autoreset_mode), allowed)}") from None
        options = EnvOptions(num_envs, fidelity, tuple(cameras), image_size, num_threads)
        self._batch = make_env(task, options)
        self._render_camera = _checked_render(render_mode, render_camera, self._batch.spec.cameras)
        described = self._batch.spec.spaces
        self.metadata = {
            "render_modes": ["rgb_array"],
            "render_fps": round(described.control_rate_hz),
            "autoreset_mode": self._autoreset,
        }
        self.num_envs = num_envs
        self.render_mode = render_mode
        self.single_observation_space = observation_space(described)
        self.single_action_space = action_space(described)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._ended = np.zeros(num_envs, np.bool_)
        self._generators = [seeding.np_random()[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, Any]]:
        """Start episodes in all environments, or in those of ``options["reset_mask"]`` (num_envs,) bool.

        Raises:
            RefusedError: seeds of another number, a mask of another form, or other options.
        """
        options = dict(options or {})
        mask = np.asarray(options.pop("reset_mask", np.ones(self.num_envs, np.bool_)))
        if options:
            raise RefusedError(f"The only reset option is 'reset_mask', got {sorted(options)}.")
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise RefusedError(f"reset_mask must be bool of shape ({self.num_envs},) with a True in it, got {mask!r}.")
        if seed is None or isinstance(seed, int | np.integer):
            seed = [None if seed is None else int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise RefusedError(f"reset got {len(seed)} seeds for {self.num_envs} environments.")
        for row, value in enumerate(seed):
            if mask[row] and value is not None:
                self._generators[row] = seeding.np_random(value)[0]
        observation = self._start(mask, seed)
        return observation, {"success": np.zeros(self.num_envs, np.bool_), "_success": mask.copy()}

    def _start(self, mask: Array, seeds: Sequence[int | None]) -> Observation:
        episodes = np.zeros(self.num_envs, np.int64)
        for row in np.flatnonzero(mask):
            given = seeds[row]
            episodes[row] = self._generators[row].integers(_SEED_END) if given is None else given
        observation = self._batch.reset(episodes, mask)
        self._ended[mask] = False
        return observation

    def step(self, actions: Array) -> tuple[dict[str, Array], Array, Array, Array, dict[str, Any]]:
        """Advance every environment by one control step, with resets as ``autoreset_mode`` says.

        Raises:
            RefusedError: actions of the wrong shape or not finite; or, with autoreset disabled, an episode that has ended.
        """
        before = self._ended.copy()
        if self._autoreset is AutoresetMode.DISABLED and before.any():
            raise RefusedError(f"Environments {np.flatnonzero(before).tolist()} have ended; reset them by 'reset_mask' first.")
        step = self._batch.step(np.asarray(actions))
        observation, success = step.observation, step.success.copy()
        reward, terminated, truncated = step.reward.astype(np.float64), step.terminated.copy(), step.truncated.copy()
        infos: dict[str, Any] = {}
        fresh = [None] * self.num_envs
        if before.any():
            # NEXT_STEP: these rows ignored their action, because their episodes had ended.
            observation = self._start(before, fresh)
            reward[before], terminated[before], truncated[before], success[before] = 0.0, False, False, False
        ended = terminated | truncated
        self._ended = ended.copy()
        if self._autoreset is AutoresetMode.SAME_STEP and ended.any():
            infos = self._final(step.observation, success, ended)
            observation = self._start(ended, fresh)
            success = success & ~ended
        infos |= {"success": success, "_success": np.ones(self.num_envs, np.bool_)}
        return observation, reward, terminated, truncated, infos

    def _final(self, observation: Observation, success: Array, ended: Array) -> dict[str, Any]:
        """Return the last observation and info of ``ended`` rows in Gymnasium's layout: an entry, and which rows have it."""
        final = np.full(self.num_envs, None, dtype=object)
        for row in np.flatnonzero(ended):
            final[row] = _row(observation, int(row))
        info = {"success": success & ended, "_success": ended.copy()}
        return {"final_obs": final, "_final_obs": ended.copy(), "final_info": info, "_final_info": ended.copy()}

    def render(self) -> tuple[Array, ...] | None:  # type: ignore[override]
        """Return one (256, 256, 3) uint8 picture per environment, or None without a render mode."""
        if self.render_mode is None:
            return None
        return tuple(self._batch.render(i, self._render_camera, _RENDER_SIZE, _RENDER_SIZE) for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Free the simulators."""
        self._batch.close()


def _row(observation: Observation, row: int) -> Observation:
    return {key: value[row] for key, value in observation.items()}
