"""Slower while what is seen is novel: full speed up to a novelty of 1, standing still at ``novelty_stop``."""

from __future__ import annotations

import numpy as np

from robolearn.core.types import Array
from robolearn.deploy.limits import SafetyLimits, filled


class Slowdown:
    """Reduces the target of a control period; the speed falls linearly between the two novelties."""

    def __init__(self, limits: SafetyLimits, *, novelty_stop: float, rates: bool) -> None:
        """``rates``: scale towards their rest; else positions move at no more than that part of the velocity limits."""
        self._stop, self._rates = novelty_stop, rates
        self._rest = filled(limits.rest_command, limits.dim, np.nan)
        self._reach = filled(limits.max_velocity, limits.dim, np.inf) / limits.control_rate_hz

    def target(self, wanted: Array, goal: Array, novelty: float) -> Array:
        """Return what is steered for (a,) instead of ``wanted`` (a,), where ``goal`` (a,) was the last period's."""
        speed = min(max((self._stop - novelty) / (self._stop - 1), 0.0), 1.0)
        if speed == 1:
            return wanted
        if self._rates:
            return np.where(np.isfinite(self._rest), self._rest + speed * (wanted - self._rest), wanted)
        return np.clip(wanted, goal - speed * self._reach, goal + speed * self._reach)
