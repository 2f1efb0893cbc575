"""The last thing that a command passes on its way to a robot or simulator; needs numpy only and takes time as an argument."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn.deploy.braking import StopPlan, acceleration_interval, plan_stop, stopping_distance
from robolearn.deploy.limits import SafetyLimits, filled, tick_limits

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

type Guard = Callable[[Array], Array]
"""Tells for positions (m, b, a) which rows (b,) bool are allowed in all m; for example a workspace box by forward kinematics."""

_CANDIDATES = 17
"""Accelerations tried per tick when a command cannot be followed exactly."""
_GUARD_STEP_S = 0.05
"""Time between the places on the way to rest that a guard is asked about."""


class SafetyFilter:
    """Turns any sequence of commands (b, a) into one that obeys the limits; every row is filtered on its own.

    Why the bounds hold for any input: the filter always keeps a stop plan (:func:`plan_stop`) that is known to obey every
    limit. A new command is approached only by an acceleration inside :func:`acceleration_interval` after which another such
    plan exists inside the position bounds; if there is none, the old plan is followed for one more tick. A refused or stale
    command follows the plan as well: ramp down and hold.

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
        self._tick = tick_limits(limits)
        self._dynamic = any(b is not None for b in (limits.max_velocity, limits.max_acceleration, limits.max_jerk))
        for array in (self._low, self._high, self._relative, self._rest, *vars(self._tick).values()):
            array.flags.writeable = False
        self._position: Array = np.full(self._shape, np.nan)
        self._velocity: Array = np.zeros(self._shape)
        self._acceleration: Array = np.zeros(self._shape)
        self._target: Array = np.full(self._shape, np.nan)
        self._on_target: Array = np.zeros(self._shape, bool)
        self._plan = plan_stop(np.zeros(self._shape), np.zeros(self._shape), self._tick)
        self._plan_step = np.zeros(self._shape)
        self._counts = {kind: np.zeros(num_rows, np.int64) for kind in KINDS}

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
        return np.asarray((self._velocity == 0).all(axis=1) & (self._acceleration == 0).all(axis=1))

    def reset(self, start: Array, mask: Array | None = None) -> None:
        """Begin at rest at ``start`` (b, a), the robot's measured position or a command known to be safe.

        Args:
            start: (b, a); rows outside ``mask`` are ignored.
            mask: (b,) bool, which rows to reset; all by default.

        Raises:
            RefusedError: a start is not finite or lies outside the position bounds.
        """
        rows = np.ones(self._shape[0], bool) if mask is None else np.asarray(mask, bool)
        start = np.asarray(start, float)
        if start.shape != self._shape or rows.shape != self._shape[:1]:
            raise RefusedError(f"start must have shape {self._shape} and mask {self._shape[:1]}, got {start.shape}.")
        if not ((start[rows] >= self._low) & (start[rows] <= self._high)).all():
            raise RefusedError(f"start {start[rows].tolist()} must lie in [{self._low.tolist()}, {self._high.tolist()}].")
        if self._guard is not None and not self._guard(np.where(rows[:, None], start, self._position)[None])[rows].all():
            raise RefusedError(f"The guard does not allow to start at {start[rows].tolist()}.")
        self._position[rows] = self._target[rows] = start[rows]
        self._velocity[rows] = self._acceleration[rows] = 0
        self._on_target[rows] = True
        self._adopt(plan_stop(self._velocity, self._acceleration, self._tick), np.broadcast_to(rows[:, None], self._shape))
        for count in self._counts.values():
            count[rows] = 0

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
        if np.isnan(self._position).any():
            raise RefusedError("The safety filter must be reset with a start position before its first command.")
        refused = self._stale("command_age", self._limits.max_command_age_s, now_s, command_stamp_s)
        refused |= self._stale("observation_age", self._limits.max_observation_age_s, now_s, observation_stamp_s)
        target, bad = self._readable(command)
        refused |= bad
        target = self._clip("position", target, self._low, self._high, ~refused)
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
            target = self._clip("relative_target", target, near - self._relative, near + self._relative, ~refused)
            target = np.clip(target, self._low, self._high)
        return self._send(np.where(refused[:, None], self._rest, target))

    def coast(self) -> Array:
        """Return the commands (b, a) of one more control period without a target: ramp down and hold, or rest where that is set.

        Raises:
            RefusedError: the filter was not reset.
        """
        if np.isnan(self._position).any():
            raise RefusedError("The safety filter must be reset with a start position before its first command.")
        return self._send(np.broadcast_to(self._rest, self._shape))

    def _send(self, target: Array) -> Array:
        """Advance one tick towards ``target`` (b, a), NaN where there is none."""
        hold = np.isnan(target)
        if not self._dynamic:
            self._position = np.where(hold, self._position, target)
            return self._position.copy()
        return self._move(np.where(hold, self._position, target), hold)

    def _move(self, target: Array, hold: Array) -> Array:
        """Advance one tick towards ``target`` (b, a), or along the stop plan where ``hold`` (b, a)."""
        p, v, a, tick = self._position, self._velocity, self._acceleration, self._tick
        low, high = acceleration_interval(v, a, tick)
        wanted = target - p - v
        chosen = np.clip(wanted, low, high)
        plan = plan_stop(v + chosen, chosen, tick)
        follow = ~hold & self._on_target & (chosen == wanted) & self._inside(chosen, plan)
        found, searched = follow, ~(follow | hold)
        if searched.any():
            self._count_dynamics(target, wanted, searched)
            found = follow.copy()
            chosen[searched], found[searched] = self._search(target, low, high, searched)
            plan = plan_stop(v + chosen, chosen, tick)
        moved = p + v + chosen
        if self._guard is not None or not found.all():
            planned, at_rest = self._plan.at(self._plan_step + 1, tick)
            coasted = np.where(at_rest, p, p + v + planned)
            if self._guard is not None and found.any():
                next_position = np.where(found, moved, coasted)
                found = found & self._allowed(next_position, plan, found)
                follow = follow & found
            moved = np.where(found, moved, coasted)
        self._position = np.clip(np.where(follow, target, moved), self._low, self._high)
        # The state is taken from what is really sent, so rounding never accumulates between the state and the commands.
        self._velocity = self._position - p
        self._acceleration = self._velocity - v
        self._plan_step += 1
        # The plan is the one that was checked: one made from the rounded state could need a tick more.
        self._adopt(plan, found)
        self._target = np.where(hold, self._position, target)
        self._on_target = ~hold & (self._position == target)
        return self._position.copy()

    def _allowed(self, moved: Array, plan: StopPlan, found: Array) -> Array:
        """Return (b, 1) bool: the guard allows the next positions (b, a) and the way to rest from there.

        Elements in ``found`` would brake by the new ``plan``, the others by the one that they follow already. The way is looked
        at every ``_GUARD_STEP_S``; what it can deviate in between is the guard's margin to keep.
        """
        assert self._guard is not None
        left = np.where(
            found, plan.ramp_steps + plan.pulse_steps, self._plan.ramp_steps + self._plan.pulse_steps - self._plan_step
        )
        step = np.arange(1, max(int(left.max()), 1) + 1)[:, None, None]
        new, _ = plan.at(step, self._tick)
        old, _ = self._plan.at(self._plan_step + 1 + step, self._tick)
        velocity = moved - self._position + np.cumsum(np.where(found, new, old), axis=0)
        way = moved + np.cumsum(np.where(step <= left, velocity, 0), axis=0)
        every = max(int(_GUARD_STEP_S * self._limits.control_rate_hz), 1)
        allowed = self._guard(np.concatenate([moved[None], way[every - 1 :: every], way[-1:]]))
        self._counts["guard"] += ~allowed
        return allowed[:, None]

    def _search(self, target: Array, low: Array, high: Array, searched: Array) -> tuple[Array, Array]:
        """Return the best acceleration in [low, high] and whether it is admissible, for the n elements in ``searched`` (b, a).

        The target's own velocity is taken from its last step, unless that was a jump. Best is the acceleration after which
        braking to that velocity would meet the target; one that lands on the target and can stay with it is better still.
        """
        rows, columns = np.nonzero(searched)
        tick = self._tick.at(columns)
        position, velocity, target, last, low, high = (
            array[rows, columns] for array in (self._position, self._velocity, target, self._target, low, high)
        )
        feed = target - last
        feed = np.where(np.abs(feed) <= tick.velocity, feed, 0)
        exact = np.clip(target - position - velocity, low, high)
        tried = np.concatenate([exact[None], low + (high - low) * np.linspace(0, 1, _CANDIDATES)[:, None]])
        after = velocity + tried
        moved = position + after
        # The backward difference lags the velocity at the tick by half an acceleration.
        miss = np.abs(moved + stopping_distance(after - feed + tried / 2, tried, tick) - target)
        # Landing needs the next two accelerations, feed - velocity and then 0, to be within the jerk bound.
        change = feed - after[0]
        lands = (moved[0] == target) & (np.abs(change - tried[0]) <= tick.jerk) & (np.abs(change) <= tick.jerk)
        miss[0] = np.where(lands, -1, miss[0])
        admissible = np.ones(miss.shape, bool)
        # Only near a bound can a stop plan cross it.
        near = np.flatnonzero(~((position - tick.stop_way > tick.low) & (position + tick.stop_way < tick.high)))
        if near.size:
            plans = plan_stop(after[:, near], tried[:, near], tick.at(near))
            ways = moved[:, near]
            admissible[:, near] = (ways + plans.highest <= tick.high[near]) & (ways + plans.lowest >= tick.low[near])
        best = np.argmin(np.where(admissible, miss, np.inf), axis=0), np.arange(len(rows))
        return tried[best], admissible[best]

    def _inside(self, acceleration: Array, stop: StopPlan) -> Array:
        """Return whether the next position and all of the stop plan after it lie inside the position bounds."""
        moved = self._position + self._velocity + acceleration
        return (moved + stop.highest <= self._high) & (moved + stop.lowest >= self._low)

    def _adopt(self, plan: StopPlan, where: Array) -> None:
        """Make ``plan`` the one that is followed when nothing better is admissible, for the elements in ``where``."""
        for name, old in vars(self._plan).items():
            np.copyto(old, getattr(plan, name), where=where)
        self._plan_step[where] = 0

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
        self._counts["non_finite"] += bad
        return np.where(bad[:, None], self._position, target), bad

    def _clip(self, kind: str, target: Array, low: Array, high: Array, rows: Array) -> Array:
        """Clip to [low, high] and count the rows in which that changed something."""
        clipped = np.clip(target, low, high)
        self._counts[kind] += rows & (clipped != target).any(axis=1)
        return clipped

    def _count_dynamics(self, target: Array, wanted: Array, altered: Array) -> None:
        """Name why each altered element could not simply go to its target."""
        over = {
            "velocity": np.abs(target - self._position) > self._tick.velocity,
            "acceleration": np.abs(wanted) > self._tick.acceleration,
            "jerk": np.abs(wanted - self._acceleration) > self._tick.jerk,
        }
        over["braking"] = ~(over["velocity"] | over["acceleration"] | over["jerk"])
        for kind, elements in over.items():
            self._counts[kind] += (altered & elements).any(axis=1)
