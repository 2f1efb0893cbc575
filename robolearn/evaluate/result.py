"""The outcome of an evaluation: one record per episode, what was timed and where it came from; saved as ``evaluation.json``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.run import read_json, write_json
from robolearn.deploy.executor import ExecutorConfig
from robolearn.evaluate.statistics import clopper_pearson

EVALUATION_FILE = "evaluation.json"
_FORMAT = "robolearn.evaluation/1"


@dataclass(frozen=True)
class RolloutConfig:
    """How episodes are run; together with the seeds and the policy it decides every number but the timings."""

    executor: ExecutorConfig = field(default_factory=ExecutorConfig)
    """Steps executed per chunk, and temporal overlap."""
    delay_steps: int = 0
    """Simulated control steps by which every decision but an episode's first comes late; until then the old chunk is executed."""
    delay_jitter: int = 0
    """Up to so many further steps, drawn for each decision with equal chance."""
    policy_seed: int = 0
    """Root of the policy's randomness; each episode draws from its own generator (policy_seed, episode seed)."""
    timed_decisions: int = 100
    """Single decisions timed for the latency percentiles, apart from the episodes; 0 times none."""
    timing_budget_s: float = 5.0
    """Seconds after which no further single decision is timed."""

    def __post_init__(self) -> None:
        if self.delay_steps < 0 or self.delay_jitter < 0:
            raise RefusedError(f"delay_steps and delay_jitter must not be negative, got {self.delay_steps}, {self.delay_jitter}.")
        if self.policy_seed < 0 or self.timed_decisions < 0 or not self.timing_budget_s >= 0:
            values = f"{self.policy_seed}, {self.timed_decisions}, {self.timing_budget_s}"
            raise RefusedError(f"policy_seed, timed_decisions and timing_budget_s must not be negative, got {values}.")


@dataclass(frozen=True)
class EpisodeResult:
    """One episode."""

    seed: int
    """Of the initial state."""
    success: bool
    """Whether the environment reported the task as solved at any step."""
    length: int
    """Control steps."""
    episode_return: float
    """Undiscounted sum of rewards."""
    mean_action_change: float
    """Mean |a_t - a_{t-1}| of the sent actions over steps and elements [action units per step]; 0 for fewer than 2 steps."""
    mean_squared_jerk: float
    """Mean (a_t - 3 a_{t-1} + 3 a_{t-2} - a_{t-3})^2 of the sent actions [action units per step^3, squared]; 0 below 4 steps."""
    safety_hits: Mapping[str, int]
    """Commands that the safety filter altered, by reason; reasons that never occurred are left out."""
    mean_seam: float = 0.0
    """Mean distance of old and new chunk where one takes over from the other; see ``ChunkExecutor.seams``. 0 without a seam."""


@dataclass(frozen=True)
class Latency:
    """Wall-clock durations of calls."""

    what: str
    """What was timed, in words."""
    seconds: tuple[float, ...]
    """Every duration, in order."""
    mean_rows: float
    """Mean batch size of the calls."""

    def percentile(self, percent: float) -> float:
        """Return a percentile in seconds; NaN if nothing was timed."""
        return float(np.percentile(self.seconds, percent)) if self.seconds else float("nan")

    def summary(self) -> dict[str, float | int | str]:
        """Return count and p50, p95, p99 in milliseconds."""
        percentiles = {f"p{p}_ms": 1e3 * self.percentile(p) for p in (50, 95, 99) if self.seconds}
        return {"what": self.what, "count": len(self.seconds), "mean_rows": self.mean_rows, **percentiles}


@dataclass(frozen=True)
class EvaluationResult:
    """Episodes of one policy on one task, in the order of the seeds that were asked for."""

    task: str
    fidelity: str
    robot: str
    max_episode_steps: int
    control_rate_hz: float
    config: RolloutConfig
    episodes: tuple[EpisodeResult, ...]
    batch_latency: Latency
    """Policy queries as they happened in the rollouts, many rows at a time."""
    single_latency: Latency
    """Policy queries of one row, as a robot would make them."""
    wall_s: float
    """Wall-clock time of the rollouts, simulation and policy together."""
    seeds_asked: int
    """Number of episodes that were asked for."""
    interrupted_by: int | None = None
    """Signal that arrived during the evaluation and asked for its end; None if there was none."""
    policy: str = ""
    """Name by which tables call the policy."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """Command, commit, versions, checkpoint, dataset; see :func:`robolearn.core.run.provenance`."""

    @property
    def partial(self) -> bool:
        """Whether episodes are missing because the evaluation was interrupted."""
        return len(self.episodes) < self.seeds_asked

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the finished episodes."""
        return tuple(e.seed for e in self.episodes)

    @property
    def successes(self) -> int:
        """Number of solved episodes."""
        return sum(e.success for e in self.episodes)

    @property
    def success_rate(self) -> float:
        """Solved part of the episodes; NaN if there is none."""
        return self.successes / len(self.episodes) if self.episodes else float("nan")

    @property
    def env_steps(self) -> int:
        """Control steps of the finished episodes."""
        return sum(e.length for e in self.episodes)

    @property
    def safety_hits(self) -> dict[str, int]:
        """Altered commands by reason, over all episodes."""
        total: Counter[str] = Counter()
        for episode in self.episodes:
            total.update(episode.safety_hits)
        return dict(total)

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the Clopper-Pearson interval of the success rate."""
        return clopper_pearson(self.successes, len(self.episodes), confidence=confidence)

    def described(self, *, policy: str, provenance: Mapping[str, object]) -> EvaluationResult:
        """Return a copy that says which policy it is about and where it came from."""
        return replace(self, policy=policy, provenance=dict(provenance))

    def summary(self) -> dict[str, object]:
        """Return the headline numbers, JSON-serialisable."""
        lengths = [e.length for e in self.episodes]
        low, high = self.interval()
        return {
            "policy": self.policy,
            "task": self.task,
            "fidelity": self.fidelity,
            "successes": self.successes,
            "episodes": len(self.episodes),
            "success_rate": self.success_rate if self.episodes else None,
            "interval_95": [low, high],
            "mean_length": float(np.mean(lengths)) if lengths else None,
            "mean_action_change": _mean([e.mean_action_change for e in self.episodes]),
            "mean_squared_jerk": _mean([e.mean_squared_jerk for e in self.episodes]),
            "mean_seam": _mean([e.mean_seam for e in self.episodes]),
            "safety_hits": self.safety_hits,
            "single_latency": self.single_latency.summary(),
            "batch_latency": self.batch_latency.summary(),
            "env_steps_per_s": self.env_steps / self.wall_s if self.wall_s > 0 else None,
            "partial": self.partial,
        }

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serialisable form that :meth:`from_json` inverts; the summary in it is for readers."""
        return {"format": _FORMAT, "summary": self.summary(), **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> EvaluationResult:
        """Rebuild the result from :meth:`to_json`.

        Raises:
            RefusedError: another format, or a field is missing, unknown or malformed.
        """
        if data.get("format") != _FORMAT:
            raise RefusedError(f"An evaluation has format {_FORMAT!r}, got {data.get('format')!r}.")
        values = {k: v for k, v in data.items() if k not in ("format", "summary")}
        try:
            config = dict(values.pop("config"))  # type: ignore[call-overload]
            config["executor"] = ExecutorConfig(**config["executor"])
            episodes = tuple(EpisodeResult(**e) for e in values.pop("episodes"))  # type: ignore[attr-defined]
            latencies = {k: _latency(values.pop(k)) for k in ("batch_latency", "single_latency")}
            return cls(config=RolloutConfig(**config), episodes=episodes, **latencies, **values)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"Malformed evaluation: {error}.") from error

    def save(self, folder: Path) -> Path:
        """Write ``evaluation.json`` into ``folder`` atomically and return its path.

        Raises:
            RefusedError: the folder cannot be written; an older file in it is untouched.
        """
        path = folder / EVALUATION_FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, self.to_json())
        except OSError as error:
            raise RefusedError(f"Cannot write {path}: {error.strerror or error}.") from error
        return path

    @classmethod
    def load(cls, path: Path) -> EvaluationResult:
        """Read an ``evaluation.json``, or the one in a folder.

        Raises:
            RefusedError: there is none, or it is malformed.
        """
        file = path / EVALUATION_FILE if path.is_dir() else path
        try:
            return cls.from_json(read_json(file, what="evaluation"))
        except RefusedError as error:
            raise RefusedError(f"{file}: {error}") from error


def joined(parts: Sequence[EvaluationResult]) -> EvaluationResult:
    """Return one result of several that ran different seeds one after the other in the same setting.

    Raises:
        RefusedError: there are none, or two have a seed in common.
    """
    seeds = [seed for part in parts for seed in part.seeds]
    if not parts or len(set(seeds)) != len(seeds):
        raise RefusedError(
            f"{len(parts)} results with {len(seeds)} seeds, {len(set(seeds))} of them different, cannot be joined."
        )
    calls = [len(part.batch_latency.seconds) for part in parts]
    rows = sum(n * part.batch_latency.mean_rows for n, part in zip(calls, parts, strict=True))
    batch = Latency(
        what=parts[0].batch_latency.what,
        seconds=tuple(s for part in parts for s in part.batch_latency.seconds),
        mean_rows=rows / max(sum(calls), 1),
    )
    return replace(
        parts[0],
        episodes=tuple(e for part in parts for e in part.episodes),
        batch_latency=batch,
        wall_s=sum(part.wall_s for part in parts),
        seeds_asked=sum(part.seeds_asked for part in parts),
        interrupted_by=parts[-1].interrupted_by,
    )


def _latency(data: Any) -> Latency:
    return Latency(what=str(data["what"]), seconds=tuple(data["seconds"]), mean_rows=float(data["mean_rows"]))


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
