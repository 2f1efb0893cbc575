"""Learning curves of online runs: success against control steps and wall-clock time, one run or several seeds joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.run import read_json
from robolearn.core.types import Array
from robolearn.evaluate.statistics import clopper_pearson, interquartile_mean, interquartile_mean_interval
from robolearn.train.evaluations import EVALUATIONS_FILE

type Band = Literal["runs", "episodes"]
"""What a band speaks of: ``runs``, how other training seeds would come out (bootstrap); ``episodes``, how other episodes of this
one run would come out (Clopper-Pearson)."""


@dataclass(frozen=True)
class RunCurve:
    """Evaluations of one run on its validation seeds, by ascending control steps; the first is the base's."""

    env_steps: tuple[int, ...]
    """Control steps, warm-up included."""
    wall_s: tuple[float, ...]
    """Seconds of stepping and learning up to there; evaluations are not counted."""
    successes: tuple[int, ...]
    episodes: tuple[int, ...]

    @classmethod
    def load(cls, run_dir: Path) -> RunCurve:
        """Read a run's ``evaluations.json``; a run that was never evaluated has an empty curve.

        Raises:
            RefusedError: the file is malformed, a count is impossible or control steps do not ascend.
        """
        file = run_dir / EVALUATIONS_FILE
        if not file.exists():
            return cls((), (), (), ())
        rows: Any = read_json(file, what="table of evaluations").get("evaluations")
        try:
            curve = cls(
                env_steps=tuple(int(row["env_steps"]) for row in rows),
                wall_s=tuple(float(row["wall_s"]) for row in rows),
                successes=tuple(int(row["successes"]) for row in rows),
                episodes=tuple(int(row["episodes"]) for row in rows),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"{file} is no table of evaluations: {type(error).__name__} {error}.") from error
        if any(not 0 <= k <= n or n == 0 for k, n in zip(curve.successes, curve.episodes, strict=True)):
            raise RefusedError(f"{file}: {curve.successes} of {curve.episodes} are not counts of successes.")
        if any(b <= a for a, b in zip(curve.env_steps, curve.env_steps[1:], strict=False)):
            raise RefusedError(f"{file}: control steps {curve.env_steps} do not ascend.")
        return curve

    @property
    def rates(self) -> Array:
        """Success rates (p,)."""
        return np.array(self.successes, float) / np.array(self.episodes, float)

    @property
    def dip_depth(self) -> float:
        """How far success ever fell below the first evaluation, the base's; 0 if it never did."""
        return float(max(0.0, self.rates[0] - self.rates.min())) if self.env_steps else float("nan")

    @property
    def steps_per_s(self) -> float:
        """Control steps per second of the whole loop, up to the last evaluation; NaN before any step was made."""
        timed = bool(self.wall_s) and self.wall_s[-1] > 0
        return self.env_steps[-1] / self.wall_s[-1] if timed else float("nan")


@dataclass(frozen=True)
class CellCurve:
    """The runs of one method joined at the control steps at which all of them were evaluated."""

    env_steps: Array
    """(p,) control steps."""
    wall_s: Array
    """(p,) mean over the runs [s]."""
    center: Array
    """(p,) interquartile mean of the runs' success rates."""
    low: Array
    """(p,) lower end of the 95 % band."""
    high: Array
    """(p,) upper end."""
    runs: int
    band: Band

    def steps_to(self, success: float) -> int | None:
        """Return the control steps of the first evaluation whose centre is at least ``success``; None if there is none."""
        reached = np.flatnonzero(self.center >= success - 1e-9)
        return int(self.env_steps[reached[0]]) if reached.size else None


def joined_curve(curves: Sequence[RunCurve], rng: np.random.Generator) -> CellCurve:
    """Join the runs of one method.

    The centre is the interquartile mean over the runs and the band its stratified bootstrap percentile interval (Agarwal et al.
    2021, "rliable", with one task as the only stratum). Of one run no band over runs exists; its band is Clopper-Pearson's.

    Args:
        curves: at least one, each with evaluations.
        rng: source of the resampling.

    Raises:
        RefusedError: there is no curve, or no control step at which all were evaluated.
    """
    steps = sorted(set.intersection(*(set(curve.env_steps) for curve in curves))) if curves else []
    if not steps:
        have = [curve.env_steps for curve in curves]
        raise RefusedError(f"{len(curves)} runs have no evaluation at common control steps: {have}.")
    at = [[curve.env_steps.index(step) for step in steps] for curve in curves]
    rates = np.array([curve.rates[rows] for curve, rows in zip(curves, at, strict=True)])
    wall_s = np.array([np.array(curve.wall_s)[rows] for curve, rows in zip(curves, at, strict=True)])
    if len(curves) == 1:
        (only,), (rows,) = curves, at
        bounds = [clopper_pearson(only.successes[i], only.episodes[i]) for i in rows]
    else:
        bounds = [interquartile_mean_interval(column[:, None], rng) for column in rates.T]
    low, high = np.array(bounds).T
    center = np.array([interquartile_mean(column) for column in rates.T])
    return CellCurve(
        env_steps=np.array(steps),
        wall_s=wall_s.mean(axis=0),
        center=center,
        low=low,
        high=high,
        runs=len(curves),
        band="episodes" if len(curves) == 1 else "runs",
    )
