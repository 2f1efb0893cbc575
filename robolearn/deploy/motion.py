"""How the commands of a filter with bounds on velocity, acceleration or jerk move on from one tick to the next."""

from __future__ import annotations

import numpy as np

from robolearn.core.types import Array
from robolearn.deploy.braking import (
    ACCELERATION,
    FOLLOW,
    FOUND,
    NEXT_PLAN,
    ON_TARGET,
    PLAN,
    PLAN_FIELDS,
    POSITION,
    TARGET,
    VELOCITY,
    commit,
    make_tick_limits,
    propose,
    way_to_rest,
)
from robolearn.deploy.limits import SafetyLimits, filled
from robolearn.deploy.safety import Guard

_SHRINK = 1e-9
"""Part of every bound kept back, so that rounding cannot carry a command over it."""
_GUARD_STEP_S = 0.05
"""Time between the places on the way to rest that a guard is asked about."""


class Motion:
    """Position, velocity, acceleration and stop plan of every element (b, a), advanced by compiled code.

    A new target is approached only by an acceleration inside :func:`robolearn.deploy.braking.acceleration_interval` after which
    a stop plan exists inside the position bounds; if there is none, the old plan is followed for one more tick.
    """

    def __init__(self, limits: SafetyLimits, num_rows: int, guard: Guard | None) -> None:
        """At no position yet; compiles what :meth:`move` needs, so that no tick waits for it."""
        shape = (num_rows, limits.dim)
        self._guard = guard
        self._every = max(int(_GUARD_STEP_S * limits.control_rate_hz), 1)
        self.table = tick_limits(limits)
        """(9, a) the limits per tick, read-only; see :class:`robolearn.deploy.braking.TickLimits`."""
        self.table.flags.writeable = False
        self._state, self._proposal = np.zeros((PLAN + PLAN_FIELDS, *shape)), np.zeros((NEXT_PLAN + PLAN_FIELDS, *shape))
        # The kernels are compiled for arrays of exactly this kind, so targets are copied into one of our own.
        self._targets = np.full(shape, np.nan)
        counts = np.zeros((4, num_rows), np.int64)
        propose(self._state, self.table, self._targets, self._proposal, counts)
        way_to_rest(self._state, self.table, self._proposal, self._every)
        commit(self._state, self.table, self._targets, self._proposal)

    @property
    def position(self) -> Array:
        """(b, a) what was sent last; a view."""
        return self._state[POSITION]

    @property
    def at_rest(self) -> Array:
        """(b,) bool: neither velocity nor acceleration is left."""
        return np.asarray((self._state[VELOCITY : ACCELERATION + 1] == 0).all(axis=(0, 2)))

    def reset(self, start: Array, rows: Array) -> None:
        """Begin at rest at ``start`` (b, a) in ``rows`` (b,)."""
        self._state[:, rows] = 0
        self._state[POSITION, rows] = self._state[TARGET, rows] = start[rows]
        self._state[ON_TARGET, rows] = 1

    def move(self, targets: Array, counts: Array) -> None:
        """Advance one tick towards ``targets`` (b, a), or along the stop plan where they are NaN.

        ``counts`` (5, b) are of rows altered because of velocity, acceleration, jerk, braking and by the guard; added to.
        """
        self._targets[...] = targets
        propose(self._state, self.table, self._targets, self._proposal, counts[:4])
        if self._guard is not None and self._proposal[FOUND].any():
            forbidden = ~self._guard(way_to_rest(self._state, self.table, self._proposal, self._every))
            counts[4] += forbidden
            self._proposal[FOUND : FOLLOW + 1, forbidden] = 0
        commit(self._state, self.table, self._targets, self._proposal)


def tick_limits(limits: SafetyLimits) -> Array:
    """Convert to per-tick units (9, a); a missing bound never binds: v <= range, a <= 2 v, j <= 2 a per tick."""
    dt = 1 / limits.control_rate_hz
    low, high = limits.inner_bounds()
    keep = 1 - _SHRINK
    velocity = filled(limits.max_velocity, limits.dim, np.nan) * dt * keep
    velocity = np.where(np.isnan(velocity), np.where(np.isfinite(high - low), high - low, 1e100), velocity)
    acceleration = filled(limits.max_acceleration, limits.dim, np.nan) * dt**2 * keep
    acceleration = np.where(np.isnan(acceleration), 2 * velocity, acceleration)
    jerk = filled(limits.max_jerk, limits.dim, np.nan) * dt**3 * keep
    bounded = ~np.isnan(jerk)
    columns = zip(low, high, velocity, acceleration, np.where(bounded, jerk, 2 * acceleration), bounded, strict=True)
    return np.array([make_tick_limits(*column) for column in columns]).T.copy()
