"""The compiled tick of the safety filter and of the workspace guard give the results of plain array formulas."""

import mujoco
import numpy as np
import pytest
from array_motion import ArrayMotion, Limits

import hardware
from robolearn.deploy.kinematics import WorkspaceGuard
from robolearn.deploy.limits import SafetyLimits
from robolearn.deploy.motion import Motion, tick_limits


def some_limits(rng, dim=3):
    def some(values):
        return tuple(float(v) if rng.random() < 0.75 else None for v in values)

    return SafetyLimits(
        dim=dim,
        control_rate_hz=float(rng.choice([20, 50, 100, 500])),
        position_low=some(np.full(dim, -1.2)),
        position_high=some(np.full(dim, 1.5)),
        max_velocity=some(10 ** rng.uniform(-1, 1, dim)),
        max_acceleration=some(10 ** rng.uniform(-1, 2, dim)),
        max_jerk=some(10 ** rng.uniform(0, 4, dim)),
    )


def some_targets(rng, limits, shape, steps):
    """Jumps, sines, drifts, holds (NaN) and huge values; inside the position bounds, as the filter clips them."""
    t = np.arange(steps)[:, None, None]
    jumps = np.repeat(rng.uniform(-2, 2, (-(-steps // 37), *shape)), 37, axis=0)[:steps]
    sines = 1.6 * np.sin(rng.uniform(0.001, 0.5, (1, *shape)) * t)
    drifts = np.cumsum(rng.normal(0, 0.02, (steps, *shape)), axis=0)
    targets = np.choose(rng.integers(0, 3, (1, shape[0], 1)), [jumps, sines, drifts])
    targets = np.where(rng.random((steps, shape[0], 1)) < 0.02, rng.choice([1e3, -1e300, 1e300], (steps, *shape)), targets)
    targets = np.clip(targets, *limits.inner_bounds())
    return np.where(rng.random((steps // 20 + 1, shape[0], 1)).repeat(20, axis=0)[:steps] < 0.1, np.nan, targets)


def altered(seed, *, guarded):
    """Hold one set of limits to the array formulas; return how many commands were altered for each reason."""
    rng = np.random.default_rng(seed)
    limits, shape = some_limits(rng), (20, 3)

    def guard(positions):
        return ~(np.abs(positions.sum(axis=2)) > 1.1).any(axis=0)

    start = rng.uniform(-0.3, 0.3, shape)
    every = max(int(0.05 * limits.control_rate_hz), 1)
    motion = Motion(limits, shape[0], guard if guarded else None)
    motion.reset(start, np.ones(shape[0], bool))
    table = motion.table
    plain = ArrayMotion(Limits(*table[:5], table[5] > 0), start, guard=guard if guarded else None, guard_every=every)
    counts = np.zeros((5, shape[0]), np.int64)
    for targets in some_targets(rng, limits, shape, 200):
        motion.move(targets, counts)
        np.testing.assert_array_equal(motion.position, plain.move(targets))
    for kind, count in zip(plain.altered, counts, strict=True):
        np.testing.assert_array_equal(count, plain.altered[kind])
    return counts.sum(axis=1)


@pytest.mark.parametrize("guarded", [False, True])
def test_every_command_is_that_of_the_array_formulas_bit_for_bit(guarded):
    # 12 sets of limits x 200 ticks x 20 rows x 3 elements.
    counts = sum(altered(seed, guarded=guarded) for seed in range(12))
    assert (counts[:4] > 100).all()
    assert (counts[4] > 100) == guarded


def test_limits_per_tick_are_worked_out_once():
    # 100 Hz: v 1 -> 0.01, a 5 -> 5e-4, j 100 -> 1e-4; A/J = 5 steps to full height, of which 4 lie below it.
    limits = SafetyLimits(dim=1, control_rate_hz=100.0, max_velocity=(1.0,), max_acceleration=(5.0,), max_jerk=(100.0,))
    _, _, velocity, acceleration, jerk, bounded, ramp, deficit, _ = tick_limits(limits)[:, 0]
    np.testing.assert_allclose([velocity, acceleration, jerk, bounded], [0.01, 5e-4, 1e-4, 1])
    assert ramp == 4
    np.testing.assert_allclose(deficit, 2 * 4 * 5e-4 - 1e-4 * 4 * 5)


@pytest.mark.parametrize("name", ["panda", "ur5e", "gr1", "g1"])
def test_the_guard_finds_what_comparing_every_pair_of_geoms_finds(name):
    spec = hardware.load_robot(name)
    guard, rng = WorkspaceGuard(spec), np.random.default_rng(1)
    model, data = guard._model, guard._data
    low, high = np.maximum(spec.position_low, -3), np.minimum(spec.position_high, 3)
    home = np.array(spec.home)
    reasons = set()
    for k in range(150):
        position = home + rng.uniform(0, 1) * (rng.uniform(low, high) - home)
        reason = guard.violation(position, margin_m=0.01)
        base = data.xmat[guard._base].reshape(3, 3)
        tools = [data.xpos[t] + data.xmat[t].reshape(3, 3) @ spec.model.tcp_offset_m for t in guard._tcp]
        tools = (np.array(tools) - data.xpos[guard._base]) @ base
        np.testing.assert_allclose(guard.tcp_at(position), tools, atol=1e-12)
        outside = ((tools < np.array(spec.workspace.low) + 0.01) | (tools > np.array(spec.workspace.high) - 0.01)).any()
        limit = spec.workspace.min_distance_m + 0.01
        distance = {
            pair: min(
                mujoco.mj_geomDistance(model, data, a, b, limit, None)
                for a in guard._geoms(pair[0])
                for b in guard._geoms(pair[1])
            )
            for pair in spec.workspace.collision_pairs
        }
        touching = [f"{a}/{b}" for (a, b), d in distance.items() if d < limit]
        assert reason == ("workspace" if outside else (touching or [""])[0]), k
        for pair, d in distance.items():
            assert guard.distance(*pair, position, horizon_m=limit) == pytest.approx(d, abs=1e-9)
        reasons.add(reason)
    assert len(reasons) >= 2
