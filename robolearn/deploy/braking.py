"""Braking under jerk limits, in discrete time and per-tick units; pure functions of arrays, used by the safety filter.

A command sequence p_0, p_1, ... has velocity v_k = p_k - p_{k-1}, acceleration a_k = v_k - v_{k-1} and jerk a_k - a_{k-1}, all
per tick: limits in SI units are multiplied by dt, dt^2, dt^3 once. Everything here is elementwise, so rows and joints need no
loop.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from robolearn.core.types import Array


@dataclass(frozen=True)
class TickLimits:
    """Bounds (a,) per tick; infinite positions mean no bound, and a bound that was not asked for is set where it never binds."""

    low: Array
    high: Array
    velocity: Array
    acceleration: Array
    jerk: Array
    jerk_bounded: Array
    """(a,) bool: where False the acceleration may change at once, so braking needs no ramp."""

    @cached_property
    def pulse_ramp(self) -> Array:
        """(a,) steps in which a pulse rises through multiples of the jerk that are below the largest acceleration."""
        return np.ceil(self.acceleration / self.jerk) - 1

    @cached_property
    def pulse_deficit(self) -> Array:
        """(a,) what a full pulse of N steps takes away less than N times the largest acceleration, because of both ramps."""
        return 2 * self.pulse_ramp * self.acceleration - self.jerk * self.pulse_ramp * (self.pulse_ramp + 1)

    @cached_property
    def stop_way(self) -> Array:
        """(a,) more than any step and the stop plan after it can cover: the ramp and half of the longest pulse at full speed."""
        pulse_steps, _ = _pulse(self.velocity, self)
        return self.velocity * (np.ceil(self.acceleration / self.jerk) + pulse_steps / 2 + 2)

    def at(self, columns: Array) -> TickLimits:
        """Return the bounds (n,) of the elements in ``columns`` (n,)."""
        picked = TickLimits(*(getattr(self, field.name)[columns] for field in fields(self)))
        for name in ("pulse_ramp", "pulse_deficit", "stop_way"):
            picked.__dict__[name] = getattr(self, name)[columns]
        return picked


@dataclass(frozen=True)
class StopPlan:
    """Accelerations that bring each element to rest: ramp the acceleration to zero, then one symmetric pulse.

    The pulse works against the velocity that is left. Step k = 1, 2, ... of the plan: for k <= ramp_steps the acceleration is
    sign(a) max(|a| - k J, 0); then, with i = k - ramp_steps in 1..pulse_steps, it is
    pulse_scale min(i J, (pulse_steps + 1 - i) J, A); afterwards everything is zero.
    """

    acceleration: Array
    ramp_steps: Array
    pulse_steps: Array
    pulse_scale: Array
    """Signed, in [-1, 1]: minus the sign of the velocity after the ramp, times the part of the full pulse that is needed."""
    displacement: Array
    """Where the plan ends, relative to where it starts."""
    lowest: Array
    highest: Array
    """Extreme positions on the way, relative to the start."""

    def at(self, step: Array, limits: TickLimits) -> tuple[Array, Array]:
        """Return the acceleration of plan step ``step`` (1-based) and whether the element is at rest after it."""
        ramp = np.sign(self.acceleration) * np.maximum(np.abs(self.acceleration) - step * limits.jerk, 0)
        i = step - self.ramp_steps
        height = np.minimum(np.minimum(i, self.pulse_steps + 1 - i) * limits.jerk, limits.acceleration)
        pulse = self.pulse_scale * np.maximum(height, 0)
        return np.where(step <= self.ramp_steps, ramp, pulse), i >= self.pulse_steps


def acceleration_interval(velocity: Array, acceleration: Array, limits: TickLimits) -> tuple[Array, Array]:
    """Return the accelerations [low, high] of the next tick that keep jerk, acceleration and velocity in bounds for good.

    An acceleration x >= 0 commits to the velocity gain x + (x - J) + (x - 2J) + ... while it is ramped down, so it must fit
    into the room that is left below the velocity bound. The interval is never empty if the state came from this rule: ramping
    down is in it.
    """
    high = _largest_acceleration(limits.velocity - velocity, limits.jerk)
    low = -_largest_acceleration(limits.velocity + velocity, limits.jerk)
    high = np.minimum(np.minimum(high, limits.acceleration), acceleration + limits.jerk)
    low = np.maximum(np.maximum(low, -limits.acceleration), acceleration - limits.jerk)
    return low, np.maximum(low, high)


def plan_stop(velocity: Array, acceleration: Array, limits: TickLimits) -> StopPlan:
    """Return the plan that brings an element with this velocity and acceleration to rest, and where it passes.

    With alpha = |a| and n = floor(alpha / J), the velocity after k ramp steps is v_k = v + sign(a) (k alpha - J k(k+1)/2) and
    the way P(k) = k v + sign(a) (alpha k(k+1)/2 - J k(k+1)(k+2)/6). A symmetric pulse of N steps from velocity w to rest goes w
    (N-1)/2.
    """
    alpha, sign, jerk = np.abs(acceleration), np.sign(acceleration), limits.jerk
    n = np.where(limits.jerk_bounded, np.floor(alpha / jerk), 0)
    ramp_steps = np.where(limits.jerk_bounded, np.ceil(alpha / jerk), 0)
    coast = velocity + sign * (n * alpha - jerk * n * (n + 1) / 2)

    def way(k: Array) -> Array:
        return k * velocity + sign * (alpha * k * (k + 1) / 2 - jerk * k * (k + 1) * (k + 2) / 6)

    pulse_steps, capacity = _pulse(np.abs(coast), limits)
    displacement = way(n) + (ramp_steps - n) * coast + coast * np.maximum(pulse_steps - 1, 0) / 2
    # Where the ramp reverses the velocity, the extreme position lies at its last step before the reversal.
    slope = alpha - jerk / 2
    root = (slope - np.sqrt(np.maximum(slope**2 - 2 * jerk * np.abs(velocity), 0))) / jerk
    turn = np.where(velocity * coast < 0, np.clip(np.floor(root), 0, n), 0)
    extreme = way(turn)
    return StopPlan(
        acceleration=acceleration,
        ramp_steps=ramp_steps,
        pulse_steps=pulse_steps,
        pulse_scale=-coast / np.where(capacity > 0, capacity, 1),
        displacement=displacement,
        lowest=np.minimum(np.minimum(extreme, displacement), 0),
        highest=np.maximum(np.maximum(extreme, displacement), 0),
    )


def stopping_distance(velocity: Array, acceleration: Array, limits: TickLimits) -> Array:
    """Return the signed way to rest under time-optimal braking in continuous time; used to steer, not to guarantee.

    Let w = v + a|a| / (2J), the velocity once the acceleration is ramped out, be positive (else mirror). The acceleration falls
    to -P, stays and returns, with P = min(A, sqrt(J v + a^2/2)); each phase's way is a cubic in its duration.
    """
    jerk = limits.jerk
    side = np.where(velocity + acceleration * np.abs(acceleration) / (2 * jerk) >= 0, 1.0, -1.0)
    v, a = side * velocity, side * acceleration
    peak = np.minimum(limits.acceleration, np.sqrt(np.maximum(jerk * v + a**2 / 2, 0)))
    ramp = (a + peak) / jerk
    way = v * ramp + a * ramp**2 / 2 - jerk * ramp**3 / 6
    v = v + (a**2 - peak**2) / (2 * jerk)
    plateau = np.maximum(v - peak**2 / (2 * jerk), 0) / np.where(peak > 0, peak, 1)
    way = way + v * plateau - peak * plateau**2 / 2
    return side * (way + peak**3 / (6 * jerk**2))


def _largest_acceleration(room: Array, jerk: Array) -> Array:
    """Invert x -> x + (x - J) + (x - 2J) + ...: with n full steps below x it is (n+1) x - J n(n+1)/2 = room."""
    room = np.maximum(room, 0)
    n = np.floor((np.sqrt(1 + 8 * room / jerk) - 1) / 2)
    return (room + jerk * n * (n + 1) / 2) / (n + 1)


def _pulse(speed: Array, limits: TickLimits) -> tuple[Array, Array]:
    """Return the steps of the shortest symmetric pulse that can take ``speed`` away, and the most that it can take.

    A pulse of N steps min(iJ, (N+1-i)J, A) sums to m^2 J for N = 2m-1 and m(m+1) J for N = 2m, until it reaches the height A;
    with r steps below A on each side it sums to A N - (2 r A - J r(r+1)).
    """
    jerk, height, r, missing = limits.jerk, limits.acceleration, limits.pulse_ramp, limits.pulse_deficit
    odd = 2 * np.ceil(np.sqrt(speed / jerk)) - 1
    even = 2 * np.ceil((np.sqrt(1 + 4 * speed / jerk) - 1) / 2)
    flat = np.ceil((speed + missing) / height)
    steps = np.where(speed <= r * (r + 1) * jerk, np.minimum(odd, even), np.maximum(flat, 2 * r))
    steps = np.where(speed > 0, np.maximum(steps, 1), 0)
    half = np.floor((steps + 1) / 2)
    capacity = np.where(steps <= 2 * r, np.where(steps % 2 == 1, half**2, half * (half + 1)) * jerk, height * steps - missing)
    return steps, capacity
