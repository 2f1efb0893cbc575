"""Exact and anytime-valid statistics of success counts; every function says which question it answers.

Success is a coin with unknown bias. Policies are compared on the same initial states, so the unit is the pair: only discordant
pairs (one policy succeeds, the other fails) carry information about which is better.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special, stats

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array

type Alternative = Literal["two-sided", "greater"]
"""``greater``: the first policy is better; decided before the data is seen."""


def clopper_pearson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a success rate (Clopper & Pearson 1934), which covers any true rate at least this often."""
    _check_count(successes, n)
    tail = (1 - _in_unit(confidence, "confidence")) / 2
    low = 0.0 if successes == 0 else float(stats.beta.ppf(tail, successes, n - successes + 1))
    high = 1.0 if successes == n else float(stats.beta.ppf(1 - tail, successes + 1, n - successes))
    return low, high


def mcnemar_exact(wins_a: int, wins_b: int, *, alternative: Alternative = "two-sided") -> float:
    """Return the exact p value of "both policies are equally good" from the discordant pairs (McNemar 1947).

    Args:
        wins_a: pairs in which only the first policy succeeded.
        wins_b: pairs in which only the second succeeded.
        alternative: what is claimed if the p value is small.
    """
    _check_count(wins_a, wins_a + wins_b)
    if wins_a + wins_b == 0:
        return 1.0
    return float(stats.binomtest(wins_a, wins_a + wins_b, 0.5, alternative=alternative).pvalue)


def paired_difference_interval(
    both: int, only_a: int, only_b: int, neither: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Return Newcombe's (1998, Stat. Med. 17:2635, method 10) interval of rate A minus rate B for paired successes.

    It joins the two Wilson intervals [l, u] of the rates p, correlated by the table's continuity-corrected phi:
    lower = d - sqrt((p_a - l_a)^2 - 2 phi (p_a - l_a)(u_b - p_b) + (u_b - p_b)^2), and the upper end with the roles swapped.
    """
    n = both + only_a + only_b + neither
    _check_count(both, n)
    if n == 0:
        return -1.0, 1.0
    a, b = both + only_a, both + only_b
    p_a, p_b = a / n, b / n
    low_a, high_a = _wilson(a, n, confidence)
    low_b, high_b = _wilson(b, n, confidence)
    cross = both * neither - only_a * only_b
    margins = a * (n - a) * b * (n - b)
    phi = 0.0 if margins == 0 else (max(cross - n / 2, 0) if cross > 0 else cross) / math.sqrt(margins)

    def distance(x: float, y: float) -> float:
        return math.sqrt(x**2 - 2 * phi * x * y + y**2)

    return p_a - p_b - distance(p_a - low_a, high_b - p_b), p_a - p_b + distance(high_a - p_a, p_b - low_b)


def boschloo(successes_a: int, n_a: int, successes_b: int, n_b: int) -> float:
    """Return the two-sided exact p value of equal rates for unpaired episodes (Boschloo 1970): twice the smaller one-sided."""
    _check_count(successes_a, n_a)
    _check_count(successes_b, n_b)
    table = [[successes_a, successes_b], [n_a - successes_a, n_b - successes_b]]
    if successes_a + successes_b in (0, n_a + n_b):
        return 1.0
    return min(1.0, float(stats.boschloo_exact(table).pvalue))


def log_e_value(wins_a: Array | int, wins_b: Array | int, *, alternative: Alternative = "two-sided") -> Array:
    """Return ln e of "both policies are equally good", valid whenever one looks.

    Under the null each discordant pair is a fair coin theta = 1/2. The e value is the likelihood ratio against theta drawn
    uniformly from (0, 1) or, one-sided, from (1/2, 1), with n = wins_a + wins_b:

        two-sided  e = 2^n     B(1 + wins_a, 1 + wins_b)
        greater    e = 2^(n+1) B(1 + wins_a, 1 + wins_b) P(theta > 1/2 | Beta(1 + wins_a, 1 + wins_b))

    It is a non-negative martingale with mean 1 under the null, so it ever reaches 1/alpha with probability at most alpha (Ville
    1939; Robbins 1970). Concordant pairs leave it unchanged.
    """
    a, b = np.asarray(wins_a, float), np.asarray(wins_b, float)
    log_e = (a + b) * math.log(2) + special.betaln(1 + a, 1 + b)
    if alternative == "two-sided":
        return log_e
    return log_e + math.log(2) + stats.beta.logsf(0.5, 1 + a, 1 + b)


@dataclass
class SequentialTest:
    """Anytime-valid paired test that may be looked at after every pair and stopped as soon as it decides."""

    alpha: float = 0.05
    """Probability of ever deciding when the policies are equally good."""
    alternative: Alternative = "two-sided"
    """``greater`` asks only whether A is better and decides a little sooner."""
    pairs: int = 0
    """Pairs seen."""
    wins_a: int = 0
    """Pairs in which only A succeeded."""
    wins_b: int = 0
    """Pairs in which only B succeeded."""
    best_log_e: float = 0.0
    """Largest ln e so far; the anytime p value is exp(-best_log_e)."""

    def __post_init__(self) -> None:
        _in_unit(self.alpha, "alpha")

    @property
    def decided(self) -> bool:
        """Whether the evidence has ever reached 1 / alpha."""
        return self.best_log_e >= -math.log(self.alpha)

    @property
    def p_value(self) -> float:
        """Anytime-valid p value: the smallest alpha at which the test has decided by now."""
        return math.exp(-self.best_log_e)

    def update(self, success_a: bool, success_b: bool) -> bool:
        """Add one pair from the same initial state; return whether the test has decided."""
        self.pairs += 1
        self.wins_a += bool(success_a) and not success_b
        self.wins_b += bool(success_b) and not success_a
        self.best_log_e = max(self.best_log_e, float(log_e_value(self.wins_a, self.wins_b, alternative=self.alternative)))
        return self.decided


def holm(p_values: Array) -> Array:
    """Return Holm's (1979) adjusted p values (m,): rejecting those <= alpha keeps the family-wise error at alpha."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return adjusted


def compact_letters(scores: Array, different: Array) -> list[str]:
    """Return letters for each policy; two policies share a letter exactly when they were not found different.

    Insert-and-absorb (Piepho 2004): start with one group of all; every significant pair splits each group that holds both;
    groups inside another are absorbed. Letters follow the best score in a group.

    Args:
        scores: (m,) success rates, only used for the order of the letters.
        different: (m, m) bool, symmetric.
    """
    m = len(scores)
    groups: list[frozenset[int]] = [frozenset(range(m))]
    for i in range(m):
        for j in range(i + 1, m):
            if different[i][j]:
                split = [g - {k} for g in groups for k in ((i, j) if {i, j} <= g else (None,))]
                unique = list(dict.fromkeys(split))
                groups = [g for g in unique if not any(g < other for other in unique)]
    groups.sort(key=lambda g: sorted(-float(scores[i]) for i in g))
    names = [_letter(n) for n in range(len(groups))]
    return ["".join(name for name, group in zip(names, groups, strict=True) if i in group) for i in range(m)]


def cluster_bootstrap(
    scores: Array, rng: np.random.Generator, *, draws: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Return a percentile interval of the mean that treats training seeds and initial states as random.

    Both factors are resampled with replacement (pigeonhole bootstrap, Owen 2007), so episodes that share a training seed or an
    initial state do not count as independent.

    Args:
        scores: (training seeds, initial states) success or score in [0, 1].
        rng: source of the resampling.
        draws: bootstrap samples.
        confidence: coverage aimed at.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or scores.size == 0:
        raise RefusedError(f"Scores must have shape (training seeds, initial states), got {scores.shape}.")
    m, n = scores.shape
    # Multinomial counts of the rows and columns drawn: the mean of a resample is a bilinear form in them.
    rows = rng.multinomial(m, np.full(m, 1 / m), size=draws)
    columns = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    means = np.einsum("dm,mn,dn->d", rows, scores, columns, optimize=True) / (m * n)
    return _percentiles(means, confidence)


def interquartile_mean(scores: Array) -> float:
    """Return the mean of the middle half of all scores (Agarwal et al. 2021, "rliable"): floor(25 %) are cut at each end."""
    return float(stats.trim_mean(np.asarray(scores, float), 0.25, axis=None))


def interquartile_mean_interval(
    scores: Array, rng: np.random.Generator, *, draws: int = 10_000, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the stratified-bootstrap percentile interval of :func:`interquartile_mean`: runs are resampled within each task.

    Args:
        scores: (runs, tasks).
        rng: source of the resampling.
        draws: bootstrap samples.
        confidence: coverage aimed at.
    """
    scores = np.asarray(scores, float)
    if scores.ndim != 2 or scores.size == 0:
        raise RefusedError(f"Scores must have shape (runs, tasks), got {scores.shape}.")
    runs, tasks = scores.shape
    picked = rng.integers(runs, size=(draws, runs, tasks))
    samples = np.take_along_axis(np.broadcast_to(scores, (draws, runs, tasks)), picked, axis=1)
    return _percentiles(stats.trim_mean(samples.reshape(draws, -1), 0.25, axis=1), confidence)


def required_episodes(rate_a: float, rate_b: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Return the episodes per policy with which unpaired two-sided rates can be told apart with probability ``power``.

    n = (z_{1-alpha/2} sqrt(2 m (1-m)) + z_power sqrt(a(1-a) + b(1-b)))^2 / (a-b)^2 with m = (a+b)/2 (Fleiss 1981). Pairing on
    initial states needs fewer whenever both policies find the same states hard.
    """
    a, b = rate_a, rate_b
    if not (0 <= a <= 1 and 0 <= b <= 1 and a != b):
        raise RefusedError(f"{rate_a=} and {rate_b=} must be two different rates in [0, 1].")
    m = (a + b) / 2
    z_alpha, z_power = stats.norm.ppf(1 - _in_unit(alpha, "alpha") / 2), stats.norm.ppf(_in_unit(power, "power"))
    spread = z_alpha * math.sqrt(2 * m * (1 - m)) + z_power * math.sqrt(a * (1 - a) + b * (1 - b))
    return math.ceil((spread / (a - b)) ** 2)


def _wilson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    interval = stats.binomtest(successes, n).proportion_ci(_in_unit(confidence, "confidence"), method="wilson")
    return float(interval.low), float(interval.high)


def _letter(index: int) -> str:
    """Return a, b, ..., z, then aa-like names in parentheses so that they read as one."""
    return chr(ord("a") + index) if index < 26 else f"({_letter(index // 26 - 1)}{_letter(index % 26)})"


def _percentiles(values: Array, confidence: float) -> tuple[float, float]:
    tail = (1 - _in_unit(confidence, "confidence")) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def _in_unit(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise RefusedError(f"{name}={value} must lie strictly between 0 and 1.")
    return value


def _check_count(successes: int, n: int) -> None:
    if not 0 <= successes <= n or (n == 0 and successes):
        raise RefusedError(f"{successes} of {n} is not a count of successes.")
