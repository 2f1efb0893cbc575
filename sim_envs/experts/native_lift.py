"""A scripted operator for the native lift task with the spread of a person: side, yaw, speed, pauses, corrections, noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.rotations import matrix_from_rotation_6d, wrap_angle
from robolearn.core.seeding import generator
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Array, Observation

SIDE, ABOVE, DOWN, CLOSE, LIFT = range(5)
"""Phases: come from one side, get over the cube, go down, close the fingers, raise."""
GRASP_WELL, GRASP_HIGH, GRASP_BESIDE, LET_GO = range(4)
"""What a careless attempt does wrong: closes above the cube, beside it, or opens again while raising."""
_METRES_PER_ACTION = 0.05
_RADIANS_PER_ACTION = 0.5
_MAX_ROTATION = 0.8
_NOISE = 0.1
"""Standard deviation of the deliberate noise on an action element in free motion; a third of it near the cube."""
_NOISE_MEMORY = 0.7
"""Share of the noise that stays from step to step: a hand wanders, and shows how it comes back."""
_RISE_M = 0.1


class NativeLiftExpert:
    """Scripted demonstrator; see :class:`robolearn.core.protocols.Expert`.

    Args:
        num_envs: rows of the batch.
        quality: share of episodes that are done with care, in [0, 1]. A careless episode misses or drops the cube and does not
            try again; noise grows as well. At 1 every grasp that fails is repeated.
    """

    def __init__(self, num_envs: int, quality: float = 1.0) -> None:
        if not 0.0 <= quality <= 1.0:
            raise RefusedError(f"Expert quality must lie in [0, 1], got {quality}.")
        self._b = b = num_envs
        self._quality = quality
        self._rngs: list[np.random.Generator] = [generator(0, "unused")] * b
        self._started = np.zeros(b, bool)
        self._phase = np.zeros(b, np.int64)
        self._count = np.zeros(b, np.int64)
        self._mistake = np.zeros(b, np.int64)
        self._speed = np.zeros(b)
        self._gain = np.zeros(b)
        self._hover_m = np.zeros(b)
        self._side_m = np.zeros((b, 3))
        self._overshoot_m = np.zeros((b, 3))
        self._pause = np.zeros(b, np.int64)
        self._second_yaw = np.zeros(b, bool)
        self._quarter: Array = np.zeros(b, np.int64)
        self._beside_m = np.zeros(b)
        self._lift_from = np.zeros((b, 3))
        self._last_width = np.zeros(b)
        self._noise = np.zeros((b, 6))

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> None:
        """Draw a style for each masked environment from its seed.

        Raises:
            RefusedError: not one seed per environment.
        """
        if len(seeds) != self._b:
            raise RefusedError(f"The expert got {len(seeds)} seeds for {self._b} environments.")
        for i in np.flatnonzero(np.ones(self._b, bool) if mask is None else mask):
            self._draw_style(int(i), int(seeds[i]))

    def _draw_style(self, i: int, seed: int) -> None:
        rng = self._rngs[i] = generator(seed, "native_lift", "expert")
        self._phase[i] = SIDE if rng.random() < 0.5 else ABOVE
        self._count[i] = 0
        careless = rng.random() >= self._quality
        self._mistake[i] = rng.integers(GRASP_HIGH, LET_GO + 1) if careless else GRASP_WELL
        self._speed[i] = rng.uniform(0.45, 0.85)
        self._gain[i] = rng.uniform(1.1, 1.5)
        self._hover_m[i] = rng.uniform(0.05, 0.07)
        self._side_m[i] = (*rng.uniform(-0.05, 0.05, 2), self._hover_m[i] + 0.03)
        corrects = rng.random() < 0.25
        self._overshoot_m[i] = (*rng.uniform(-0.025, 0.025, 2), 0.0) if corrects else 0.0
        self._pause[i] = rng.integers(1, 4) if rng.random() < 0.15 else 0
        self._second_yaw[i] = rng.random() < 0.5
        self._beside_m[i] = rng.uniform(0.036, 0.045) * rng.choice([-1.0, 1.0])
        self._quarter[i] = -1
        self._last_width[i] = np.inf
        self._noise[i] = 0.0
        self._started[i] = True

    def act(self, observation: Observation) -> tuple[Array, Array]:
        """Return (executed, intended) actions, each (b, 7) float32.

        Raises:
            RefusedError: an environment has no style yet; reset comes first.
        """
        if not self._started.all():
            raise RefusedError(f"The expert acts in environment {int(np.argmin(self._started))} before its reset.")
        eef = observation[STATE][:, :3].astype(np.float64)
        tool = matrix_from_rotation_6d(observation[STATE][:, 3:9].astype(np.float64))
        width = (observation[STATE][:, 9] - observation[STATE][:, 10]).astype(np.float64)
        cube = observation[ENVIRONMENT_STATE][:, :3].astype(np.float64)
        cube_yaw = np.arctan2(observation[ENVIRONMENT_STATE][:, 4], observation[ENVIRONMENT_STATE][:, 3]).astype(np.float64)
        yaw_error = self._yaw_error(tool, cube_yaw)
        grasp = self._grasp_point(cube, cube_yaw + np.pi / 2 * self._quarter)

        self._advance(eef, cube, grasp, yaw_error, width)
        target = self._target(grasp)
        move = np.clip(self._gain[:, None] * (target - eef) / _METRES_PER_ACTION, -self._speed[:, None], self._speed[:, None])
        # cross(tool z, down) turns the tool towards pointing straight down; the yaw error turns it about the vertical.
        turn = np.cross(tool[:, :, 2], [0.0, 0.0, -1.0])
        turn[:, 2] += yaw_error
        turn = np.clip(1.2 * turn / _RADIANS_PER_ACTION, -_MAX_ROTATION, _MAX_ROTATION)
        turn[self._phase >= CLOSE] = 0.0
        intended = np.concatenate([move, turn, self._gripper()[:, None]], axis=1)
        pausing = (self._phase == DOWN) & (self._pause > 0)
        self._pause -= pausing
        intended[pausing, :6] = 0.0
        return self._with_noise(intended).astype(np.float32), intended.astype(np.float32)

    def _with_noise(self, intended: Array) -> Array:
        scale = _NOISE * (2.0 - self._quality) * np.where(self._phase >= DOWN, 1 / 3, 1.0)
        fresh = np.stack([rng.standard_normal(6) for rng in self._rngs])
        self._noise = _NOISE_MEMORY * self._noise + np.sqrt(1.0 - _NOISE_MEMORY**2) * fresh
        executed = intended.copy()
        executed[:, :6] = np.clip(intended[:, :6] + scale[:, None] * self._noise, -1.0, 1.0)
        return executed

    def _yaw_error(self, tool: Array, cube_yaw: Array) -> Array:
        """Return (b,) the turn that lays the fingers' opening axis (tool x) along the chosen face normal of the cube [rad].

        The face is chosen once: the nearest, or for half of the people the second nearest where it is nearly as near.
        """
        tool_yaw = np.arctan2(tool[:, 1, 0], tool[:, 0, 0])
        errors = wrap_angle(cube_yaw[:, None] + np.pi / 2 * np.arange(4) - tool_yaw[:, None])
        order = np.argsort(np.abs(errors), axis=1)
        rows = np.arange(self._b)
        second = self._second_yaw & (np.abs(errors[rows, order[:, 1]]) < np.deg2rad(60))
        choice = np.where(second, order[:, 1], order[:, 0])
        self._quarter = np.where(self._quarter < 0, choice, self._quarter)
        return errors[rows, self._quarter]

    def _grasp_point(self, cube: Array, opening_yaw: Array) -> Array:
        """Return (b, 3) where the fingers shall close; a careless person is off by enough to miss."""
        point = cube.copy()
        point[:, 2] += np.where(self._mistake == GRASP_HIGH, 0.036, 0.0)
        beside = np.where(self._mistake == GRASP_BESIDE, self._beside_m, 0.0)
        point[:, 0] -= np.sin(opening_yaw) * beside
        point[:, 1] += np.cos(opening_yaw) * beside
        return point

    def _advance(self, eef: Array, cube: Array, grasp: Array, yaw_error: Array, width: Array) -> None:
        """Move every row to its next phase where the present one is done."""
        self._count += 1
        offset = eef - grasp
        xy = np.linalg.norm(offset[:, :2], axis=1)
        phase = self._phase.copy()
        reached_side = np.linalg.norm(offset - self._side_m, axis=1) < 0.035
        self._go((phase == SIDE) & (reached_side | (self._count > 12)), ABOVE)

        above = phase == ABOVE
        over = above & (np.linalg.norm((offset - self._overshoot_m)[:, :2], axis=1) < 0.012)
        corrected = (self._overshoot_m[:, :2] == 0.0).all(axis=1)
        self._overshoot_m[over & ~corrected] = 0.0
        self._go(over & corrected & (np.abs(yaw_error) < 0.15) & (offset[:, 2] < self._hover_m + 0.02), DOWN)

        down = phase == DOWN
        self._go(down & (xy > 0.025) & (offset[:, 2] > 0.03), ABOVE)
        self._go(down & (np.abs(offset[:, 2]) < 0.008) & ((xy < 0.008) | (self._count > 12)), CLOSE)

        stopped = np.abs(width - self._last_width) < 3e-4
        self._last_width = width
        closed = (phase == CLOSE) & (((self._count > 2) & stopped) | (self._count > 10))
        self._lift_from[closed] = eef[closed]
        self._go(closed, LIFT)

        # An empty hand after raising: whoever takes care opens and tries again.
        lost = (phase == LIFT) & (eef[:, 2] - cube[:, 2] > 0.03) & (self._mistake == GRASP_WELL)
        self._quarter[lost] = -1
        self._go(lost, ABOVE)

    def _go(self, rows: Array, phase: int) -> None:
        self._phase[rows] = phase
        self._count[rows] = 0

    def _target(self, grasp: Array) -> Array:
        target = grasp.copy()
        side, above, lift = self._phase == SIDE, self._phase == ABOVE, self._phase == LIFT
        target[side] += self._side_m[side]
        target[above] += self._overshoot_m[above]
        target[above, 2] += self._hover_m[above]
        target[lift] = self._lift_from[lift] + [0.0, 0.0, _RISE_M]
        return target

    def _gripper(self) -> Array:
        """Return (b,) -1 open or +1 close."""
        closed = (self._phase == CLOSE) | ((self._phase == LIFT) & (self._mistake != LET_GO))
        return np.where(closed, 1.0, -1.0)
