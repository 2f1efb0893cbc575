"""A scripted operator of the G1's arms: both hands go straight to their targets, each episode at its own speed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.seeding import generator
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Array, Observation
from sim_envs.experts.hands import HandsIk

_NOISE_RAD = 0.01


class G1ReachExpert:
    """Scripted demonstrator; see :class:`robolearn.core.protocols.Expert`. A careless episode aims 6 cm beside one target."""

    def __init__(self, num_envs: int, quality: float = 1.0) -> None:
        if not 0.0 <= quality <= 1.0:
            raise RefusedError(f"Expert quality must lie in [0, 1], got {quality}.")
        self._ik, self._quality = HandsIk(load_robot("g1")), quality
        self._rngs: list[np.random.Generator | None] = [None] * num_envs
        self._max_step, self._miss = np.zeros(num_envs), np.zeros((num_envs, 2, 3))

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> None:
        """Draw a speed, and a miss if careless, for each masked environment from its seed.

        Raises:
            RefusedError: not one seed per environment.
        """
        if len(seeds) != len(self._rngs):
            raise RefusedError(f"The expert got {len(seeds)} seeds for {len(self._rngs)} environments.")
        for i in np.flatnonzero(np.ones(len(self._rngs), bool) if mask is None else mask):
            rng = self._rngs[i] = generator(int(seeds[i]), "g1_reach", "expert")
            self._max_step[i] = rng.uniform(0.05, 0.08)
            self._miss[i] = 0.0
            if rng.random() >= self._quality:
                self._miss[i, rng.integers(2), rng.integers(3)] = 0.06

    def act(self, observation: Observation) -> tuple[Array, Array]:
        """Return (executed, intended) joint positions, each (b, 14) float32.

        Raises:
            RefusedError: an environment has no style yet; reset comes first.
        """
        executed, intended = [], []
        frames = observation[ENVIRONMENT_STATE].reshape(len(self._rngs), 4, 9)[:, 2:, :3].astype(float)
        for i, rng in enumerate(self._rngs):
            if rng is None:
                raise RefusedError(f"The expert acts in environment {i} before its reset.")
            joints = observation[STATE][i].astype(float)
            intended.append(self._ik.step(joints, frames[i] + self._miss[i], None, max_step=self._max_step[i]))
            executed.append(intended[-1] + _NOISE_RAD * rng.standard_normal(len(joints)))
        return np.stack(executed).astype(np.float32), np.stack(intended).astype(np.float32)
