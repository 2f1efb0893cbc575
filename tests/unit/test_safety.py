"""The bounds must hold for any input sequence, so most tests throw adversarial sequences at the filter and measure its output."""

import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE, FeatureSpec, Spaces
from robolearn.deploy.braking import acceleration_interval, make_tick_limits, plan_at, plan_stop, stopping_distance
from robolearn.deploy.limits import SafetyLimits
from robolearn.deploy.safety import KINDS, SafetyFilter

ARM = SafetyLimits(
    dim=2,
    control_rate_hz=100.0,
    position_low=(-2.0, -1.0),
    position_high=(2.0, 1.5),
    position_margin=0.1,
    max_velocity=(1.0, 0.5),
    max_acceleration=(5.0, 8.0),
    max_jerk=(100.0, 60.0),
)


def run(limits, commands, start=None, **arguments):
    """Return filter and outputs (t, b, a), starting at rest."""
    rows = commands.shape[1]
    start = np.zeros((rows, limits.dim)) if start is None else start
    safety = SafetyFilter(limits, num_rows=rows)
    safety.reset(start)
    return safety, np.array(
        [safety.apply(command, now_s=i / limits.control_rate_hz, **arguments) for i, command in enumerate(commands)]
    )


def excess(limits, outputs, start):
    """Return by how much each bound is exceeded, as parts of it; rounding of the differences themselves is taken off."""
    path = np.concatenate([np.repeat(start[None], 3, axis=0), outputs])
    low, high = limits.inner_bounds()
    worst = {"position": max((low - path).max(), (path - high).max())}
    ulp = np.spacing(np.abs(path).max(axis=(0, 1)))
    for order, name in enumerate(("max_velocity", "max_acceleration", "max_jerk"), start=1):
        bound = np.array([np.nan if x is None else x for x in getattr(limits, name) or (None,) * limits.dim])
        largest = np.abs(np.diff(path, n=order, axis=0)).max(axis=(0, 1)) - 2**order * ulp
        worst[name] = np.nanmax(np.append(largest * limits.control_rate_hz**order / bound - 1, -1))
    return worst


def adversarial(rng, steps, rows, dim):
    """Jumps, white noise, random walks, fast sines, bang-bang and saw teeth, with NaN, infinities and huge values strewn in."""
    t = np.arange(steps)[:, None, None]
    kinds = [
        np.repeat(rng.uniform(-3, 3, (-(-steps // 37), rows, dim)), 37, axis=0)[:steps],
        rng.uniform(-3, 3, (steps, rows, dim)),
        np.cumsum(rng.normal(0, 0.02, (steps, rows, dim)), axis=0),
        1.6 * np.sin(rng.uniform(0.001, 0.5, (1, rows, dim)) * t),
        3 * np.sign(np.sin(rng.uniform(0.01, 1, (1, rows, dim)) * t)),
        (rng.uniform(0.0005, 0.05, (1, rows, dim)) * t) % 4 - 2,
    ]
    commands = np.choose(rng.integers(0, len(kinds), (1, rows, 1)), kinds)
    commands = np.where(
        rng.random((steps, rows, 1)) < 0.02, rng.choice([np.nan, np.inf, -np.inf, 1e300], (steps, rows, dim)), commands
    )
    held = rng.random((steps, rows, 1)) < 0.1  # duplicates
    return np.where(held, np.roll(commands, 1, axis=0), commands)


def random_limits(rng):
    dim = 3

    def some(values):
        return tuple(float(v) if rng.random() < 0.75 else None for v in values)

    return SafetyLimits(
        dim=dim,
        control_rate_hz=float(rng.choice([20, 50, 100, 500])),
        position_low=some(np.full(dim, -1.2)),
        position_high=some(np.full(dim, 1.5)),
        position_margin=0.1,
        max_velocity=some(10 ** rng.uniform(-1, 1, dim)),
        max_acceleration=some(10 ** rng.uniform(-1, 2, dim)),
        max_jerk=some(10 ** rng.uniform(0, 4, dim)),
    )


@pytest.mark.parametrize("seed", range(8))
def test_no_bound_is_exceeded_by_any_of_many_random_limits(seed):
    # 8 x 4 limit sets x 100 steps x 60 rows = 192,000 commands.
    rng = np.random.default_rng(seed)
    for _ in range(4):
        limits = random_limits(rng)
        start = rng.uniform(-1.0, 1.3, (60, limits.dim))
        _, outputs = run(limits, adversarial(rng, 100, 60, limits.dim), start)
        assert np.isfinite(outputs).all()
        worst = excess(limits, outputs, start)
        assert max(worst.values()) <= 0, (worst, limits)


def test_no_bound_is_exceeded_over_a_long_run():
    # 1,000 steps x 120 rows = 120,000 commands on one arm, and the filter really is pushed to every bound.
    rng = np.random.default_rng(99)
    start = rng.uniform(-0.9, 1.3, (120, 2))
    safety, outputs = run(ARM, adversarial(rng, 1000, 120, 2), start)
    worst = excess(ARM, outputs, start)
    assert max(worst.values()) <= 0, worst
    assert min(worst[k] for k in ("max_velocity", "max_acceleration", "max_jerk")) > -1e-6
    low, high = ARM.inner_bounds()
    assert (high - outputs.max(axis=(0, 1)) < 1e-3).all()
    assert (outputs.min(axis=(0, 1)) - low < 1e-3).all()
    assert all(
        safety.counts[kind].sum() > 0 for kind in ("non_finite", "position", "velocity", "acceleration", "jerk", "braking")
    )


def test_an_adversary_that_sees_the_state_cannot_exceed_a_bound_either():
    # Always commands away from where the filter is heading, as far as it can; then rushes at the nearer bound.
    rng = np.random.default_rng(7)
    safety, position = SafetyFilter(ARM, num_rows=50), np.zeros((50, 2))
    safety.reset(position)
    outputs, velocity = [], np.zeros((50, 2))
    for step in range(1000):
        away, rush = -np.sign(velocity + 1e-12) * 10, np.sign(position + 1e-12) * 10
        command = np.where(rng.random((50, 1)) < (0.05 if step % 200 < 100 else 0.95), away, rush)
        outputs.append(safety.apply(command, now_s=0.0))
        velocity, position = outputs[-1] - position, outputs[-1]
    worst = excess(ARM, np.array(outputs), np.zeros((50, 2)))
    assert max(worst.values()) <= 0, worst


def test_a_feasible_trajectory_passes_unchanged():
    # 0.15 sin(2t): |v| <= 0.3, |a| <= 0.6, |j| <= 1.2, blended in over a second by a polynomial with three zero derivatives.
    t = np.arange(600) / 100
    blend = np.clip(t, 0, 1) ** 4 * (35 - 84 * np.clip(t, 0, 1) + 70 * np.clip(t, 0, 1) ** 2 - 20 * np.clip(t, 0, 1) ** 3)
    wanted = (blend * 0.15 * np.sin(2 * t))[:, None, None] * np.ones((1, 1, 2))
    safety, outputs = run(ARM, wanted)
    np.testing.assert_array_equal(outputs, wanted)
    assert all(count.sum() == 0 for count in safety.counts.values())


def test_a_jump_is_met_without_overshoot_in_about_the_least_time():
    # Least time for 1 m at v 1, a 5, j 100: 1/1 + 1/5 + 5/100 = 1.25 s = 125 ticks.
    _, outputs = run(ARM, np.full((200, 1, 2), [1.0, 0.0]))
    path = outputs[:, 0, 0]
    assert path.max() <= 1 + 1e-3
    arrived = np.flatnonzero(np.abs(path - 1) < 1e-3)[0]
    assert 118 <= arrived <= 130
    assert (path[140:] == 1.0).all()


def test_a_moving_target_is_caught_and_then_followed_exactly():
    ramp = 0.5 + 0.004 * np.arange(300)  # 0.4 m/s, joint 0 allows 1 m/s; the first command is a jump
    _, outputs = run(ARM, np.stack([ramp, 0 * ramp], axis=1)[:, None])
    lag = ramp - outputs[:, 0, 0]
    assert (lag[150:] == 0).all()


def test_a_bound_is_approached_and_held():
    _, outputs = run(ARM, np.full((600, 1, 2), 10.0))
    _, high = ARM.inner_bounds()
    assert (outputs[-1, 0] <= high).all()
    np.testing.assert_allclose(outputs[-1, 0], high, atol=2e-3)


def test_refused_commands_ramp_down_and_hold():
    # Moving at 0.5 m/s when the command turns to NaN: it stops, within v^2/2a + ..., and stays.
    commands = np.concatenate([np.full((60, 1, 2), 1.2), np.full((100, 1, 2), np.nan)])
    safety, outputs = run(ARM, commands)
    speed = np.diff(outputs[:, 0], axis=0)
    assert (speed[59] > 0).all()
    assert (np.diff(np.abs(speed[62:]), axis=0) <= 1e-12).all()
    assert (speed[-50:] == 0).all()
    assert safety.counts["non_finite"].tolist() == [100]


def test_position_bounds_alone_clip_at_once():
    spaces = Spaces("r", {STATE: FeatureSpec((1,), names=("q",))}, FeatureSpec((2,), names=("q", "dx")), (-1, -1), (1, 2), 20.0)
    limits = SafetyLimits.from_spaces(spaces)
    assert limits.rest_command == (None, 0.0)
    commands = np.array([[[0.5, 0.5]], [[3.0, -3.0]], [[np.nan, 0.0]], [[-0.2, 0.1]]])
    safety, outputs = run(limits, commands)
    # A refused command holds the position q, and stops the rate dx.
    assert outputs[:, 0].tolist() == [[0.5, 0.5], [1, -1], [1, 0], [-0.2, 0.1]]
    assert {k: v.tolist() for k, v in safety.counts.items() if v.any()} == {"non_finite": [1], "position": [1]}


@pytest.mark.parametrize("command", [np.zeros((1, 3)), np.zeros(2), [["a", "b"]], [[None, 1.0]], 1.0, [[1.0, 2.0], [3.0]]])
def test_a_misshapen_command_is_refused_as_a_whole(command):
    safety = SafetyFilter(ARM, num_rows=1)
    safety.reset(np.array([[0.2, 0.3]]))
    assert safety.apply(command, now_s=0.0).tolist() == [[0.2, 0.3]]
    assert safety.counts["shape"].tolist() + safety.counts["non_finite"].tolist() in ([1, 0], [0, 1])


def test_one_bad_element_refuses_its_whole_row_and_no_other():
    limits = SafetyLimits(dim=2, control_rate_hz=10.0, position_low=(-1, -1), position_high=(1, 1))
    _, outputs = run(limits, np.array([[[0.5, np.inf], [0.5, 0.5]]]))
    assert outputs[0].tolist() == [[0, 0], [0.5, 0.5]]


def test_old_commands_and_observations_ramp_down():
    limits = SafetyLimits(dim=1, control_rate_hz=10.0, max_velocity=(1.0,), max_command_age_s=0.2, max_observation_age_s=0.5)
    safety = SafetyFilter(limits, num_rows=2)
    safety.reset(np.zeros((2, 1)))

    def apply(now, command_stamp, observation_stamp):
        return safety.apply(np.ones((2, 1)), now_s=now, command_stamp_s=command_stamp, observation_stamp_s=observation_stamp)[
            :, 0
        ]

    assert apply(1.0, 0.9, 0.9).tolist() == pytest.approx([0.1, 0.1])
    assert apply(1.1, np.array([0.95, 0.8]), 0.9).tolist() == pytest.approx([0.2, 0.1])  # 0.3 s is too old
    assert apply(1.2, 1.2, np.array([0.6, 1.2])).tolist() == pytest.approx([0.2, 0.2])  # 0.6 s is too old
    assert apply(1.3, 1.6, 1.3).tolist() == pytest.approx([0.2, 0.2])  # from the future: the clock has jumped
    assert apply(1.4, np.nan, 1.4).tolist() == pytest.approx([0.2, 0.2])
    assert safety.counts["command_age"].tolist() == [2, 3]
    assert safety.counts["observation_age"].tolist() == [1, 0]
    with pytest.raises(RefusedError, match=r"max_command_age_s=0\.2 is set"):
        safety.apply(np.ones((2, 1)), now_s=1.5, observation_stamp_s=1.5)


def test_targets_stay_near_the_measured_position():
    limits = SafetyLimits(dim=1, control_rate_hz=10.0, max_relative_target=(0.3,))
    safety = SafetyFilter(limits, num_rows=2)
    safety.reset(np.zeros((2, 1)))
    assert safety.apply(np.array([[1.0], [0.1]]), now_s=0, measured=np.array([[0.2], [0.0]])).tolist() == [[0.5], [0.1]]
    assert safety.counts["relative_target"].tolist() == [1, 0]
    # A measurement that is not a number is as good as none: hold.
    assert safety.apply(np.ones((2, 1)), now_s=0, measured=np.array([[np.nan], [0.0]])).tolist() == [[0.5], [0.3]]
    assert safety.counts["observation_age"].tolist() == [1, 0]
    with pytest.raises(RefusedError, match="measured"):
        safety.apply(np.ones((2, 1)), now_s=0)


def test_rows_are_independent_and_reset_alone():
    rng = np.random.default_rng(3)
    commands = adversarial(rng, 80, 4, 2)
    _, together = run(ARM, commands)
    for row in range(4):
        _, alone = run(ARM, commands[:, row : row + 1])
        np.testing.assert_array_equal(together[:, row], alone[:, 0])
    safety, _ = run(ARM, commands)
    before = safety.counts
    safety.reset(np.full((4, 2), 0.4), np.array([False, True, False, False]))
    hold = np.full((4, 2), np.nan)
    assert safety.apply(hold, now_s=0.0)[1].tolist() == [0.4, 0.4]
    assert safety.counts["jerk"][0] == before["jerk"][0] > 0
    assert safety.counts["jerk"][1] == 0


def test_limits_are_read_only_while_active():
    safety = SafetyFilter(ARM, num_rows=1)
    with pytest.raises(AttributeError):
        safety.limits = ARM
    with pytest.raises(AttributeError):
        safety.limits.position_margin = 0.0
    with pytest.raises(ValueError, match="read-only"):
        safety._motion.table[:] = 100.0
    with pytest.raises(ValueError, match="read-only"):
        safety._high[:] = 100.0
    safety.reset(np.zeros((1, 2)))
    safety.counts["jerk"][:] = 5  # a copy
    assert safety.counts["jerk"].tolist() == [0]
    assert tuple(safety.counts) == KINDS


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_velocity": (1.0,)}, "max_velocity must have 2 entries, got 1"),
        ({"max_jerk": (1.0, 0.0)}, r"max_jerk\[1\]=0.0 must be positive"),
        ({"position_low": (np.nan, 0.0)}, r"position_low\[0\]=nan"),
        (
            {"position_low": (0.95, 0.0), "position_high": (1.0, 1.0), "position_margin": 0.05},
            r"No position is left in dimensions",
        ),
        ({"position_margin": -1.0}, "position_margin=-1.0"),
        ({"max_command_age_s": 0.0}, "max_command_age_s=0.0"),
        ({"control_rate_hz": 0.0}, "control_rate_hz=0.0"),
        ({"position_low": (-1.0, -1.0), "rest_command": (-2.0, None)}, r"rest_command\[0\]=-2.0 must lie in"),
    ],
)
def test_bad_limits_are_named(change, words):
    with pytest.raises(RefusedError, match=words):
        SafetyLimits(**({"dim": 2, "control_rate_hz": 10.0} | change))


def test_a_filter_must_start_inside_its_bounds():
    safety = SafetyFilter(ARM, num_rows=1)
    with pytest.raises(RefusedError, match="must be reset"):
        safety.apply(np.zeros((1, 2)), now_s=0.0)
    with pytest.raises(RefusedError, match=r"start \[\[5.0, 0.0\]\] must lie in"):
        safety.reset(np.array([[5.0, 0.0]]))
    with pytest.raises(RefusedError, match="must lie in"):
        safety.reset(np.array([[np.nan, 0.0]]))
    with pytest.raises(RefusedError, match=r"must have shape \(1, 2\)"):
        safety.reset(np.zeros(2))


def tick_limits(velocity, acceleration, jerk):
    return make_tick_limits(-np.inf, np.inf, float(velocity), float(acceleration), float(jerk), True)


def test_acceleration_interval_worked_by_hand():
    # J = 1, room 6 = 3 + 2 + 1: the largest acceleration that can be ramped down in time is 3; jerk allows 2 -> 1 to 3.
    limits = tick_limits(velocity=6, acceleration=10, jerk=1)
    assert acceleration_interval(0.0, 2.0, limits) == (1.0, 3.0)
    # Room 4 = x + (x-1) + (x-2) gives x = 7/3.
    assert acceleration_interval(2.0, 2.0, limits)[1] == pytest.approx(7 / 3)


def test_stop_plan_worked_by_hand():
    # v = 4, a = 0, J = 1: the pulse -1 -2 -1 takes away 4 = 2^2 in 3 steps: velocities 3, 1, 0, way 4 (3-1)/2 = 4.
    limits = tick_limits(velocity=100, acceleration=10, jerk=1)
    plan = plan_stop(4.0, 0.0, limits)
    assert (plan.ramp_steps, plan.pulse_steps, plan.displacement, plan.highest, plan.lowest) == (0, 3, 4, 4, 0)
    # v = 1, a = 2: the ramp adds 1, then 0 -> velocity 2 twice; the pulse -1 -1 (N = 2) goes 2 (2-1)/2 = 1: way 2 + 2 + 1.
    plan = plan_stop(1.0, 2.0, limits)
    assert (plan.ramp_steps, plan.pulse_steps, plan.displacement) == (2, 2, 5)


@pytest.mark.parametrize("seed", range(3))
def test_stop_plans_do_what_they_say(seed):
    """Follow plans tick by tick: at rest at the end, in bounds, at the foretold place and inside the extremes."""
    rng = np.random.default_rng(seed)
    for _ in range(500):
        jerk, acceleration = 10 ** rng.uniform(-2, 0), 10 ** rng.uniform(-1, 1)
        limits = tick_limits(velocity=50, acceleration=acceleration, jerk=jerk)
        a0, v0 = rng.uniform(-1, 1) * acceleration, rng.uniform(-5, 5) * jerk
        plan = plan_stop(v0, a0, limits)
        steps = int(plan.ramp_steps + plan.pulse_steps) + 2
        a = np.array([plan_at(plan, float(k), limits)[0] for k in range(1, steps + 1)])
        v = v0 + np.cumsum(a)
        p = np.cumsum(v)
        np.testing.assert_allclose(v[-1], 0, atol=1e-9)
        np.testing.assert_allclose(p[-1], plan.displacement, atol=1e-7)
        np.testing.assert_allclose(max(p.max(), 0), plan.highest, atol=1e-7)
        np.testing.assert_allclose(min(p.min(), 0), plan.lowest, atol=1e-7)
        assert (np.abs(a) <= acceleration * (1 + 1e-9)).all()
        assert (np.abs(np.diff(np.append(a0, a))) <= jerk * (1 + 1e-9)).all()


def test_stopping_distance_worked_by_hand():
    # Continuous time, v = 1, a = 0, J = 1, A large: peak sqrt(J v) = 1, two ramps of 1 s; way 5/6 + 1/6 = 1.
    limits = tick_limits(velocity=10, acceleration=10, jerk=1)
    assert stopping_distance(1.0, 0.0, limits) == pytest.approx(1.0)
    assert stopping_distance(-1.0, 0.0, limits) == pytest.approx(-1.0)
    # A = 0.5: ramps of 0.5 s take 1/8 each, the plateau the other 3/4 in 1.5 s: by symmetry the mean velocity is 1/2 over 2.5 s.
    limits = tick_limits(velocity=10, acceleration=0.5, jerk=1)
    assert stopping_distance(1.0, 0.0, limits) == pytest.approx(1.25)
