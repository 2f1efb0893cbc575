"""Curves of several seeds: the interquartile mean and its bands, worked by hand."""

import json

import numpy as np
import pytest
from scipy import stats

from robolearn.core.errors import RefusedError
from robolearn.evaluate.curves import RunCurve, joined_curve


def curve(*successes, n=50, steps=None, rate=100.0):
    steps = steps or tuple(1000 * i for i in range(len(successes)))
    return RunCurve(tuple(steps), tuple(s / rate for s in steps), tuple(successes), (n,) * len(successes))


def test_the_center_is_the_mean_of_the_middle_half():
    # Five runs at step 0: 10 20 30 40 50 of 50; floor(5 / 4) = 1 is cut at each end: (20 + 30 + 40) / 3 / 50 = 0.6.
    # At step 1000: 0 0 50 50 50 -> (0 + 50 + 50) / 3 / 50 = 2/3.
    runs = [curve(10, 50), curve(30, 50), curve(50, 0), curve(40, 50), curve(20, 0)]
    joined = joined_curve(runs, np.random.default_rng(0))
    np.testing.assert_allclose(joined.center, [0.6, 2 / 3])
    assert (joined.runs, joined.band) == (5, "runs")


def test_three_runs_are_too_few_to_cut_any_and_their_band_is_known():
    # floor(3 / 4) = 0 is cut: the plain mean. Runs of 0, 0, 1: of 27 resamples 8 have mean 0 and 1 has mean 1, both above 2.5 %.
    # Runs of 0.4, 0.5, 0.6: mean 0.4 and mean 0.6 have 1/27 = 3.7 % each, so the band is all of [0.4, 0.6].
    runs = [curve(0, 20), curve(0, 25), curve(50, 30)]
    joined = joined_curve(runs, np.random.default_rng(0))
    np.testing.assert_allclose(joined.center, [1 / 3, 0.5])
    np.testing.assert_allclose(joined.low, [0.0, 0.4])
    np.testing.assert_allclose(joined.high, [1.0, 0.6])


def test_one_run_has_a_band_over_its_episodes_only():
    joined = joined_curve([curve(0, 50, n=50)], np.random.default_rng(0))
    assert (joined.runs, joined.band) == (1, "episodes")
    # No success in 50: (1 - p)^50 = 0.025.
    assert (joined.low[0], joined.high[0]) == (0.0, pytest.approx(1 - 0.025**0.02))
    assert (joined.low[1], joined.high[1]) == (pytest.approx(0.025**0.02), 1.0)


def test_the_band_is_the_percentile_of_trimmed_means_of_resampled_runs():
    # The definition, drawn anew with another seed: quantiles of scipy's trimmed mean over 8 runs drawn with replacement.
    successes = np.array([12, 18, 22, 25, 31, 36, 41, 47])
    joined = joined_curve([curve(int(k)) for k in successes], np.random.default_rng(0))
    drawn = np.random.default_rng(1).choice(successes / 50, (20_000, 8))
    want = np.quantile(stats.trim_mean(drawn, 0.25, axis=1), [0.025, 0.975])
    np.testing.assert_allclose([joined.low[0], joined.high[0]], want, atol=0.02)


def test_runs_are_joined_where_all_were_evaluated():
    # The second run was stopped after 1,000 steps and made 50 steps/s: mean of 10 s and 20 s.
    runs = [curve(10, 20, 30), curve(20, 40, rate=50.0)]
    joined = joined_curve(runs, np.random.default_rng(0))
    assert joined.env_steps.tolist() == [0, 1000]
    assert joined.wall_s.tolist() == [0.0, 15.0]
    with pytest.raises(RefusedError, match="no evaluation at common control steps"):
        joined_curve([curve(1, steps=(0,)), curve(1, steps=(8,))], np.random.default_rng(0))


def test_steps_to_a_success_and_the_deepest_dip():
    # 25 -> 20 -> 35 -> 45 -> 44 of 50: 0.9 first at 3,000 steps; the dip is (25 - 20) / 50.
    run = curve(25, 20, 35, 45, 44)
    joined = joined_curve([run], np.random.default_rng(0))
    assert [joined.steps_to(s) for s in (0.5, 0.7, 0.9, 0.91)] == [0, 2000, 3000, None]
    assert run.dip_depth == pytest.approx(0.1)
    assert curve(25, 26).dip_depth == 0
    assert run.steps_per_s == 100


def test_a_curve_is_read_from_what_a_run_leaves(tmp_path):
    row = {"env_steps": 0, "updates": 0, "wall_s": 0.0, "successes": 3, "episodes": 10, "low": 0.07, "high": 0.65, "dip_depth": 0}
    rows = [row, row | {"env_steps": 600, "wall_s": 12.0, "successes": 8}]
    (tmp_path / "evaluations.json").write_text(json.dumps({"evaluations": rows}))
    run = RunCurve.load(tmp_path)
    assert (run.env_steps, run.successes, run.episodes, run.steps_per_s) == ((0, 600), (3, 8), (10, 10), 50)
    assert RunCurve.load(tmp_path / "elsewhere").env_steps == ()


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"env_steps": 0}], "KeyError 'wall_s'"),
        (None, "no table of evaluations"),
        ([{"env_steps": 0, "wall_s": 0, "successes": 3, "episodes": 2}], "not counts"),
        ([{"env_steps": 5, "wall_s": 0, "successes": 1, "episodes": 2}] * 2, "do not ascend"),
    ],
)
def test_a_malformed_curve_is_refused(tmp_path, rows, says):
    (tmp_path / "evaluations.json").write_text(json.dumps({"evaluations": rows}))
    with pytest.raises(RefusedError, match=says):
        RunCurve.load(tmp_path)
