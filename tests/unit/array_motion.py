"""The safety filter's tick in plain array formulas, to hold the compiled one to: written first, and slower."""

from dataclasses import dataclass, fields

import numpy as np

CANDIDATES = 17


@dataclass
class Limits:
    low: np.ndarray
    high: np.ndarray
    velocity: np.ndarray
    acceleration: np.ndarray
    jerk: np.ndarray
    jerk_bounded: np.ndarray

    def __post_init__(self):
        self.pulse_ramp = np.ceil(self.acceleration / self.jerk) - 1
        self.pulse_deficit = 2 * self.pulse_ramp * self.acceleration - self.jerk * self.pulse_ramp * (self.pulse_ramp + 1)
        pulse_steps, _ = pulse(self.velocity, self)
        self.stop_way = self.velocity * (np.ceil(self.acceleration / self.jerk) + pulse_steps / 2 + 2)

    def at(self, columns):
        return Limits(*(getattr(self, field.name)[columns] for field in fields(self)))


@dataclass
class Plan:
    acceleration: np.ndarray
    ramp_steps: np.ndarray
    pulse_steps: np.ndarray
    pulse_scale: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    def at(self, step, limits):
        ramp = np.sign(self.acceleration) * np.maximum(np.abs(self.acceleration) - step * limits.jerk, 0)
        i = step - self.ramp_steps
        height = np.minimum(np.minimum(i, self.pulse_steps + 1 - i) * limits.jerk, limits.acceleration)
        return np.where(step <= self.ramp_steps, ramp, self.pulse_scale * np.maximum(height, 0)), i >= self.pulse_steps


def largest_acceleration(room, jerk):
    room = np.maximum(room, 0)
    n = np.floor((np.sqrt(1 + 8 * room / jerk) - 1) / 2)
    return (room + jerk * n * (n + 1) / 2) / (n + 1)


def acceleration_interval(velocity, acceleration, limits):
    high = largest_acceleration(limits.velocity - velocity, limits.jerk)
    low = -largest_acceleration(limits.velocity + velocity, limits.jerk)
    high = np.minimum(np.minimum(high, limits.acceleration), acceleration + limits.jerk)
    low = np.maximum(np.maximum(low, -limits.acceleration), acceleration - limits.jerk)
    return low, np.maximum(low, high)


def pulse(speed, limits):
    jerk, height, r, missing = limits.jerk, limits.acceleration, limits.pulse_ramp, limits.pulse_deficit
    odd = 2 * np.ceil(np.sqrt(speed / jerk)) - 1
    even = 2 * np.ceil((np.sqrt(1 + 4 * speed / jerk) - 1) / 2)
    flat = np.ceil((speed + missing) / height)
    steps = np.where(speed <= r * (r + 1) * jerk, np.minimum(odd, even), np.maximum(flat, 2 * r))
    steps = np.where(speed > 0, np.maximum(steps, 1), 0)
    half = np.floor((steps + 1) / 2)
    capacity = np.where(steps <= 2 * r, np.where(steps % 2 == 1, half**2, half * (half + 1)) * jerk, height * steps - missing)
    return steps, capacity


def plan_stop(velocity, acceleration, limits):
    alpha, sign, jerk = np.abs(acceleration), np.sign(acceleration), limits.jerk
    n = np.where(limits.jerk_bounded, np.floor(alpha / jerk), 0)
    ramp_steps = np.where(limits.jerk_bounded, np.ceil(alpha / jerk), 0)
    coast = velocity + sign * (n * alpha - jerk * n * (n + 1) / 2)

    def way(k):
        return k * velocity + sign * (alpha * k * (k + 1) / 2 - jerk * k * (k + 1) * (k + 2) / 6)

    pulse_steps, capacity = pulse(np.abs(coast), limits)
    displacement = way(n) + (ramp_steps - n) * coast + coast * np.maximum(pulse_steps - 1, 0) / 2
    slope = alpha - jerk / 2
    root = (slope - np.sqrt(np.maximum(slope**2 - 2 * jerk * np.abs(velocity), 0))) / jerk
    extreme = way(np.where(velocity * coast < 0, np.clip(np.floor(root), 0, n), 0))
    lowest, highest = np.minimum(extreme, displacement), np.maximum(extreme, displacement)
    scale = -coast / np.where(capacity > 0, capacity, 1)
    return Plan(acceleration, ramp_steps, pulse_steps, scale, np.minimum(lowest, 0), np.maximum(highest, 0))


def stopping_distance(velocity, acceleration, limits):
    jerk = limits.jerk
    side = np.where(velocity + acceleration * np.abs(acceleration) / (2 * jerk) >= 0, 1.0, -1.0)
    v, a = side * velocity, side * acceleration
    peak = np.minimum(limits.acceleration, np.sqrt(np.maximum(jerk * v + a**2 / 2, 0)))
    ramp = (a + peak) / jerk
    # Cubes as products: a power is rounded in another way on each machine.
    way = v * ramp + a * ramp**2 / 2 - jerk * (ramp * ramp * ramp) / 6
    v = v + (a**2 - peak**2) / (2 * jerk)
    plateau = np.maximum(v - peak**2 / (2 * jerk), 0) / np.where(peak > 0, peak, 1)
    way = way + v * plateau - peak * plateau**2 / 2
    return side * (way + (peak * peak * peak) / (6 * jerk**2))


class ArrayMotion:
    """Takes the limits per tick, and targets (b, a) with NaN where the stop plan is to be followed."""

    def __init__(self, limits, start, *, guard=None, guard_every=1):
        self.limits, self.guard, self.every = limits, guard, guard_every
        self.position, self.target = start.copy(), start.copy()
        self.velocity, self.acceleration, self.step = np.zeros(start.shape), np.zeros(start.shape), np.zeros(start.shape)
        self.on_target = np.ones(start.shape, bool)
        self.plan = plan_stop(self.velocity, self.acceleration, limits)
        self.altered = dict.fromkeys(("velocity", "acceleration", "jerk", "braking", "guard"), 0)

    def move(self, targets):
        p, v, a, limits = self.position, self.velocity, self.acceleration, self.limits
        hold = np.isnan(targets)
        target = np.where(hold, p, targets)
        low, high = acceleration_interval(v, a, limits)
        wanted = target - p - v
        chosen = np.clip(wanted, low, high)
        plan = plan_stop(v + chosen, chosen, limits)
        inside = (p + v + chosen + plan.highest <= limits.high) & (p + v + chosen + plan.lowest >= limits.low)
        follow = ~hold & self.on_target & (chosen == wanted) & inside
        found, searched = follow.copy(), ~(follow | hold)
        if searched.any():
            self.count(target, wanted, searched)
            chosen[searched], found[searched] = self.search(target, low, high, searched)
            plan = plan_stop(v + chosen, chosen, limits)
        planned, at_rest = self.plan.at(self.step + 1, limits)
        moved = np.where(found, p + v + chosen, np.where(at_rest, p, p + v + planned))
        if self.guard is not None and found.any():
            allowed = self.allowed(moved, plan, found)
            found, follow = found & allowed, follow & allowed
            moved = np.where(found, p + v + chosen, np.where(at_rest, p, p + v + planned))
        self.position = np.clip(np.where(follow, target, moved), limits.low, limits.high)
        self.velocity = self.position - p
        self.acceleration = self.velocity - v
        self.step = np.where(found, 0, self.step + 1)
        self.plan = Plan(*(np.where(found, getattr(plan, f.name), getattr(self.plan, f.name)) for f in fields(Plan)))
        self.target = np.where(hold, self.position, target)
        self.on_target = ~hold & (self.position == target)
        return self.position

    def search(self, target, low, high, searched):
        rows, columns = np.nonzero(searched)
        limits = self.limits.at(columns)
        position, velocity, target, last, low, high = (
            array[rows, columns] for array in (self.position, self.velocity, target, self.target, low, high)
        )
        feed = target - last
        feed = np.where(np.abs(feed) <= limits.velocity, feed, 0)
        exact = np.clip(target - position - velocity, low, high)
        tried = np.concatenate([exact[None], low + (high - low) * np.linspace(0, 1, CANDIDATES)[:, None]])
        after = velocity + tried
        moved = position + after
        miss = np.abs(moved + stopping_distance(after - feed + tried / 2, tried, limits) - target)
        change = feed - after[0]
        lands = (moved[0] == target) & (np.abs(change - tried[0]) <= limits.jerk) & (np.abs(change) <= limits.jerk)
        miss[0] = np.where(lands, -1, miss[0])
        plans = plan_stop(after, tried, limits)
        admissible = (moved + plans.highest <= limits.high) & (moved + plans.lowest >= limits.low)
        best = np.argmin(np.where(admissible, miss, np.inf), axis=0), np.arange(len(rows))
        return tried[best], admissible[best]

    def allowed(self, moved, plan, found):
        left = np.where(found, plan.ramp_steps + plan.pulse_steps, self.plan.ramp_steps + self.plan.pulse_steps - self.step)
        step = np.arange(1, max(int(left.max()), 1) + 1)[:, None, None]
        accelerations = np.where(found, plan.at(step, self.limits)[0], self.plan.at(self.step + 1 + step, self.limits)[0])
        velocity = moved - self.position + np.cumsum(accelerations, axis=0)
        way = moved + np.cumsum(np.where(step <= left, velocity, 0), axis=0)
        allowed = self.guard(np.concatenate([moved[None], way[self.every - 1 :: self.every], way[-1:]]))
        self.altered["guard"] += ~allowed
        return allowed[:, None]

    def count(self, target, wanted, searched):
        over = {
            "velocity": np.abs(target - self.position) > self.limits.velocity,
            "acceleration": np.abs(wanted) > self.limits.acceleration,
            "jerk": np.abs(wanted - self.acceleration) > self.limits.jerk,
        }
        over["braking"] = ~(over["velocity"] | over["acceleration"] | over["jerk"])
        for kind, elements in over.items():
            self.altered[kind] = self.altered[kind] + (searched & elements).any(axis=1)
