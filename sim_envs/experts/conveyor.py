"""A scripted operator for the conveyor: native lift's, who aims at where the cube will be."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from robolearn.core.types import ENVIRONMENT_STATE, Array, Observation
from sim_envs.experts.native_lift import LIFT, NativeLiftExpert

LEAD_STEPS = 1.5
"""How far ahead the hand aims [control steps]: what its own motion lags behind a target that moves evenly."""
_MEMORY = 0.5
"""Share of the estimated velocity that stays from step to step."""


class ConveyorExpert(NativeLiftExpert):
    """Scripted demonstrator; see :class:`NativeLiftExpert`.

    It judges the cube's velocity by eye, from the positions of successive steps.
    """

    def __init__(self, num_envs: int, quality: float = 1.0) -> None:
        super().__init__(num_envs, quality)
        self._last_m: Array = np.full((num_envs, 2), np.nan)
        self._velocity_m: Array = np.zeros((num_envs, 2))

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> None:
        """See :meth:`NativeLiftExpert.reset`; nothing is known yet of how the cube moves."""
        super().reset(seeds, mask)
        rows = slice(None) if mask is None else mask
        self._last_m[rows], self._velocity_m[rows] = np.nan, 0.0

    def act(self, observation: Observation) -> tuple[Array, Array]:
        """See :meth:`NativeLiftExpert.act`."""
        cube = observation[ENVIRONMENT_STATE][:, :2].astype(np.float64)
        moved = np.where(np.isnan(self._last_m), 0.0, cube - self._last_m)
        self._velocity_m = np.where(self._velocity_m == 0.0, moved, _MEMORY * self._velocity_m + (1 - _MEMORY) * moved)
        self._last_m = cube
        return super().act(observation)

    def _target(self, grasp: Array) -> Array:
        target = super()._target(grasp)
        following = self._phase < LIFT
        target[following, :2] += LEAD_STEPS * self._velocity_m[following]
        return target
