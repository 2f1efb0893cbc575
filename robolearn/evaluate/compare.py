"""Which policy is better: paired on the same initial states, corrected for many comparisons, or with early stopping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Literal, cast

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env, Policy
from robolearn.evaluate.result import EvaluationResult, RolloutConfig, joined
from robolearn.evaluate.rollout import Progress, evaluate
from robolearn.evaluate.statistics import (
    SequentialTest,
    compact_letters,
    holm,
    log_e_value,
    mcnemar_exact,
    paired_difference_interval,
)
from robolearn.train.interrupts import Interrupted, InterruptGuard

type SeedRule = Literal["equal", "common"]
"""``equal`` refuses results whose seeds differ; ``common`` compares on the seeds that all share."""


@dataclass(frozen=True)
class PairComparison:
    """Two policies on the same initial states."""

    first: str
    second: str
    both: int
    """Initial states that both solved."""
    first_only: int
    second_only: int
    neither: int
    difference: float
    """Success rate of the first minus that of the second."""
    difference_interval: tuple[float, float]
    """Newcombe's paired interval of the difference, at confidence 1 - alpha and for this pair alone."""
    p_value: float
    """Exact McNemar, two-sided, for this pair alone."""
    adjusted_p_value: float
    """After Holm's correction over all pairs of the comparison."""
    e_value: float
    """Beta-mixture e value of all pairs; >= 1/alpha also decides if one had looked after every pair."""
    different: bool
    """Whether the adjusted p value is at most alpha."""


@dataclass(frozen=True)
class Comparison:
    """Policies ranked by success rate on the same initial states."""

    task: str
    fidelity: str
    alpha: float
    seeds: tuple[int, ...]
    results: tuple[EvaluationResult, ...]
    """Best first, cut to the compared seeds."""
    letters: tuple[str, ...]
    """Per result; two policies that share no letter are different at family-wise error alpha."""
    pairs: tuple[PairComparison, ...]

    def to_json(self) -> dict[str, object]:
        """Return what a table needs, JSON-serialisable; the episodes stay in their own evaluations."""
        rows = [
            {"letters": letters, "provenance": dict(result.provenance), **result.summary()}
            for letters, result in zip(self.letters, self.results, strict=True)
        ]
        return {
            "format": "robolearn.comparison/1",
            "task": self.task,
            "fidelity": self.fidelity,
            "alpha": self.alpha,
            "episodes": len(self.seeds),
            "seeds": list(self.seeds),
            "policies": rows,
            "pairs": [asdict(pair) for pair in self.pairs],
        }


@dataclass(frozen=True)
class SequentialComparison:
    """Two policies run in alternating blocks until the evidence decided or the seeds were used up."""

    results: tuple[EvaluationResult, EvaluationResult]
    test: SequentialTest
    """Its ``p_value`` is valid although one looked after every pair."""
    interrupted_by: int | None = None
    """Signal that ended the comparison early; None if there was none."""

    @property
    def winner(self) -> str | None:
        """Name of the better policy; None if the test has not decided."""
        if not self.test.decided:
            return None
        return self.results[0 if self.test.wins_a > self.test.wins_b else 1].policy


def compare(results: Sequence[EvaluationResult], *, alpha: float = 0.05, seeds: SeedRule = "equal") -> Comparison:
    """Compare policies pairwise on the same initial states.

    Args:
        results: at least two, with different policy names.
        alpha: family-wise error over all pairs.
        seeds: what to do if the seeds differ.

    Raises:
        RefusedError: names repeat, or tasks, fidelities, robots, episode caps or seeds differ; the message names both sides.
    """
    _require_comparable(results)
    shared = _shared_seeds(results, seeds)
    ranked = sorted((_cut(result, shared) for result in results), key=lambda r: -r.success_rate)
    outcomes = np.array([[e.success for e in result.episodes] for result in ranked])
    tables = {(i, j): _table(outcomes[i], outcomes[j]) for i, j in combinations(range(len(ranked)), 2)}
    p_values = [mcnemar_exact(only_a, only_b) for _, only_a, only_b, _ in tables.values()]
    adjusted = holm(np.array(p_values))
    pairs = [
        PairComparison(
            first=ranked[i].policy,
            second=ranked[j].policy,
            both=table[0],
            first_only=table[1],
            second_only=table[2],
            neither=table[3],
            difference=ranked[i].success_rate - ranked[j].success_rate,
            difference_interval=paired_difference_interval(*table, confidence=1 - alpha),
            p_value=p,
            adjusted_p_value=float(adjusted_p),
            e_value=float(np.exp(log_e_value(table[1], table[2]))),
            different=bool(adjusted_p <= alpha),
        )
        for ((i, j), table), p, adjusted_p in zip(tables.items(), p_values, adjusted, strict=True)
    ]
    different = np.zeros((len(ranked), len(ranked)), bool)
    for (i, j), pair in zip(tables, pairs, strict=True):
        different[i, j] = different[j, i] = pair.different
    letters = compact_letters(np.array([r.success_rate for r in ranked]), different)
    return Comparison(
        task=ranked[0].task,
        fidelity=ranked[0].fidelity,
        alpha=alpha,
        seeds=shared,
        results=tuple(ranked),
        letters=tuple(letters),
        pairs=tuple(pairs),
    )


def compare_sequentially(
    env: Env,
    policies: Mapping[str, Policy],
    seeds: Sequence[int],
    config: RolloutConfig | None = None,
    *,
    test: SequentialTest | None = None,
    progress: Progress | None = None,
) -> SequentialComparison:
    """Run two policies on the same seeds, block by block, and stop as soon as the test has decided.

    A block is as many seeds as there are environments; the policy that goes first alternates. Deciding early does not inflate the
    error: see :class:`SequentialTest`.

    Args:
        env: both policies must fit it.
        policies: name -> policy, exactly two; the test's A is the first.
        seeds: initial states, used in this order; all of them if nothing is decided.
        config: for both policies.
        test: a fresh two-sided test at alpha 0.05 if None.
        progress: called with each finished episode.

    Raises:
        RefusedError: not two policies, or one does not fit the environment.
        Interrupted: a signal came before both policies had run any episode; later it ends the comparison undecided.
    """
    if len(policies) != 2:
        raise RefusedError(f"A sequential comparison takes two policies, got {list(policies)}.")
    test = test or SequentialTest()
    config = config or RolloutConfig()
    parts: dict[str, list[EvaluationResult]] = {name: [] for name in policies}
    order = list(policies)
    with InterruptGuard() as guard:
        for start in range(0, len(seeds), env.num_envs):
            block = seeds[start : start + env.num_envs]
            timed = config if start == 0 else replace(config, timed_decisions=0)
            made: dict[str, EvaluationResult] = {}
            for name in order:
                if _signal(guard, made) is None:
                    made[name] = evaluate(env, policies[name], block, timed, progress=progress)
            order.reverse()
            signal_number = _signal(guard, made)
            whole = len(made) == len(parts) and not any(result.partial for result in made.values())
            # The episodes that had ended when a signal came are the short ones, most of them successes: they make no pairs.
            if not whole and parts[order[0]]:
                break
            if len(made) < len(parts):
                raise Interrupted(cast(int, signal_number))
            for name, result in made.items():
                parts[name].append(result)
            if whole:
                _add_pairs(test, *(results[-1] for results in parts.values()))
            if test.decided or signal_number is not None:
                break
    first, second = (joined(results).described(policy=name, provenance={}) for name, results in parts.items())
    return SequentialComparison(results=(first, second), test=test, interrupted_by=signal_number)


def _signal(guard: InterruptGuard, made: Mapping[str, EvaluationResult]) -> int | None:
    """Return the signal that arrived before or during a block, if any."""
    during = [result.interrupted_by for result in made.values() if result.interrupted_by is not None]
    return guard.signal_number if not during else during[0]


def _add_pairs(test: SequentialTest, first: EvaluationResult, second: EvaluationResult) -> None:
    """Feed the pairs of one block in the order of the seeds, up to the one that decides."""
    outcomes = {e.seed: e.success for e in second.episodes}
    for episode in first.episodes:
        if episode.seed in outcomes and test.update(episode.success, outcomes[episode.seed]):
            return


def _table(a: np.ndarray, b: np.ndarray) -> tuple[int, int, int, int]:
    """Return how many initial states both solved, only the first, only the second, and neither."""
    return int((a & b).sum()), int((a & ~b).sum()), int((b & ~a).sum()), int((~a & ~b).sum())


def _require_comparable(results: Sequence[EvaluationResult]) -> None:
    names = [r.policy for r in results]
    if len(results) < 2 or len(set(names)) != len(names):
        raise RefusedError(f"A comparison needs at least two policies with different names, got {names}.")
    for result in results:
        if result.partial:
            # Those that had ended when a signal came are the short ones, most of them successes.
            made = f"{len(result.episodes)} of {result.seeds_asked} episodes"
            raise RefusedError(f"{result.policy}: {made}; the evaluation was interrupted, make it again.")
    for result in results[1:]:
        for name in ("task", "fidelity", "robot", "max_episode_steps", "control_rate_hz"):
            ours, theirs = getattr(results[0], name), getattr(result, name)
            if ours != theirs:
                raise RefusedError(f"{names[0]!r} has {name} {ours!r}, but {result.policy!r} has {theirs!r}: not comparable.")


def _shared_seeds(results: Sequence[EvaluationResult], rule: SeedRule) -> tuple[int, ...]:
    """Return the seeds to compare on, in the order of the first result."""
    common = set.intersection(*(set(r.seeds) for r in results))
    for result in results:
        extra = sorted(set(result.seeds) - common)
        if extra and rule == "equal":
            message = f"Seeds differ: {result.policy!r} has {len(extra)} that not all others have, such as {extra[0]}"
            raise RefusedError(f"{message}. {len(common)} are common to all; compare on these with seeds='common'.")
    if not common:
        raise RefusedError(f"{[r.policy for r in results]} have no seed in common.")
    return tuple(seed for seed in results[0].seeds if seed in common)


def _cut(result: EvaluationResult, seeds: tuple[int, ...]) -> EvaluationResult:
    by_seed = {e.seed: e for e in result.episodes}
    return replace(result, episodes=tuple(by_seed[seed] for seed in seeds))
