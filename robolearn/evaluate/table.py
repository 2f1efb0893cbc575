"""A result table: one base, methods in cells, several seeds a cell; written as JSON for programs and as Markdown for readers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from robolearn.core.seeding import generator
from robolearn.evaluate.compare import compare
from robolearn.evaluate.curves import CellCurve, RunCurve, joined_curve
from robolearn.evaluate.result import EvaluationResult
from robolearn.evaluate.statistics import (
    clopper_pearson,
    cluster_bootstrap,
    interquartile_mean,
    interquartile_mean_interval,
    mcnemar_exact,
    paired_difference_interval,
)

type Interval = tuple[float, float]


@dataclass(frozen=True)
class RunOutcome:
    """What there is of one run."""

    name: str
    seed: int
    state: str
    """In words: ``done``, ``not run``, ``at step 12500 of 75000``, ..."""
    command: str
    """By which it is made on its own."""
    result: EvaluationResult | None = None
    """Test episodes of the finished run."""
    curve: RunCurve | None = None
    """Validation episodes during the run; None where it has none."""


@dataclass(frozen=True)
class Difference:
    """A run's success minus the base's, on the same initial states."""

    run_only: int
    """Initial states that only the run solved."""
    base_only: int
    difference: float
    interval: Interval
    """95 %, Newcombe's paired interval."""
    p_value: float
    """Exact McNemar, two-sided, for this pair alone."""


@dataclass(frozen=True)
class CellSummary:
    """The finished runs of a cell in numbers."""

    runs: int
    successes: int
    episodes: int
    interval: Interval
    """95 % Clopper-Pearson of all episodes of all runs together."""
    success: float
    """Interquartile mean of the runs' success rates."""
    band: Interval | None
    """95 % stratified bootstrap of ``success`` over runs; None for one run."""
    difference: float
    """Mean success minus the base's."""
    difference_interval: Interval
    """95 %: of one run Newcombe's paired interval, of several a bootstrap over runs and initial states."""


@dataclass(frozen=True)
class CellOutcome:
    """One method: the runs of its seeds."""

    name: str
    runs: tuple[RunOutcome, ...]
    left_out: tuple[int, ...] = ()
    """Seeds of the protocol that this cell does not run."""
    stacked: bool = False
    """Whether its runs refine another cell's and not the base."""

    @property
    def finished(self) -> list[RunOutcome]:
        """Runs with a final evaluation."""
        return [run for run in self.runs if run.result is not None]

    @property
    def curve_runs(self) -> list[RunCurve]:
        """Curves of the finished runs; of those under way only where none has finished."""
        shown = [run.curve for run in self.finished or self.runs]
        return [curve for curve in shown if curve is not None and curve.env_steps]

    @property
    def dip_depth(self) -> float | None:
        """How far the worst run, finished or not, ever fell below what it refines; None where no run was evaluated on its way."""
        return max((run.curve.dip_depth for run in self.runs if run.curve and run.curve.env_steps), default=None)

    def curve(self) -> CellCurve | None:
        """Return the cell's curve; None where no run was evaluated on its way."""
        return joined_curve(self.curve_runs, generator(0, "curve", self.name)) if self.curve_runs else None

    def summary(self, base: EvaluationResult) -> CellSummary | None:
        """Return the numbers of the finished runs against ``base``; None if no run has finished."""
        results = [run.result for run in self.runs if run.result is not None]
        if not results:
            return None
        pairs = [difference(result, base) for result in results]
        rates = np.array([result.success_rate for result in results])
        successes, episodes = sum(r.successes for r in results), sum(len(r.episodes) for r in results)
        rng = generator(0, "cell", self.name)
        several = len(results) > 1
        return CellSummary(
            runs=len(results),
            successes=successes,
            episodes=episodes,
            interval=clopper_pearson(successes, episodes),
            success=interquartile_mean(rates),
            band=interquartile_mean_interval(rates[:, None], rng) if several else None,
            difference=float(np.mean([pair.difference for pair in pairs])),
            difference_interval=cluster_bootstrap(_gains(results, base), rng) if several else pairs[0].interval,
        )


@dataclass(frozen=True)
class TableOutcome:
    """Everything that a table shows."""

    title: str
    command: str
    """By which the table is made."""
    base: RunOutcome
    cells: tuple[CellOutcome, ...]
    goal: float
    """Success whose first crossing by the curve is reported."""

    def to_json(self) -> dict[str, object]:
        """Return all numbers, JSON-serialisable; the episodes stay in the runs' own evaluations."""
        return {
            "format": "robolearn.table/1",
            "title": self.title,
            "command": self.command,
            "goal": self.goal,
            "base": self._run_json(self.base),
            "cells": [self._cell_json(cell) for cell in self.cells],
        }

    def _cell_json(self, cell: CellOutcome) -> dict[str, object]:
        summary = cell.summary(self.base.result) if self.base.result else None
        curve = cell.curve()
        return {
            "name": cell.name,
            "seeds_left_out": list(cell.left_out),
            "summary": asdict(summary) if summary else None,
            "dip_depth": cell.dip_depth,
            "steps_to_goal": curve.steps_to(self.goal) if curve else None,
            "curve": _curve_json(curve) if curve else None,
            "runs": [self._run_json(run) for run in cell.runs],
        }

    def _run_json(self, run: RunOutcome) -> dict[str, object]:
        paired = run.result is not None and self.base.result is not None and run is not self.base
        curve = run.curve if run.curve and run.curve.env_steps else None
        return {
            "name": run.name,
            "seed": run.seed,
            "state": run.state,
            "command": run.command,
            "test": run.result.summary() if run.result else None,
            "test_seeds": [run.result.seeds[0], run.result.seeds[-1]] if run.result else None,
            "minus_base": asdict(difference(run.result, self.base.result)) if paired else None,  # type: ignore[arg-type]
            "validation": asdict(curve) if curve else None,
            "dip_depth": curve.dip_depth if curve else None,
            "wall_s": curve.wall_s[-1] if curve else None,
            "steps_per_s": _finite(curve.steps_per_s) if curve else None,
            "provenance": dict(run.result.provenance) if run.result else None,
        }


def difference(result: EvaluationResult, base: EvaluationResult) -> Difference:
    """Return how a run differs from the base, paired.

    Raises:
        RefusedError: they are not comparable, see :func:`robolearn.evaluate.compare.compare`.
    """
    (pair,) = compare([result, base]).pairs
    wins = (pair.first_only, pair.second_only) if pair.first == result.policy else (pair.second_only, pair.first_only)
    interval = paired_difference_interval(pair.both, *wins, pair.neither)
    n = pair.both + pair.neither + sum(wins)
    return Difference(*wins, difference=(wins[0] - wins[1]) / n, interval=interval, p_value=mcnemar_exact(*wins))


def _gains(results: Sequence[EvaluationResult], base: EvaluationResult) -> np.ndarray:
    """Return (runs, initial states) success minus the base's on the same state."""
    solved = {episode.seed: episode.success for episode in base.episodes}
    by_seed = [{e.seed: e.success for e in result.episodes} for result in results]
    return np.array([[float(own[seed]) - float(solved[seed]) for seed in solved] for own in by_seed])


def _curve_json(curve: CellCurve) -> dict[str, object]:
    arrays = {name: getattr(curve, name).tolist() for name in ("env_steps", "wall_s", "center", "low", "high")}
    return arrays | {"runs": curve.runs, "band": curve.band}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
