import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from reach_env import NoisyReacher, ReachEnv

from robolearn.core.errors import RefusedError
from robolearn.deploy.executor import ExecutorConfig
from robolearn.evaluate.compare import compare, compare_sequentially
from robolearn.evaluate.result import EpisodeResult, EvaluationResult, Latency, RolloutConfig
from robolearn.evaluate.rollout import evaluate
from robolearn.evaluate.statistics import SequentialTest
from robolearn.train.interrupts import Interrupted

QUICK = RolloutConfig(ExecutorConfig(exec_horizon=2), timed_decisions=0)


def result(policy, outcomes, first_seed=0, **changes):
    episodes = [EpisodeResult(first_seed + i, bool(s), 10, float(s), 0.1, 0.1, {}) for i, s in enumerate(outcomes)]
    none = Latency("nothing", (), 0.0)
    made = EvaluationResult(
        "reach", "native", "point", 30, 10.0, QUICK, tuple(episodes), none, none, 1.0, len(episodes), policy=policy
    )
    return replace(made, **changes)


def test_two_policies_worked_by_hand():
    # 12 seeds: both 2, only good 9, only bad 1, neither 0 -> McNemar 22/1024; e = 2^10 B(10, 2) = 1024 / 110.
    good = result("good", [1] * 11 + [0])
    bad = result("bad", [1, 1] + [0] * 9 + [1])
    comparison = compare([bad, good])
    (pair,) = comparison.pairs
    assert [r.policy for r in comparison.results] == ["good", "bad"]
    assert (pair.first, pair.both, pair.first_only, pair.second_only, pair.neither) == ("good", 2, 9, 1, 0)
    assert pair.difference == pytest.approx(8 / 12)
    assert pair.p_value == pair.adjusted_p_value == pytest.approx(22 / 1024)
    assert pair.e_value == pytest.approx(1024 / 110)
    assert pair.difference_interval[0] > 0
    assert comparison.letters == ("a", "b")


def test_holm_and_letters_over_three_policies():
    # A v C: 16 to 0 (p = 2^-15); A v B and B v C: 8 to 0 (p = 2^-7 = .0078, Holm x2 = .0156): different at .05, not at .01.
    a, b, c = result("A", [1] * 16), result("B", [1] * 8 + [0] * 8), result("C", [0] * 16)
    loose, strict = compare([c, a, b]), compare([c, a, b], alpha=0.01)
    assert loose.letters == ("a", "b", "c")
    assert strict.letters == ("a", "ab", "b")
    adjusted = {(p.first, p.second): p.adjusted_p_value for p in loose.pairs}
    assert adjusted == {("A", "B"): pytest.approx(2**-6), ("A", "C"): pytest.approx(3 * 2**-15), ("B", "C"): pytest.approx(2**-6)}


def test_comparison_is_paired_and_not_marginal():
    # Equal rates always give difference 0; what matters is who wins where.
    a, b = result("A", [1, 0] * 10), result("B", [0, 1] * 10)
    (pair,) = compare([a, b]).pairs
    assert (pair.first_only, pair.second_only, pair.p_value, pair.difference) == (10, 10, 1.0, 0.0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": "lift"}, "'A' has task 'reach', but 'B' has 'lift'"),
        ({"fidelity": "turbo"}, "fidelity 'native', but 'B' has 'turbo'"),
        ({"robot": "panda"}, "robot"),
        ({"max_episode_steps": 31}, "max_episode_steps 30, but 'B' has 31"),
        ({"policy": "A"}, "different names"),
    ],
)
def test_different_settings_are_refused(change, words):
    with pytest.raises(RefusedError, match=words):
        compare([result("A", [1, 0]), replace(result("B", [1, 0]), **change)])


def test_different_seeds_are_refused_unless_asked_for():
    a, b = result("A", [1] * 10), result("B", [0] * 10, first_seed=4)
    with pytest.raises(RefusedError, match=r"'A' has 4 that not all others have, such as 0.* 6 are common"):
        compare([a, b])
    comparison = compare([a, b], seeds="common")
    assert comparison.seeds == (4, 5, 6, 7, 8, 9)
    assert all(len(r.episodes) == 6 for r in comparison.results)
    with pytest.raises(RefusedError, match="no seed in common"):
        compare([a, result("B", [0], first_seed=99)], seeds="common")


def test_seed_order_does_not_matter():
    a = result("A", [1, 1, 0, 0])
    b = result("B", [0, 1, 0, 0])
    shuffled = replace(b, episodes=b.episodes[::-1])
    assert compare([a, b]).pairs == compare([a, shuffled]).pairs


def test_json_has_the_table():
    data = compare([result("A", [1] * 11 + [0]), result("B", [0] * 12)]).to_json()
    assert [p["letters"] for p in data["policies"]] == ["a", "b"]
    assert data["policies"][0]["successes"] == 11
    assert data["pairs"][0]["first_only"] == 11


def test_real_policies_through_real_rollouts():
    seeds = range(60)
    fast, slow = NoisyReacher(noise=0.3), NoisyReacher(noise=2.0, speed=0.3)
    results = [
        evaluate(ReachEnv(7), p, seeds, QUICK).described(policy=n, provenance={}) for n, p in (("slow", slow), ("fast", fast))
    ]
    comparison = compare(results)
    assert comparison.results[0].policy == "fast"
    assert comparison.letters == ("a", "b")


def test_sequential_comparison_stops_early_and_pairs_correctly():
    policies = {"still": NoisyReacher(speed=0.0), "fast": NoisyReacher()}
    outcome = compare_sequentially(ReachEnv(4), policies, range(200), QUICK)
    # Every pair is won by fast: 2^n/(n+1) >= 20 first at n = 8, the end of the second block of 4.
    assert (outcome.test.pairs, outcome.test.wins_a, outcome.test.wins_b) == (8, 0, 8)
    assert outcome.winner == "fast"
    assert [r.seeds for r in outcome.results] == [tuple(range(8))] * 2
    assert [r.policy for r in outcome.results] == ["still", "fast"]
    assert outcome.test.p_value == pytest.approx(9 / 256)


def test_sequential_comparison_equals_the_fixed_one_on_its_seeds():
    policies = {"a": NoisyReacher(noise=1.5, speed=0.3), "b": NoisyReacher(noise=2.5, speed=0.3)}
    outcome = compare_sequentially(ReachEnv(6), policies, range(40), QUICK, test=SequentialTest(alpha=1e-9))
    assert outcome.winner is None
    for name, got in zip(policies, outcome.results, strict=True):
        assert got.episodes == evaluate(ReachEnv(6), policies[name], range(40), QUICK).episodes
    (pair,) = compare(outcome.results).pairs
    wins = {outcome.results[0].policy: outcome.test.wins_a, outcome.results[1].policy: outcome.test.wins_b}
    assert (wins[pair.first], wins[pair.second]) == (pair.first_only, pair.second_only)
    assert pair.first_only + pair.second_only > 0


def test_equal_policies_are_rarely_told_apart():
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(400):
        test = SequentialTest()
        decided += any(test.update(a, b) for a, b in rng.random((60, 2)) < 0.5)
    assert decided <= 0.05 * 400 + 13  # 3 standard errors above alpha


def test_a_signal_ends_a_sequential_comparison_undecided():
    seen = []

    def progress(episode):
        seen.append(episode)
        if len(seen) == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    policies = {"a": NoisyReacher(), "b": NoisyReacher()}
    outcome = compare_sequentially(ReachEnv(3), policies, range(100), QUICK, progress=progress)
    assert outcome.winner is None
    assert outcome.interrupted_by == signal.SIGTERM
    # Episodes of the block that a signal cuts off were paired: the short ones, most of them successes, with all of the other's.
    assert outcome.test.pairs == 3
    assert [(result.partial, len(result.episodes)) for result in outcome.results] == [(False, 3), (False, 3)]


def test_an_interrupted_evaluation_is_not_compared():
    # With common seeds the episodes that had ended, the short ones, were compared with the same ones of a whole evaluation.
    whole, cut = (evaluate(ReachEnv(3), NoisyReacher(), range(6), QUICK).described(policy=n, provenance={}) for n in "ab")
    cut = replace(cut, episodes=cut.episodes[:4])
    with pytest.raises(RefusedError, match="b: 4 of 6 episodes; the evaluation was interrupted"):
        compare([whole, cut], seeds="common")


def test_a_signal_before_both_policies_ran_raises():
    def progress(episode):
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="SIGTERM"):
        compare_sequentially(ReachEnv(3), {"a": NoisyReacher(), "b": NoisyReacher()}, range(9), QUICK, progress=progress)


def test_a_sequential_comparison_needs_two_policies():
    with pytest.raises(RefusedError, match=r"two policies, got \['only'\]"):
        compare_sequentially(ReachEnv(1), {"only": NoisyReacher()}, range(3), QUICK)
