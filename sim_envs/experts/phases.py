"""The machine that every scripted expert runs on: phases, servo law, style, pauses and deliberate noise, for a batch at once.

A *phase* is a function from a :class:`~sim_envs.experts.scene.Scene` to a :class:`~sim_envs.experts.scene.Command`: a pose to
servo to, and the phase to be in at the next step. Phases are written as feedback laws of the present observation wherever
possible, so that a policy that sees two observations can tell from them what the demonstrator did next. Whatever cannot be seen
(which side, how fast, how careful) is *style*: drawn once per episode from the episode's seed and kept in a record per
environment, so that no demonstration depends on its batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.rotations import matrix_from_rotation_6d
from robolearn.core.seeding import generator
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Array, Observation
from sim_envs.experts.hand import rotation_vector
from sim_envs.experts.scene import MISJUDGEMENTS, Command, Phase, Scene

NOISE_SIGMA = 0.05
"""Standard deviation of the deliberate action noise in contact phases; three times that in free motion."""

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


class ScriptedExpert(ABC):
    """Runs a task's phases for ``num_envs`` environments; satisfies :class:`robolearn.core.protocols.Expert`.

    Args:
        num_envs: batch size ``b``.
        quality: 1 is the best demonstrator; lower values misjudge, hurry, hesitate and give up more (see :meth:`_draw_temper`).

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

        A perfect demonstrator pauses in a quarter of the episodes for up to 5 steps, and tries again six times, for which no
        episode has room. At quality 0 it hesitates in nearly all, for up to 25 steps, and gives up after the first failure; in
        between, each failure is followed by another attempt with probability ``quality``.
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


def _rotation_z(yaw: float) -> Array:
    cos, sin = np.cos(yaw), np.sin(yaw)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
