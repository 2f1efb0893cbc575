"""The machine that every scripted expert runs on: phases, servo law, style, pauses and deliberate noise, for a batch at once.

A *phase* is a function from what is seen to a :class:`Command`: a pose to servo to, and the phase to be in at the next step.
Phases are written as feedback laws of the present observation wherever possible, so that a policy that sees two observations can
tell from them what the demonstrator did next. Whatever cannot be seen (which side, how fast, how careful) is *style*: drawn once
per episode from the episode's seed and kept in a record per environment, so that no demonstration depends on its batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.rotations import matrix_from_rotation_6d
from robolearn.core.seeding import generator
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Array, Observation

OPEN, CLOSED = -1.0, 1.0
"""Gripper action that opens and that closes it."""
NOISE_SIGMA = 0.05
"""Standard deviation of the deliberate action noise in contact phases; three times that in free motion."""
MISJUDGEMENTS = 6
"""Attempts of an episode that are misjudged independently; later ones repeat the last."""

_JOINT_POSITION = "observation.joint_position"
_POSITION_SCALE_M, _ROTATION_SCALE_RAD = 0.05, 0.5  # what an action of 1 asks of robosuite's OSC_POSE controller
_ROTATION_GAIN, _ROTATION_SPEED = 1.5, 0.8
_NOISE_STEPS = 512
_BASE_MEMORY: tuple[tuple[object, ...], ...] = (
    ("gain", "f8"),
    ("speed", "f8"),
    ("pause_phase", "i8"),
    ("pause_steps", "i8"),
    ("patience", "i8"),
    ("attempt", "i8"),
    ("misjudge", "f8", (MISJUDGEMENTS, 2, 3)),
)


@dataclass(frozen=True)
class Scene:
    """What ``n`` environments that are in the same phase see and remember; two-armed robots have a second axis of arms."""

    eef_pos: Array
    """(n, 3) or (n, arms, 3) grip site [m], world frame."""
    eef_rot: Array
    """(n, 3, 3) or (n, arms, 3, 3); column 0 is the axis along which the fingers open, column 2 points out of the hand."""
    joint_position: Array
    """(n, 7 arms) [rad]."""
    object_pos: Array
    """(n, objects, 3) world positions [m] of the task's objects, in the order of ``observation.environment_state``."""
    object_rot: Array
    """(n, objects, 3, 3) world orientations."""
    scalars: Array
    """(n, scalars) numbers that follow the objects."""
    anchor: Array
    """Grip site at the moment this phase began; shaped as ``eef_pos``."""
    timer: Array
    """(n,) control steps since this phase began."""
    memory: np.ndarray
    """(n,) records: the style of each episode."""
    flaw: float
    """1 - quality, in [0, 1]."""

    def misjudge(self, which: int) -> Array:
        """Return (n, 3) normal misjudgement, standard deviation ``flaw``, of this attempt: 0 of picking, 1 of placing."""
        attempt = np.minimum(self.memory["attempt"], MISJUDGEMENTS - 1)
        return self.flaw * self.memory["misjudge"][np.arange(len(attempt)), attempt, which]

    def gives_up(self) -> Array:
        """(n,) bool: this demonstrator does not try again after a failed attempt."""
        return self.memory["attempt"] >= self.memory["patience"]


class Command(NamedTuple):
    """What a phase asks for in one control step."""

    position: Array
    """Where the grip site should go, world frame [m]; shaped as ``Scene.eef_pos``."""
    rotation: Array
    """How the hand should be turned; shaped as ``Scene.eef_rot``."""
    gripper: float
    next: Array
    """(n,) phase of the next control step; going back to phase 0 starts a new attempt."""
    contact: bool | Array = False
    """Whether, or (n,) where, precision matters: the deliberate noise is three times smaller."""
    speed: float | Array = 1.0
    """Fraction of the episode's own speed limit, or (n,) fractions."""


type Phase = Callable[[Scene], Command]


class ScriptedExpert(ABC):
    """Runs a task's phases for ``num_envs`` environments; satisfies :class:`robolearn.core.protocols.Expert`.

    Args:
        num_envs: batch size ``b``.
        quality: 1 is the best demonstrator; lower values misjudge, hurry, hesitate and give up more (see :meth:`draw_style`).

    Raises:
        RefusedError: ``num_envs`` below 1 or ``quality`` outside [0, 1].
    """

    arm_base_yaw: tuple[float, ...] = (0.0,)
    """Heading [rad] of each arm's base: the controller takes its deltas in the frame of the base."""
    objects: int = 1
    """Objects in ``observation.environment_state``."""
    scalars: int = 0
    """Numbers after the objects in ``observation.environment_state``."""
    style_fields: tuple[tuple[object, ...], ...] = ()
    """The task's own fields of the style record, as numpy dtype entries."""

    def __init__(self, num_envs: int, quality: float = 1.0) -> None:
        if num_envs < 1:
            raise RefusedError(f"{num_envs=} must be at least 1.")
        if not 0.0 <= quality <= 1.0:
            raise RefusedError(f"{quality=} must lie in [0, 1].")
        self.num_envs, self.quality = num_envs, quality
        arms = len(self.arm_base_yaw)
        self._phases: tuple[Phase, ...] = self.phases()
        self._phase = np.full(num_envs, -1)
        self._timer = np.zeros(num_envs, dtype=np.int64)
        self._step = np.zeros(num_envs, dtype=np.int64)
        self._anchor = np.zeros((num_envs, arms, 3))
        self._memory = np.zeros(num_envs, dtype=[*_BASE_MEMORY, *self.style_fields])
        self._noise = np.zeros((num_envs, _NOISE_STEPS, arms, 6))
        self._base_from_world = np.stack([_rotation_z(-yaw) for yaw in self.arm_base_yaw])

    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Return the task's phases; an episode starts in the first."""

    def draw_style(self, rng: np.random.Generator) -> Mapping[str, object]:
        """Return the task's own style of one episode: field of ``style_fields`` -> value."""
        return {}

    def begin(self, scene: Scene) -> Mapping[str, Array]:
        """Return the fields of the style record that are decided by looking at the initial state."""
        return {}

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> None:
        """Draw a new style from each seed, for the masked environments (all by default).

        Raises:
            RefusedError: not one seed, and one mask value, per environment.
        """
        if len(seeds) != self.num_envs or (mask is not None and np.shape(mask) != (self.num_envs,)):
            raise RefusedError(
                f"One seed and one mask value for each of {self.num_envs} environments are needed, got {len(seeds)} seeds."
            )
        for row in range(self.num_envs) if mask is None else np.flatnonzero(mask):
            rng = generator(int(seeds[row]), "expert", type(self).__name__)
            self._phase[row], self._timer[row], self._step[row] = -1, 0, 0
            for name, value in {**self._draw_temper(rng), **self.draw_style(rng)}.items():
                self._memory[name][row] = value
            self._noise[row] = rng.standard_normal(self._noise.shape[1:])

    def act(self, observation: Observation) -> tuple[Array, Array]:
        """Return (executed, intended) actions, each (b, a) float32 in [-1, 1]: with and without the deliberate noise.

        Raises:
            RefusedError: an observation is missing or has another shape than this task's, or an environment was never reset.
        """
        whole = self._look(observation)
        self._begin_episodes(whole)
        entering = self._timer == 0
        self._anchor[entering] = whole.eef_pos[entering].reshape(-1, *self._anchor.shape[1:])
        arms = len(self.arm_base_yaw)
        intended = np.zeros((self.num_envs, arms, 7))
        noise = NOISE_SIGMA * self._noise[np.arange(self.num_envs), self._step % _NOISE_STEPS]
        noise[..., 3:] *= 0.5
        phase_now = self._phase.copy()
        for number in np.unique(phase_now):
            rows = np.flatnonzero(phase_now == number)
            scene = self._rows(whole, rows)
            command = self._phases[number](scene)
            delta = self._servo(scene, command)
            pausing = (scene.memory["pause_phase"] == number) & (scene.timer < scene.memory["pause_steps"])
            delta[pausing] = 0.0
            intended[rows, :, :6] = delta
            intended[rows, :, 6] = command.gripper
            noise[rows] *= np.where(np.broadcast_to(command.contact, rows.shape), 1.0, 3.0)[:, None, None]
            self._move_on(rows, np.where(pausing, number, command.next))
        executed = intended.copy()
        executed[..., :6] = np.clip(executed[..., :6] + noise, -1.0, 1.0)
        shape = (self.num_envs, 7 * arms)
        return executed.reshape(shape).astype(np.float32), intended.reshape(shape).astype(np.float32)

    def _draw_temper(self, rng: np.random.Generator) -> dict[str, object]:
        """Draw what every task has: gain, speed, one pause, patience and misjudgements.

        A perfect demonstrator pauses in a quarter of the episodes for up to 5 steps and always tries again; at quality 0 it
        hesitates in nearly all, for up to 25 steps, and gives up after the first failure. The count of further attempts is
        geometric: each failure is followed by another attempt with probability ``quality``.
        """
        flaw = 1.0 - self.quality
        pauses = rng.random() < 0.25 + 0.6 * flaw
        return {
            "gain": 2.0 * rng.uniform(0.8, 1.1),
            "speed": rng.uniform(0.7, 1.0),
            "pause_phase": rng.integers(len(self._phases)) if pauses else -1,
            "pause_steps": rng.integers(2, 6 + round(20 * flaw)),
            "patience": MISJUDGEMENTS if flaw == 0.0 else rng.geometric(flaw) - 1,
            "attempt": 0,
            "misjudge": rng.standard_normal((MISJUDGEMENTS, 2, 3)),
        }

    def _look(self, observation: Observation) -> Scene:
        arms = len(self.arm_base_yaw)
        widths = {STATE: 11 * arms, _JOINT_POSITION: 7 * arms, ENVIRONMENT_STATE: 12 * self.objects + self.scalars}
        for key, width in widths.items():
            shape = np.shape(observation[key]) if key in observation else "nothing"
            if shape != (self.num_envs, width):
                raise RefusedError(f"{type(self).__name__} needs {key!r} of shape {(self.num_envs, width)}, got {shape}.")
        state = np.asarray(observation[STATE], dtype=np.float64).reshape(self.num_envs, arms, 11)
        environment = np.asarray(observation[ENVIRONMENT_STATE], dtype=np.float64)
        objects = environment[:, : 12 * self.objects].reshape(self.num_envs, self.objects, 12)
        rotations = matrix_from_rotation_6d(np.concatenate([state[..., 3:9], objects[..., 3:9]], axis=1))
        single = (slice(None), 0) if arms == 1 else ()
        return Scene(
            eef_pos=state[..., :3][single],
            eef_rot=rotations[:, :arms][single],
            joint_position=np.asarray(observation[_JOINT_POSITION], dtype=np.float64),
            object_pos=objects[..., :3],
            object_rot=rotations[:, arms:],
            scalars=environment[:, 12 * self.objects :],
            anchor=self._anchor[single],
            timer=self._timer,
            memory=self._memory,
            flaw=1.0 - self.quality,
        )

    @staticmethod
    def _rows(whole: Scene, rows: Array) -> Scene:
        return Scene(
            eef_pos=whole.eef_pos[rows],
            eef_rot=whole.eef_rot[rows],
            joint_position=whole.joint_position[rows],
            object_pos=whole.object_pos[rows],
            object_rot=whole.object_rot[rows],
            scalars=whole.scalars[rows],
            anchor=whole.anchor[rows],
            timer=whole.timer[rows],
            memory=whole.memory[rows],
            flaw=whole.flaw,
        )

    def _begin_episodes(self, whole: Scene) -> None:
        fresh = np.flatnonzero(self._phase < 0)
        if not fresh.size:
            return
        if (self._memory["gain"][fresh] == 0.0).any():
            raise RefusedError(f"{type(self).__name__}.act before reset of environments {fresh.tolist()}.")
        for name, value in self.begin(self._rows(whole, fresh)).items():
            self._memory[name][fresh] = value
        self._phase[fresh] = 0

    def _servo(self, scene: Scene, command: Command) -> Array:
        """Return (n, arms, 6) pose deltas: a saturated proportional law towards the commanded pose, in each arm's base frame."""
        count, arms = len(scene.timer), len(self.arm_base_yaw)
        gain = scene.memory["gain"][:, None, None]
        limit = (scene.memory["speed"] * command.speed)[:, None, None]
        offset = (command.position - scene.eef_pos).reshape(count, arms, 3)
        turn = rotation_vector(command.rotation @ np.swapaxes(scene.eef_rot, -1, -2)).reshape(count, arms, 3)
        linear = np.einsum("aij,naj->nai", self._base_from_world, gain * offset / _POSITION_SCALE_M)
        angular = np.einsum("aij,naj->nai", self._base_from_world, _ROTATION_GAIN * turn / _ROTATION_SCALE_RAD)
        return np.concatenate([np.clip(linear, -limit, limit), np.clip(angular, -_ROTATION_SPEED, _ROTATION_SPEED)], axis=-1)

    def _move_on(self, rows: Array, following: Array) -> None:
        changed = rows[following != self._phase[rows]]
        self._memory["attempt"][rows[(following == 0) & (self._phase[rows] > 0)]] += 1
        self._phase[rows] = following
        self._step[rows] += 1
        self._timer[rows] += 1
        self._timer[changed] = 0


def top_down(yaw: Array) -> Array:
    """Return (..., 3, 3) hand orientations that point straight down, fingers opening along the heading ``yaw`` [rad]."""
    cos, sin, zero = np.cos(yaw), np.sin(yaw), np.zeros_like(yaw)
    rows = [[cos, sin, zero], [sin, -cos, zero], [zero, zero, zero - 1.0]]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def rotation_vector(matrix: Array) -> Array:
    """Return the (..., 3) axis times angle [rad] of rotation matrices (..., 3, 3) that turn by less than half a turn."""
    twice_sin_axis = np.stack(
        [
            matrix[..., 2, 1] - matrix[..., 1, 2],
            matrix[..., 0, 2] - matrix[..., 2, 0],
            matrix[..., 1, 0] - matrix[..., 0, 1],
        ],
        axis=-1,
    )
    twice_sin = np.linalg.norm(twice_sin_axis, axis=-1, keepdims=True)
    twice_cos = np.trace(matrix, axis1=-2, axis2=-1)[..., None] - 1.0
    return twice_sin_axis * np.where(twice_sin > 1e-9, np.arctan2(twice_sin, twice_cos) / np.maximum(twice_sin, 1e-9), 0.5)


def _rotation_z(yaw: float) -> Array:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
