"""A scripted operator of the GR1's arms: hands to both sides of the box, together, and up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.rotations import matrix_from_rotation_6d
from robolearn.core.seeding import generator
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Array, Observation
from sim_envs.experts.hands import HandsIk
from sim_envs.humanoid_scenes import BOX_HALF_M

BESIDE, PRESS, LIFT = range(3)
_NOISE_RAD = 0.004
_CLEAR_M = 0.055
"""Distance of a hand's centre from the side of the box before it is touched; the pad is 0.03 m thick."""
_INTO_M = 0.005
"""How far into the side a hand's centre is steered: what presses."""
_RISE_M = 0.16
_SIDES = (-1.0, 1.0)
"""Right, left: the order of the robot's hands."""


class Gr1LiftExpert:
    """Scripted demonstrator; see :class:`robolearn.core.protocols.Expert`. A careless episode does not press the box."""

    def __init__(self, num_envs: int, quality: float = 1.0) -> None:
        if not 0.0 <= quality <= 1.0:
            raise RefusedError(f"Expert quality must lie in [0, 1], got {quality}.")
        self._ik, self._quality = HandsIk(load_robot("gr1")), quality
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._phase, self._count = np.zeros(num_envs, int), np.zeros(num_envs, int)
        self._max_step, self._into_m = np.zeros(num_envs), np.zeros(num_envs)
        self._from = np.zeros((num_envs, 3))

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> None:
        """Draw a speed for each masked environment from its seed.

        Raises:
            RefusedError: not one seed per environment.
        """
        if len(seeds) != len(self._rngs):
            raise RefusedError(f"The expert got {len(seeds)} seeds for {len(self._rngs)} environments.")
        for i in np.flatnonzero(np.ones(len(self._rngs), bool) if mask is None else mask):
            rng = self._rngs[i] = generator(int(seeds[i]), "gr1_two_arm_lift", "expert")
            self._phase[i] = self._count[i] = 0
            self._max_step[i] = rng.uniform(0.05, 0.07)
            self._into_m[i] = _INTO_M if rng.random() < self._quality else -0.03

    def act(self, observation: Observation) -> tuple[Array, Array]:
        """Return (executed, intended) joint positions, each (b, 14) float32.

        Raises:
            RefusedError: an environment has no style yet; reset comes first.
        """
        executed, intended = [], []
        frames = observation[ENVIRONMENT_STATE].reshape(len(self._rngs), 3, 9).astype(float)
        for i, rng in enumerate(self._rngs):
            if rng is None:
                raise RefusedError(f"The expert acts in environment {i} before its reset.")
            joints = observation[STATE][i].astype(float)
            goals = self._goals(i, hands=frames[i, :2, :3], box=frames[i, 2])
            intended.append(self._ik.step(joints, goals, self._ik.home_turns, max_step=self._max_step[i]))
            executed.append(intended[-1] + _NOISE_RAD * rng.standard_normal(len(joints)))
        return np.stack(executed).astype(np.float32), np.stack(intended).astype(np.float32)

    def _goals(self, i: int, *, hands: Array, box: Array) -> Array:
        """Return where the hands (2, 3) shall be, and move to the next phase where the present one is done."""
        side = matrix_from_rotation_6d(box[3:])[:, 1]
        centre = box[:3] if self._phase[i] < LIFT else self._from[i]
        self._count[i] += 1
        beside = np.stack([centre + s * (BOX_HALF_M[1] + _CLEAR_M) * side for s in _SIDES])
        press = np.stack([centre + s * (BOX_HALF_M[1] - self._into_m[i]) * side for s in _SIDES])
        if self._phase[i] == BESIDE and np.linalg.norm(hands - beside, axis=1).max() < 0.015:
            self._phase[i], self._count[i] = PRESS, 0
        elif self._phase[i] == PRESS and self._count[i] > 8:
            self._phase[i], self._count[i], self._from[i] = LIFT, 0, box[:3]
        if self._phase[i] == LIFT:
            # A little ahead of the hands: a goal far up would tilt the pull away from the box.
            rise = np.clip(hands[:, 2].mean() - self._from[i, 2] + 0.05, 0.0, _RISE_M)
            return press + np.array([0.0, 0.0, rise])
        return beside if self._phase[i] == BESIDE else press
