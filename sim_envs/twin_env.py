"""Tasks of robots that are commanded at their joints: a batch of twins, each in its scene.

The action is what the robot's driver takes, absolute joint positions [rad] in the order of :class:`RobotSpec`, at 20 Hz; the
twin's own servo follows them. Everything observed is what a driver and a tracker of poses publish: the measured joints under
their names, and the pose of each frame (hands, targets, objects) in the robot's base frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.core.rotations import rotation_6d_from_matrix
from robolearn.core.seeding import generator
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Array, EnvSpec, FeatureSpec, Observation, Spaces, Step
from sim_envs.task import EnvOptions
from sim_envs.twin import RobotTwin, Scene

CONTROL_RATE_HZ = 20.0
JOINT_NOISE_RAD = 0.02
"""Standard deviation of the start pose."""
FIDELITY = "native"

type Pose = tuple[Array, Array]
"""Position (3,) [m] and rotation matrix (3, 3), in the robot's base frame."""


@dataclass(frozen=True)
class TwinTask:
    """What one task adds to the twin."""

    name: str
    """Equal to its file in ``sim_envs/tasks``."""
    robot: str
    """File in ``hardware/``."""
    max_episode_steps: int
    """Control steps."""
    hold_steps: int
    """Control steps for which ``reached`` must be true without a break."""
    bodies: Mapping[str, str]
    """Observed frame -> body of the scene's model."""
    goals: tuple[str, ...]
    """Observed frames that ``begin`` returns and nothing moves."""
    make_scene: Callable[[RobotSpec], Scene]
    """Builds the model."""
    begin: Callable[[np.random.Generator, RobotTwin], Mapping[str, Pose]]
    """Places the objects of a new episode and returns the poses of the goals."""
    reached: Callable[[Mapping[str, Pose]], bool]
    """Whether the frames are where they shall be."""

    @property
    def frames(self) -> tuple[str, ...]:
        """Observed frames, in order."""
        return (*self.bodies, *self.goals)


def twin_spaces(task: TwinTask) -> Spaces:
    """Return what is observed and commanded."""
    spec = load_robot(task.robot)
    frames = [f"{f}_{e}" for f in task.frames for e in ("pos_x", "pos_y", "pos_z", *(f"rot6d_{i}" for i in range(6)))]
    return Spaces(
        robot=spec.name,
        observation={
            STATE: FeatureSpec((spec.dim,), names=spec.joints),
            ENVIRONMENT_STATE: FeatureSpec((len(frames),), names=tuple(frames)),
        },
        action=FeatureSpec((spec.dim,), names=spec.joints),
        action_low=spec.position_low,
        action_high=spec.position_high,
        control_rate_hz=CONTROL_RATE_HZ,
    )


class _Robot:
    """One environment of the batch."""

    def __init__(self, task: TwinTask, spec: RobotSpec, scene: Scene) -> None:
        self._task, self._spec = task, spec
        self._twin = RobotTwin(spec, scene=scene)
        self._bodies = {name: scene.model.body(body).id for name, body in task.bodies.items()}
        self.started, self.ended = False, True
        self.steps = self._held = 0
        self.success = False

    def reset(self, seed: int) -> None:
        rng = generator(seed, self._task.name, "reset")
        low, high = np.array(self._spec.position_low), np.array(self._spec.position_high)
        start = np.array(self._spec.home) + JOINT_NOISE_RAD * rng.standard_normal(self._spec.dim)
        self._twin.reset(np.clip(start, low + 0.02, high - 0.02))
        self._goals = dict(self._task.begin(rng, self._twin))
        self.started, self.ended, self.success = True, False, False
        self.steps = self._held = 0

    def step(self, action: Array) -> None:
        self.steps += 1
        self._twin.send_position(action, now_s=self._twin.now_s)
        self._twin.advance(self._twin.now_s + 1 / CONTROL_RATE_HZ)
        self._held = self._held + 1 if self._task.reached(self.poses()) else 0
        self.success = self._held >= self._task.hold_steps
        self.ended = self.success or self.steps >= self._task.max_episode_steps

    def poses(self) -> dict[str, Pose]:
        data = self._twin.data
        return {n: (data.xpos[i].copy(), data.xmat[i].reshape(3, 3).copy()) for n, i in self._bodies.items()} | self._goals

    def observation(self) -> tuple[Array, Array]:
        poses = self.poses()
        frames = [np.concatenate([poses[n][0], rotation_6d_from_matrix(poses[n][1])]) for n in self._task.frames]
        return self._twin.position, np.concatenate(frames)


class TwinEnv:
    """A batch of twins; see :class:`robolearn.core.protocols.Env`. Python steps them one after the other, in one thread."""

    def __init__(self, task: TwinTask, options: EnvOptions) -> None:
        if options.cameras:
            raise RefusedError(f"{task.name} has no cameras, but {list(options.cameras)} were asked for.")
        task = replace(task, max_episode_steps=options.max_episode_steps or task.max_episode_steps)
        self.num_envs = options.num_envs
        spec = load_robot(task.robot)
        spaces = twin_spaces(task)
        self.spec = EnvSpec(task.name, FIDELITY, spaces, task.max_episode_steps, cameras=())
        scene = task.make_scene(spec)
        self._low, self._high = np.array(spaces.action_low), np.array(spaces.action_high)
        self._robots = [_Robot(task, spec, scene) for _ in range(options.num_envs)]

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
        for row in np.flatnonzero(chosen):
            self._robots[row].reset(int(seeds[row]))
        return self._observation()

    def step(self, action: Array) -> Step:
        """Advance one control step; see :meth:`robolearn.core.protocols.Env.step`. Positions are clipped to the joints' limits.

        Raises:
            RefusedError: wrong shape, a value that is not finite, or an environment that was never reset; nothing has moved.
        """
        action = np.asarray(action, float)
        if action.shape != (self.num_envs, len(self._low)):
            raise RefusedError(
                f"{self.spec.task} needs actions of shape ({self.num_envs}, {len(self._low)}), got {action.shape}."
            )
        if not np.isfinite(action).all():
            row, column = np.argwhere(~np.isfinite(action))[0]
            raise RefusedError(f"{self.spec.task}: action[{row}, {column}] is {action[row, column]}; actions must be finite.")
        unstarted = [i for i, robot in enumerate(self._robots) if not robot.started]
        if unstarted:
            raise RefusedError(f"{self.spec.task}: environment {unstarted[0]} steps before its first reset.")
        for robot, target in zip(self._robots, np.clip(action, self._low, self._high), strict=True):
            if not robot.ended:
                robot.step(target)
        success = np.array([robot.success for robot in self._robots])
        truncated = np.array([robot.ended for robot in self._robots]) & ~success
        return Step(self._observation(), success.astype(np.float32), success.copy(), truncated, success)

    def _observation(self) -> Observation:
        rows = [robot.observation() if robot.started else self._nothing() for robot in self._robots]
        return {
            STATE: np.stack([r[0] for r in rows]).astype(np.float32),
            ENVIRONMENT_STATE: np.stack([r[1] for r in rows]).astype(np.float32),
        }

    def _nothing(self) -> tuple[Array, Array]:
        return tuple(np.zeros(f.shape) for f in self.spec.spaces.observation.values())  # type: ignore[return-value]

    def render(self, index: int, camera: str, height: int, width: int) -> Array:
        """Refuse: these tasks have no cameras.

        Raises:
            RefusedError: always.
        """
        raise RefusedError(f"{self.spec.task} has no camera {camera!r}.")

    def close(self) -> None:
        """Nothing to free: simulators go with the object."""
