"""The last thing that a command passes on its way to a robot or simulator; time is an argument.

Needs numpy only, and numba where velocity, acceleration or jerk are bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn.deploy.limits import SafetyLimits, filled

KINDS = (
    "shape",
    "non_finite",
    "command_age",
    "observation_age",
    "position",
    "relative_target",
    "velocity",
    "acceleration",
    "jerk",
    "braking",
    "guard",
)
"""Reasons to alter a command, in the order in which they are looked at; the first four refuse the whole command."""
_DYNAMICS = KINDS.index("velocity")

type Guard = Callable[[Array], Array]
"""Tells for positions (m, b, a) which rows (b,) bool are allowed in all m; for example a workspace box by forward kinematics."""


class SafetyFilter:
    """Turns any sequence of commands (b, a) into one that obeys the limits; every row is filtered on its own.

    Why the bounds hold for any input: the filter always keeps a stop plan (:func:`robolearn.deploy.braking.plan_stop`) that is
    known to obey every limit. A new command is approached only by an acceleration after which another such plan exists inside
    the position bounds; if there is none, the old plan is followed for one more tick. A refused or stale command follows the
    plan as well: ramp down and hold (:class:`robolearn.deploy.motion.Motion`).

    Position bounds alone need no plan: the command is clipped.

    A ``guard`` is asked about each next position together with where its stop plan leads; a step that it forbids is not taken,
    and the old plan, which it has allowed, is followed instead.
    """

    def __init__(self, limits: SafetyLimits, *, num_rows: int, guard: Guard | None = None) -> None:
        self._guard = guard
        self._limits = limits
        self._shape = (num_rows, limits.dim)
        self._low, self._high = limits.inner_bounds()
        self._relative = filled(limits.max_relative_target, limits.dim, np.inf)
        self._rest = filled(limits.rest_command, limits.dim, np.nan)
        for array in (self._low, self._high, self._relative, self._rest):
            array.flags.writeable = False
        self._position: Array = np.full(self._shape, np.nan)
        self._begun = False
        self._motion = None
        if any(bound is not None for bound in (limits.max_velocity, limits.max_acceleration, limits.max_jerk)):
            from robolearn.deploy.motion import Motion

            self._motion = Motion(limits, num_rows, guard)
        self._altered = np.zeros((len(KINDS), num_rows), np.int64)
        self._counts = dict(zip(KINDS, self._altered, strict=True))

    @property
    def limits(self) -> SafetyLimits:
        """The limits; read-only for the life of the filter."""
        return self._limits

    @property
    def counts(self) -> Mapping[str, Array]:
        """Kind -> (b,) number of commands since the row's reset that were altered for that reason; a copy."""
        return {kind: count.copy() for kind, count in self._counts.items()}

    @property
    def position(self) -> Array:
        """The last safe command (b, a); NaN before the first reset; a copy."""
        return self._position.copy()

    @property
    def at_rest(self) -> Array:
        """(b,) bool: the last two commands of the row were the same, and no acceleration is left."""
        return np.ones(self._shape[0], bool) if self._motion is None else self._motion.at_rest

    def reset(self, start: Array, mask: Array | None = None, *, ask_guard: bool = True) -> None:
        """Begin at rest at ``start`` (b, a), the robot's measured position or a command known to be safe.

        Args:
            start: (b, a); rows outside ``mask`` are ignored.
            mask: (b,) bool, which rows to reset; all by default.
            ask_guard: whether the guard must allow the start; False where a command that was sent is gone on from.

        Raises:
            RefusedError: a start is not finite or lies outside the position bounds.
        """
        rows = np.ones(self._shape[0], bool) if mask is None else np.asarray(mask, bool)
        start = np.asarray(start, float)
        if start.shape != self._shape or rows.shape != self._shape[:1]:
            raise RefusedError(f"start must have shape {self._shape} and mask {self._shape[:1]}, got {start.shape}.")
        if not ((start[rows] >= self._low) & (start[rows] <= self._high)).all():
            raise RefusedError(f"start {start[rows].tolist()} must lie in [{self._low.tolist()}, {self._high.tolist()}].")
        asked = self._guard if ask_guard else None
        if asked is not None and not asked(np.where(rows[:, None], start, self._position)[None])[rows].all():
            raise RefusedError(f"The guard does not allow to start at {start[rows].tolist()}.")
        self._position[rows] = start[rows]
        self._begun = bool(np.isfinite(self._position).all())
        if self._motion is not None:
            self._motion.reset(start, rows)
        self._altered[:, rows] = 0

    def apply(
        self,
        command: Array,
        *,
        now_s: float,
        measured: Array | None = None,
        command_stamp_s: Array | float | None = None,
        observation_stamp_s: Array | float | None = None,
    ) -> Array:
        """Return the command (b, a) float64 that is sent instead of ``command`` for this control period.

        Args:
            command: (b, a); anything else is refused as a whole.
            now_s: the time, on the clock of the stamps.
            measured: (b, a) measured positions; needed with ``max_relative_target``. A non-finite one counts as a stale
                observation.
            command_stamp_s: (b,) or one time; needed with ``max_command_age_s``.
            observation_stamp_s: (b,) or one time; needed with ``max_observation_age_s``.

        Raises:
            RefusedError: the filter was not reset, or an argument that a limit needs is missing.
        """
        self._require_reset()
        refused = self._stale("command_age", self._limits.max_command_age_s, now_s, command_stamp_s)
        refused |= self._stale("observation_age", self._limits.max_observation_age_s, now_s, observation_stamp_s)
        target, bad = self._readable(command)
        refused |= bad
        target = self._clip("position", target, self._low, self._high, refused)
        if self._limits.max_relative_target is not None:
            if measured is None:
                raise RefusedError("max_relative_target is set, so every call needs the measured positions.")
            measured = np.asarray(measured, float)
            if measured.shape != self._shape:
                raise RefusedError(f"The measured positions must have shape {self._shape}, got {measured.shape}.")
            blind = ~np.isfinite(measured).all(axis=1)
            self._counts["observation_age"] += blind
            refused |= blind
            near = np.where(refused[:, None], self._position, measured)
            target = self._clip("relative_target", target, near - self._relative, near + self._relative, refused)
            target = _clipped(target, self._low, self._high)
        return self._send(np.where(refused[:, None], self._rest, target) if refused.any() else target)

    def coast(self) -> Array:
        """Return the commands (b, a) of one more control period without a target: ramp down and hold, or rest where that is set.

        Raises:
            RefusedError: the filter was not reset.
        """
        self._require_reset()
        return self._send(np.broadcast_to(self._rest, self._shape))

    def _require_reset(self) -> None:
        if not self._begun:
            raise RefusedError("The safety filter must be reset with a start position before its first command.")

    def _send(self, target: Array) -> Array:
        """Advance one tick towards ``target`` (b, a), NaN where there is none."""
        if self._motion is None:
            self._position = np.where(np.isnan(target), self._position, target)
        else:
            self._motion.move(target, self._altered[_DYNAMICS:])
            self._position = self._motion.position.copy()
        return self._position.copy()

    def _stale(self, kind: str, limit_s: float | None, now_s: float, stamp_s: Array | float | None) -> Array:
        """Return which rows (b,) are too old, and count them; an age that is not a number is too old."""
        if limit_s is None:
            return np.zeros(self._shape[0], bool)
        if stamp_s is None:
            raise RefusedError(f"max_{kind}_s={limit_s} is set, so every call needs a time stamp for it.")
        age = np.broadcast_to(now_s - np.asarray(stamp_s, float), self._shape[:1])
        stale = ~(np.abs(age) <= limit_s)
        self._counts[kind] += stale
        return stale

    def _readable(self, command: Array) -> tuple[Array, Array]:
        """Return the command as float64 and which rows (b,) are refused; refused rows hold the last safe command."""
        try:
            target = np.asarray(command, float)
        except (TypeError, ValueError):
            target = np.empty(0)
        if target.shape != self._shape:
            self._counts["shape"] += 1
            return self._position.copy(), np.ones(self._shape[0], bool)
        bad = ~np.isfinite(target).all(axis=1)
        if bad.any():
            self._counts["non_finite"] += bad
            target = np.where(bad[:, None], self._position, target)
        return target, bad

    def _clip(self, kind: str, target: Array, low: Array, high: Array, refused: Array) -> Array:
        """Clip to [low, high] and count the rows in which that changed something, but for those that are refused anyway."""
        clipped = _clipped(target, low, high)
        changed = clipped != target
        if changed.any():
            self._counts[kind] += ~refused & changed.any(axis=1)
        return clipped


def _clipped(target: Array, low: Array, high: Array) -> Array:
    """As ``np.clip``, which takes several times as long for few numbers."""
    return np.asarray(np.minimum(np.maximum(target, low), high))
