import itertools
import math

import numpy as np
import pytest
from scipy import stats

from robolearn.core.errors import RefusedError
from robolearn.evaluate.statistics import (
    SequentialTest,
    boschloo,
    clopper_pearson,
    cluster_bootstrap,
    compact_letters,
    holm,
    interquartile_mean,
    interquartile_mean_interval,
    log_e_value,
    mcnemar_exact,
    paired_difference_interval,
    required_episodes,
)


@pytest.mark.parametrize(
    ("successes", "n", "percent"),
    [(9, 10, (55.5, 99.7)), (18, 20, (68.3, 98.8)), (45, 50, (78.2, 96.7)), (90, 100, (82.4, 95.1)), (180, 200, (85.0, 93.8))],
)
def test_clopper_pearson_table(successes, n, percent):
    assert tuple(round(100 * x, 1) for x in clopper_pearson(successes, n)) == percent


def test_clopper_pearson_ends_worked_by_hand():
    # No success in 10: the upper end solves (1-p)^10 = 0.025. No failure: mirrored. No episode: nothing is known.
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025**0.1))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025**0.1), 1.0)
    assert clopper_pearson(0, 0) == (0.0, 1.0)


def test_clopper_pearson_covers_every_rate_at_least_as_often_as_promised():
    n = 20
    intervals = np.array([clopper_pearson(k, n) for k in range(n + 1)])
    for rate in np.linspace(0.01, 0.99, 99):
        inside = (intervals[:, 0] <= rate) & (rate <= intervals[:, 1])
        assert stats.binom.pmf(np.arange(n + 1), n, rate) @ inside >= 0.95


def test_mcnemar_worked_by_hand():
    # 10 discordant pairs, 9 to 1: P(at most 1) = (1 + 10) / 1024, doubled.
    assert mcnemar_exact(1, 9) == mcnemar_exact(9, 1) == pytest.approx(22 / 1024)
    assert mcnemar_exact(9, 1, alternative="greater") == pytest.approx(11 / 1024)
    assert mcnemar_exact(1, 9, alternative="greater") == pytest.approx(1 - 1 / 1024)
    assert mcnemar_exact(5, 5) == mcnemar_exact(0, 0) == 1.0


def test_mcnemar_never_exceeds_its_error():
    for n in range(1, 40):
        p = np.array([mcnemar_exact(k, n - k) for k in range(n + 1)])
        assert stats.binom.pmf(np.arange(n + 1), n, 0.5) @ (p <= 0.05) <= 0.05


def test_boschloo_is_the_supremum_over_the_common_rate():
    # One-sided p: sup over pi of P(Fisher's p at least as small as observed); two-sided: twice the smaller one.
    n, observed = 6, (6, 2)
    counts = list(itertools.product(range(n + 1), repeat=2))

    def fisher(a, b, alternative):
        return stats.fisher_exact([[a, b], [n - a, n - b]], alternative=alternative)[1]

    def one_sided(alternative):
        extreme = [c for c in counts if fisher(*c, alternative) <= fisher(*observed, alternative) * (1 + 1e-9)]
        rates = np.linspace(1e-3, 1 - 1e-3, 2001)
        return sum(stats.binom.pmf(a, n, rates) * stats.binom.pmf(b, n, rates) for a, b in extreme).max()

    assert boschloo(6, 6, 2, 6) == pytest.approx(2 * min(one_sided("greater"), one_sided("less")), rel=2e-3)
    assert boschloo(0, 5, 0, 5) == boschloo(5, 5, 7, 7) == 1.0


def test_paired_interval_of_newcombe():
    # Newcombe 1998, Stat. Med. 17:2635, table II, method 10: 36, 12, 2, 0 -> (0.0569, 0.3404).
    assert paired_difference_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    low, high = paired_difference_interval(2, 36, 12, 0)
    assert (-high, -low) == pytest.approx(paired_difference_interval(2, 12, 36, 0))
    assert paired_difference_interval(0, 0, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize(
    ("wins", "e"),
    [
        ((0, 0), 1.0),
        ((1, 0), 1.0),  # 2 B(2,1) = 2/2
        ((2, 0), 4 / 3),  # 4 B(3,1) = 4/3
        ((2, 1), 2 / 3),  # 8 B(3,2) = 8 * 2! 1! / 4!
        ((8, 0), 256 / 9),
    ],
)
def test_e_values_worked_by_hand(wins, e):
    assert math.exp(log_e_value(*wins)) == pytest.approx(e)
    assert math.exp(log_e_value(*wins[::-1])) == pytest.approx(e)


def test_one_sided_e_value_worked_by_hand():
    # n wins: P(theta > 1/2 | Beta(1+n, 1)) = 1 - 2^-(n+1), so e = 2^(n+1)/(n+1) (1 - 2^-(n+1)): 7 wins -> 32 * 255/256.
    assert math.exp(log_e_value(7, 0, alternative="greater")) == pytest.approx(31.875)
    assert math.exp(log_e_value(0, 7, alternative="greater")) == pytest.approx(32 / 256)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_e_value_is_a_martingale_under_the_null(alternative):
    a, b = np.meshgrid(np.arange(30), np.arange(30))
    now = np.exp(log_e_value(a, b, alternative=alternative))
    after_a, after_b = (np.exp(log_e_value(a + i, b + 1 - i, alternative=alternative)) for i in (1, 0))
    np.testing.assert_allclose((after_a + after_b) / 2, now, rtol=1e-9)


@pytest.mark.parametrize(("alternative", "wins"), [("two-sided", 8), ("greater", 7)])
def test_sequential_test_decides_after_the_wins_that_it_needs(alternative, wins):
    # Two-sided 2^n/(n+1) >= 20 first at n = 8 (256/9); one-sided at n = 7 (31.875; n = 6 gives 18.1).
    test = SequentialTest(alpha=0.05, alternative=alternative)
    decisions = [test.update(True, False) for _ in range(wins)]
    assert decisions == [False] * (wins - 1) + [True]
    test.update(True, True)
    assert (test.pairs, test.wins_a, test.wins_b) == (wins + 1, wins, 0)
    for _ in range(50):
        test.update(False, True)
    assert test.decided  # once decided, later pairs cannot undo it
    assert test.p_value <= 0.05


def test_concordant_pairs_decide_nothing():
    test = SequentialTest()
    assert not any(test.update(x, x) for x in [True, False] * 200)
    assert test.p_value == 1.0


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_looking_after_every_pair_keeps_the_error(alternative):
    rng = np.random.default_rng(0)
    wins = np.cumsum(rng.random((20_000, 300)) < 0.5, axis=1, dtype=np.int32)
    n = np.arange(1, 301)
    table = np.exp(log_e_value(np.arange(301)[:, None], np.arange(301), alternative=alternative))
    rejected = (table[wins, n - wins] >= 20).any(axis=1).mean()
    assert 0.005 < rejected <= 0.05  # by simulation 0.02 to 0.03; a vacuous test would never reject


def test_looking_at_mcnemar_every_ten_pairs_does_not_keep_it():
    # The reason for the e value: repeated looks at a fixed-n test at 0.05 over 300 pairs reject true nulls far too often.
    rng = np.random.default_rng(1)
    wins = np.cumsum(rng.random((5000, 300)) < 0.5, axis=1)[:, 9::10]
    n = np.arange(10, 301, 10)
    p = np.minimum(1, 2 * stats.binom.cdf(np.minimum(wins, n - wins), n, 0.5))
    assert (p <= 0.05).any(axis=1).mean() > 0.15


@pytest.mark.parametrize(
    ("rates", "power", "mean_pairs"),
    [((0.5, 0.5), 0.023, None), ((0.6, 0.8), 0.705, 64), ((0.6, 0.9), 0.993, 32), ((0.3, 0.9), 1, 13)],
)
def test_power_matches_the_published_table(rates, power, mean_pairs):
    # shared/POLICIES.md 4.3: 100 independent pairs, one-sided at 0.05, 1500 repetitions; repeated here with 4000.
    rng = np.random.default_rng(2)
    worse, better = (rng.random((4000, 100)) < rate for rate in rates)
    wins, losses = np.cumsum(better & ~worse, axis=1), np.cumsum(worse & ~better, axis=1)
    crossed = np.exp(log_e_value(wins, losses, alternative="greater")) >= 20
    stopped = np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1, 100)
    assert crossed.any(axis=1).mean() == pytest.approx(power, abs=0.03)
    if mean_pairs is not None:
        assert stopped.mean() == pytest.approx(mean_pairs, abs=2)


def test_holm_worked_by_hand():
    # Sorted .01 .03 .04 times 3 2 1: .03 .06 .04, made monotone: .03 .06 .06.
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(holm(np.array([0.6, 0.9])), [1.0, 1.0])
    assert holm(np.array([])).size == 0


def test_letters_worked_by_hand():
    # Only best and worst differ: the middle one belongs to both groups.
    different = np.zeros((3, 3), bool)
    different[0, 2] = different[2, 0] = True
    assert compact_letters(np.array([0.9, 0.7, 0.5]), different) == ["a", "ab", "b"]
    assert compact_letters(np.array([0.5, 0.7, 0.9]), different) == ["b", "ab", "a"]
    assert compact_letters(np.ones(3), np.zeros((3, 3), bool)) == ["a", "a", "a"]
    assert compact_letters(np.array([0.3, 0.2, 0.1]), ~np.eye(3, dtype=bool)) == ["a", "b", "c"]


def test_letters_are_shared_exactly_by_what_is_not_different():
    rng = np.random.default_rng(3)
    for _ in range(200):
        m = int(rng.integers(2, 8))
        upper = np.triu(rng.random((m, m)) < rng.random(), 1)
        different = upper | upper.T
        letters = compact_letters(rng.random(m), different)
        for i, j in itertools.combinations(range(m), 2):
            assert bool(set(letters[i]) & set(letters[j])) != bool(different[i, j])


def test_cluster_bootstrap_knows_what_varies():
    rng = np.random.default_rng(4)
    # Training seeds decide everything: resampling 3 of {0, 0, 1} gives means 0, 1/3, 2/3, 1; P(0) = 8/27, P(1) = 1/27.
    by_seed = np.repeat([[0.0], [0.0], [1.0]], 200, axis=1)
    assert cluster_bootstrap(by_seed, rng) == (0.0, 1.0)
    assert cluster_bootstrap(by_seed, rng, confidence=0.9) == (0.0, pytest.approx(2 / 3))
    # Nothing varies.
    assert cluster_bootstrap(np.ones((3, 50)), rng) == (1.0, 1.0)
    # One training seed: an ordinary bootstrap of 100 coins, about mean +- 1.96 sqrt(.25/100).
    low, high = cluster_bootstrap(np.tile([0.0, 1.0], 50)[None], rng)
    assert (low, high) == (pytest.approx(0.402, abs=0.015), pytest.approx(0.598, abs=0.015))


def test_interquartile_mean_worked_by_hand():
    # 8 scores: 2 are cut at each end, (2+3+4+5)/4 = 3.5; 10 scores: floor(2.5) = 2 are cut, (2+...+7)/6 = 4.5.
    assert interquartile_mean(np.arange(8).reshape(2, 4)) == 3.5
    assert interquartile_mean(np.array([*range(9), 1000])) == 4.5


def test_interquartile_mean_interval_resamples_within_tasks():
    rng = np.random.default_rng(5)
    # Every task is constant over runs, so resampling runs within tasks changes nothing.
    scores = np.tile([0.1, 0.4, 0.5, 0.9], (5, 1))
    assert interquartile_mean_interval(scores, rng) == (pytest.approx(0.45), pytest.approx(0.45))
    varied = scores + rng.normal(0, 0.05, scores.shape)
    low, high = interquartile_mean_interval(varied, rng)
    assert low < interquartile_mean(varied) < high
    assert high - low < 0.1


@pytest.mark.parametrize(
    ("rates", "n"), [((0.5, 0.8), 39), ((0.5, 0.7), 93), ((0.8, 0.9), 199), ((0.7, 0.8), 294), ((0.85, 0.9), 686)]
)
def test_required_episodes_table(rates, n):
    assert required_episodes(*rates) == required_episodes(*rates[::-1]) == n


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: clopper_pearson(5, 4), "5 of 4"),
        (lambda: clopper_pearson(1, 4, confidence=95), "confidence=95"),
        (lambda: SequentialTest(alpha=0), "alpha=0"),
        (lambda: required_episodes(0.5, 0.5), "two different rates"),
        (lambda: cluster_bootstrap(np.ones(3), np.random.default_rng()), r"\(training seeds, initial states\), got \(3,\)"),
        (lambda: interquartile_mean_interval(np.ones(3), np.random.default_rng()), r"\(runs, tasks\), got \(3,\)"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(RefusedError, match=words):
        call()
