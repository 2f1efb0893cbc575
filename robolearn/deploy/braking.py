"""Braking under jerk limits, in discrete time and per-tick units: formulas for one element (one joint of one row), compiled.

A command sequence p_0, p_1, ... has velocity v_k = p_k - p_{k-1}, acceleration a_k = v_k - v_{k-1} and jerk a_k - a_{k-1}, all
per tick: limits in SI units are multiplied by dt, dt^2, dt^3 once. What the filter does with the formulas at every tick is at the
end of this file, for a compiled function is kept on disk until its own file changes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from robolearn.core.compiled import compiled
from robolearn.core.types import Array

CANDIDATES = 17
"""Accelerations tried per tick when a command cannot be followed exactly."""


class TickLimits(NamedTuple):
    """Bounds of one element per tick; infinite positions mean no bound, and what was not asked for is set where it never binds.

    As a table: (9, a), one row per field.
    """

    low: float
    high: float
    velocity: float
    acceleration: float
    jerk: float
    jerk_bounded: float
    """0 where the acceleration may change at once, so that braking needs no ramp; else 1."""
    pulse_ramp: float
    """Steps in which a pulse rises through multiples of the jerk that are below the largest acceleration."""
    pulse_deficit: float
    """What a full pulse of N steps takes away less than N times the largest acceleration, because of both ramps."""
    stop_way: float
    """More than any step and the stop plan after it can cover: the ramp and half of the longest pulse at full speed."""


class StopPlan(NamedTuple):
    """Accelerations that bring an element to rest: ramp the acceleration to zero, then one symmetric pulse.

    The pulse works against the velocity that is left. Step k = 1, 2, ... of the plan: for k <= ramp_steps the acceleration is
    sign(a) max(|a| - k J, 0); then, with i = k - ramp_steps in 1..pulse_steps, it is
    pulse_scale min(i J, (pulse_steps + 1 - i) J, A); afterwards everything is zero.
    """

    acceleration: float
    ramp_steps: float
    pulse_steps: float
    pulse_scale: float
    """Signed, in [-1, 1]: minus the sign of the velocity after the ramp, times the part of the full pulse that is needed."""
    displacement: float
    """Where the plan ends, relative to where it starts."""
    lowest: float
    highest: float
    """Extreme positions on the way, relative to the start."""


@compiled
def make_tick_limits(low: float, high: float, velocity: float, acceleration: float, jerk: float, bounded: bool) -> TickLimits:
    """Return the bounds of one element with what follows from them; ``bounded`` says whether the jerk is."""
    rise = np.ceil(acceleration / jerk)
    ramp = rise - 1
    deficit = 2 * ramp * acceleration - jerk * ramp * (ramp + 1)
    limits = TickLimits(low, high, velocity, acceleration, jerk, 1.0 if bounded else 0.0, ramp, deficit, 0.0)
    way = velocity * (rise + _pulse(velocity, limits)[0] / 2 + 2)
    return TickLimits(low, high, velocity, acceleration, jerk, limits.jerk_bounded, ramp, deficit, way)


@compiled
def plan_at(plan: StopPlan, step: float, limits: TickLimits) -> tuple[float, bool]:
    """Return the acceleration of plan step ``step`` (1-based) and whether the element is at rest after it."""
    i = step - plan.ramp_steps
    if step <= plan.ramp_steps:
        return _sign(plan.acceleration) * max(abs(plan.acceleration) - step * limits.jerk, 0.0), i >= plan.pulse_steps
    height = min(min(i, plan.pulse_steps + 1 - i) * limits.jerk, limits.acceleration)
    return plan.pulse_scale * max(height, 0.0), i >= plan.pulse_steps


@compiled
def acceleration_interval(velocity: float, acceleration: float, limits: TickLimits) -> tuple[float, float]:
    """Return the accelerations [low, high] of the next tick that keep jerk, acceleration and velocity in bounds for good.

    An acceleration x >= 0 commits to the velocity gain x + (x - J) + (x - 2J) + ... while it is ramped down, so it must fit
    into the room that is left below the velocity bound. The interval is never empty if the state came from this rule: ramping
    down is in it.
    """
    high = _largest_acceleration(limits.velocity - velocity, limits.jerk)
    low = -_largest_acceleration(limits.velocity + velocity, limits.jerk)
    high = min(min(high, limits.acceleration), acceleration + limits.jerk)
    low = max(max(low, -limits.acceleration), acceleration - limits.jerk)
    return low, max(low, high)


@compiled
def plan_stop(velocity: float, acceleration: float, limits: TickLimits) -> StopPlan:
    """Return the plan that brings an element with this velocity and acceleration to rest, and where it passes.

    With alpha = |a| and n = floor(alpha / J), the velocity after k ramp steps is v_k = v + sign(a) (k alpha - J k(k+1)/2) and
    the way P(k) = k v + sign(a) (alpha k(k+1)/2 - J k(k+1)(k+2)/6). A symmetric pulse of N steps from velocity w to rest goes w
    (N-1)/2.
    """
    alpha, sign, jerk = abs(acceleration), _sign(acceleration), limits.jerk
    n = ramp_steps = 0.0
    if limits.jerk_bounded:
        n, ramp_steps = np.floor(alpha / jerk), np.ceil(alpha / jerk)
    coast = velocity + sign * (n * alpha - jerk * n * (n + 1) / 2)
    pulse_steps, capacity = _pulse(abs(coast), limits)
    displacement = _ramp_way(n, velocity, acceleration, jerk) + (ramp_steps - n) * coast + coast * max(pulse_steps - 1, 0.0) / 2
    extreme = 0.0
    if velocity * coast < 0:
        # The ramp reverses the velocity: the extreme position lies at its last step before the reversal.
        slope = alpha - jerk / 2
        root = (slope - np.sqrt(max(slope * slope - 2 * jerk * abs(velocity), 0.0))) / jerk
        extreme = _ramp_way(min(max(np.floor(root), 0.0), n), velocity, acceleration, jerk)
    return StopPlan(
        acceleration,
        ramp_steps,
        pulse_steps,
        -coast / (capacity if capacity > 0 else 1.0),
        displacement,
        min(min(extreme, displacement), 0.0),
        max(max(extreme, displacement), 0.0),
    )


@compiled
def stopping_distance(velocity: float, acceleration: float, limits: TickLimits) -> float:
    """Return the signed way to rest under time-optimal braking in continuous time; used to steer, not to guarantee.

    Let w = v + a|a| / (2J), the velocity once the acceleration is ramped out, be positive (else mirror). The acceleration falls
    to -P, stays and returns, with P = min(A, sqrt(J v + a^2/2)); each phase's way is a cubic in its duration.
    """
    jerk = limits.jerk
    side = 1.0 if velocity + acceleration * abs(acceleration) / (2 * jerk) >= 0 else -1.0
    v, a = side * velocity, side * acceleration
    peak = min(limits.acceleration, np.sqrt(max(jerk * v + a * a / 2, 0.0)))
    ramp = (a + peak) / jerk
    way = v * ramp + a * (ramp * ramp) / 2 - jerk * (ramp * ramp * ramp) / 6
    v = v + (a * a - peak * peak) / (2 * jerk)
    plateau = max(v - peak * peak / (2 * jerk), 0.0) / (peak if peak > 0 else 1.0)
    way = way + v * plateau - peak * (plateau * plateau) / 2
    return side * (way + peak * peak * peak / (6 * (jerk * jerk)))


@compiled
def _sign(x: float) -> float:
    return 1.0 if x > 0 else (-1.0 if x < 0 else 0.0)


@compiled
def _ramp_way(k: float, velocity: float, acceleration: float, jerk: float) -> float:
    """Return the way P(k) of k ramp steps; see :func:`plan_stop`."""
    return k * velocity + _sign(acceleration) * (abs(acceleration) * k * (k + 1) / 2 - jerk * k * (k + 1) * (k + 2) / 6)


@compiled
def _largest_acceleration(room: float, jerk: float) -> float:
    """Invert x -> x + (x - J) + (x - 2J) + ...: with n full steps below x it is (n+1) x - J n(n+1)/2 = room."""
    room = max(room, 0.0)
    n = np.floor((np.sqrt(1 + 8 * room / jerk) - 1) / 2)
    return (room + jerk * n * (n + 1) / 2) / (n + 1)


@compiled
def _pulse(speed: float, limits: TickLimits) -> tuple[float, float]:
    """Return the steps of the shortest symmetric pulse that can take ``speed`` away, and the most that it can take.

    A pulse of N steps min(iJ, (N+1-i)J, A) sums to m^2 J for N = 2m-1 and m(m+1) J for N = 2m, until it reaches the height A;
    with r steps below A on each side it sums to A N - (2 r A - J r(r+1)).
    """
    jerk, height, r, missing = limits.jerk, limits.acceleration, limits.pulse_ramp, limits.pulse_deficit
    steps = 0.0
    if speed > 0:
        if speed <= r * (r + 1) * jerk:
            odd = 2 * np.ceil(np.sqrt(speed / jerk)) - 1
            even = 2 * np.ceil((np.sqrt(1 + 4 * speed / jerk) - 1) / 2)
            steps = min(odd, even)
        else:
            steps = max(np.ceil((speed + missing) / height), 2 * r)
        steps = max(steps, 1.0)
    if steps > 2 * r:
        return steps, height * steps - missing
    half = np.floor((steps + 1) / 2)
    return steps, (half * half if steps % 2 == 1 else half * (half + 1)) * jerk


# ---- the filter's tick ---------------------------------------------------------------------------------------------------------
# Tables (field, b, a) of float64; the fields of the state and of the next tick:

POSITION, VELOCITY, ACCELERATION, TARGET, ON_TARGET, PLAN_STEP, PLAN = range(7)
"""Of the state: what was sent last, the last target and whether it was met, the steps taken on the plan, and the plan."""
FOUND, FOLLOW, MOVED, COASTED, NEXT_PLAN = range(5)
"""Of the next tick: 1 if a move is admissible, 1 if it meets the target, its position, that of the old plan, and the new plan."""
PLAN_FIELDS = 4
"""Of a plan, what it takes to follow it: acceleration, ramp_steps, pulse_steps, pulse_scale."""


@compiled
def _limits_of(table: Array, column: int) -> TickLimits:
    t, c = table, column
    return TickLimits(t[0, c], t[1, c], t[2, c], t[3, c], t[4, c], t[5, c], t[6, c], t[7, c], t[8, c])


@compiled
def _plan_of(table: Array, first: int, row: int, column: int) -> StopPlan:
    t, k = table, first
    return StopPlan(t[k, row, column], t[k + 1, row, column], t[k + 2, row, column], t[k + 3, row, column], 0.0, 0.0, 0.0)


@compiled
def _search(state: tuple[float, float, float, float], low: float, high: float, limits: TickLimits) -> tuple[float, bool]:
    """Return the best acceleration in [low, high] and whether it is admissible, for (position, velocity, last target, target).

    The target's own velocity is taken from its last step, unless that was a jump. Best is the acceleration after which braking
    to that velocity would meet the target; one that lands on the target and can stay with it is better still.
    """
    position, velocity, last, target = state
    feed = target - last
    feed = feed if abs(feed) <= limits.velocity else 0.0
    # Only near a bound can a stop plan cross it.
    near = not (position - limits.stop_way > limits.low and position + limits.stop_way < limits.high)
    exact = min(max(target - position - velocity, low), high)
    best, least, found = exact, np.inf, False
    for k in range(CANDIDATES + 1):
        tried = exact if k == 0 else low + (high - low) * ((k - 1) / (CANDIDATES - 1))
        after = velocity + tried
        moved = position + after
        if near:
            plan = plan_stop(after, tried, limits)
            if not (moved + plan.highest <= limits.high and moved + plan.lowest >= limits.low):
                continue
        # Landing needs the next two accelerations, feed - velocity and then 0, to be within the jerk bound.
        change = feed - after
        if k == 0 and moved == target and abs(change - tried) <= limits.jerk and abs(change) <= limits.jerk:
            return tried, True
        # The backward difference lags the velocity at the tick by half an acceleration.
        miss = abs(moved + stopping_distance(after - feed + tried / 2, tried, limits) - target)
        if not found or miss < least:
            best, least, found = tried, miss, True
    return best, found


@compiled
def propose(state: Array, table: Array, targets: Array, proposal: Array, counts: Array) -> None:
    """Find the next tick's move of each element towards ``targets`` (b, a), NaN where the stop plan is to be followed.

    Args:
        state: (6 + 4, b, a); not changed.
        table: (9, a) limits.
        targets: (b, a).
        proposal: (4 + 4, b, a), written.
        counts: (4, b) rows that could not simply go to their target because of velocity, acceleration, jerk, braking; added to.
    """
    for row in range(targets.shape[0]):
        over = np.zeros(4, np.bool_)
        for column in range(targets.shape[1]):
            limits, position = _limits_of(table, column), state[POSITION, row, column]
            velocity, acceleration = state[VELOCITY, row, column], state[ACCELERATION, row, column]
            hold = np.isnan(targets[row, column])
            target = position if hold else targets[row, column]
            low, high = acceleration_interval(velocity, acceleration, limits)
            wanted = target - position - velocity
            chosen = min(max(wanted, low), high)
            plan = plan_stop(velocity + chosen, chosen, limits)
            moved = position + velocity + chosen
            follow = not hold and state[ON_TARGET, row, column] != 0 and chosen == wanted
            follow = follow and moved + plan.highest <= limits.high and moved + plan.lowest >= limits.low
            found = follow
            if not (follow or hold):
                fast, strong = abs(target - position) > limits.velocity, abs(wanted) > limits.acceleration
                jerky = abs(wanted - acceleration) > limits.jerk
                over[0], over[1], over[2] = over[0] or fast, over[1] or strong, over[2] or jerky
                over[3] = over[3] or not (fast or strong or jerky)
                chosen, found = _search((position, velocity, state[TARGET, row, column], target), low, high, limits)
                plan = plan_stop(velocity + chosen, chosen, limits)
                moved = position + velocity + chosen
            planned, at_rest = plan_at(_plan_of(state, PLAN, row, column), state[PLAN_STEP, row, column] + 1, limits)
            proposal[FOUND, row, column], proposal[FOLLOW, row, column] = found, follow
            proposal[MOVED, row, column] = moved
            proposal[COASTED, row, column] = position if at_rest else position + velocity + planned
            for k in range(PLAN_FIELDS):
                proposal[NEXT_PLAN + k, row, column] = plan[k]
        for k in range(4):
            counts[k, row] += over[k]


@compiled
def way_to_rest(state: Array, table: Array, proposal: Array, every: int) -> Array:
    """Return the proposed positions and, from there on, every ``every``-th place of the way to rest and its end (m, b, a).

    An element whose move was found brakes by its new plan, another by the one that it follows already.
    """
    _, rows, columns = state.shape
    longest = 1
    for row in range(rows):
        for column in range(columns):
            plan = _plan_of(state, PLAN, row, column)
            left = plan.ramp_steps + plan.pulse_steps - state[PLAN_STEP, row, column]
            if proposal[FOUND, row, column]:
                new = _plan_of(proposal, NEXT_PLAN, row, column)
                left = new.ramp_steps + new.pulse_steps
            longest = max(longest, int(left))
    places = np.empty((1 + -(-longest // every), rows, columns))
    for row in range(rows):
        for column in range(columns):
            limits, found = _limits_of(table, column), proposal[FOUND, row, column] != 0
            plan, done = _plan_of(state, PLAN, row, column), state[PLAN_STEP, row, column] + 1
            if found:
                plan = _plan_of(proposal, NEXT_PLAN, row, column)
            left = plan.ramp_steps + plan.pulse_steps - (0.0 if found else done - 1)
            moved = proposal[MOVED if found else COASTED, row, column]
            first, gained, gone = moved - state[POSITION, row, column], 0.0, 0.0
            places[0, row, column] = moved
            for step in range(1, longest + 1):
                gained += plan_at(plan, step if found else done + step, limits)[0]
                gone += first + gained if step <= left else 0.0
                if step % every == 0 or step == longest:
                    places[-(-step // every), row, column] = moved + gone
    return places


@compiled
def commit(state: Array, table: Array, targets: Array, proposal: Array) -> None:
    """Take the proposed moves that are found, and one more step of the old plan elsewhere."""
    for row in range(targets.shape[0]):
        for column in range(targets.shape[1]):
            found, follow = proposal[FOUND, row, column] != 0, proposal[FOLLOW, row, column] != 0
            hold, before = np.isnan(targets[row, column]), state[POSITION, row, column]
            moved = targets[row, column] if follow else proposal[MOVED if found else COASTED, row, column]
            position = min(max(moved, table[0, column]), table[1, column])
            # The state is taken from what is really sent, so rounding never accumulates between the state and the commands.
            velocity = position - before
            state[ACCELERATION, row, column] = velocity - state[VELOCITY, row, column]
            state[VELOCITY, row, column], state[POSITION, row, column] = velocity, position
            state[PLAN_STEP, row, column] += 1
            if found:
                # The plan is the one that was checked: one made from the rounded state could need a tick more.
                state[PLAN_STEP, row, column] = 0
                for k in range(PLAN_FIELDS):
                    state[PLAN + k, row, column] = proposal[NEXT_PLAN + k, row, column]
            state[TARGET, row, column] = position if hold else targets[row, column]
            state[ON_TARGET, row, column] = not hold and position == targets[row, column]
