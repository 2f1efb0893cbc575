"""Batched rollouts: environment, chunk executor and safety filter, one generator per episode.

An episode is decided by its seed, the policy and the configuration alone, not by the number of environments or by which episodes
ran beside it. (A network may round differently for different batch sizes; only in that way can batch mates matter.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env, Policy
from robolearn.core.seeding import generator
from robolearn.core.types import Array, Observation, require_compatible
from robolearn.deploy.executor import ChunkExecutor
from robolearn.deploy.limits import SafetyLimits
from robolearn.deploy.safety import SafetyFilter
from robolearn.evaluate.latency import Clock, TimedPolicy, time_decisions
from robolearn.evaluate.result import EpisodeResult, EvaluationResult, RolloutConfig
from robolearn.train.interrupts import InterruptGuard

type Progress = Callable[[EpisodeResult], None]
"""Called once per finished episode, in the order in which they finish."""


@dataclass(frozen=True)
class Tick:
    """What happened in one control step of the batch."""

    rows: tuple[int, ...]
    """Environments that were in an episode."""
    seeds: tuple[int, ...]
    """Seed of the episode of each of ``rows``."""
    actions: Array
    """(b, a) float32 as sent, after the safety filter."""
    finished: tuple[EpisodeResult, ...]
    """Episodes that ended with this step."""


class Rollouts:
    """Episodes in flight; each environment takes the next seed as soon as its episode has ended.

    Alternate :meth:`advance` and :meth:`refill` while :attr:`running`.
    """

    def __init__(self, env: Env, policy: Policy, seeds: Sequence[int], config: RolloutConfig) -> None:
        self._env, self._config, self._rows = env, config, env.num_envs
        require_compatible(policy.spaces, env.spec.spaces, what=f"evaluating on task {env.spec.task!r}")
        self._queue = _checked_seeds(seeds)
        longest = config.delay_steps + config.delay_jitter
        if longest and config.executor.exec_horizon + longest > policy.pred_horizon:
            raise RefusedError(
                f"A delay of up to {longest} steps after exec_horizon={config.executor.exec_horizon} is longer than the chunk of "
                f"{policy.pred_horizon}: nothing would be left to execute meanwhile."
            )
        late = self._lateness if longest else None
        self._executor = ChunkExecutor(policy, config.executor, num_rows=self._rows, lateness=late)
        limits = SafetyLimits.from_spaces(env.spec.spaces)
        self._safety = SafetyFilter(limits, num_rows=self._rows)
        self._start = np.broadcast_to(np.clip(0.0, *limits.inner_bounds()), (self._rows, limits.dim))
        self._rngs = [generator(0)] * self._rows
        self._seeds = np.zeros(self._rows, np.int64)
        self._running = np.zeros(self._rows, bool)
        self._ended = np.ones(self._rows, bool)
        self._ticks = 0
        # Per-row sums of the running episode; the last four sent actions give differences up to the third.
        self._length = np.zeros(self._rows, np.int64)
        self._return = np.zeros(self._rows)
        self._success = np.zeros(self._rows, bool)
        self._recent = np.zeros((self._rows, 4, limits.dim))
        self._change = np.zeros(self._rows)
        self._jerk = np.zeros(self._rows)
        self.observation: Observation = {}
        self.refill()

    def _lateness(self, rngs: Sequence[np.random.Generator]) -> Array:
        """Return how late each decision of the rows with these generators is [steps]."""
        drawn = [int(rng.integers(self._config.delay_jitter + 1)) if self._config.delay_jitter else 0 for rng in rngs]
        return self._config.delay_steps + np.array(drawn, np.int64)

    @property
    def running(self) -> bool:
        """Whether any episode is in flight."""
        return bool(self._running.any())

    def in_flight(self) -> list[tuple[int, int]]:
        """Return (environment, seed) of the running episodes."""
        return [(int(row), int(self._seeds[row])) for row in np.flatnonzero(self._running)]

    def advance(self) -> Tick:
        """Make one control step of every running episode."""
        active = self._running
        wanted = self._executor.act(self.observation, self._rngs, active=active)
        sent = self._safety.apply(wanted, now_s=self._ticks / self._env.spec.spaces.control_rate_hz).astype(np.float32)
        step = self._env.step(sent)
        self._ticks += 1
        self.observation = step.observation
        self._account(sent, np.asarray(step.reward, float), np.asarray(step.success, bool))
        self._ended = active & np.asarray(step.ended, bool)
        rows = np.flatnonzero(active)
        return Tick(
            rows=tuple(rows.tolist()),
            seeds=tuple(self._seeds[rows].tolist()),
            actions=sent,
            finished=tuple(self._result(row) for row in np.flatnonzero(self._ended)),
        )

    def refill(self) -> None:
        """Start the next seeds in the environments whose episode has ended."""
        ended = np.flatnonzero(self._ended)
        if not ended.size:
            return
        self._ended = np.zeros(self._rows, bool)
        first = not self.observation
        starting = ended[: len(self._queue)]
        taken, self._queue = self._queue[: len(starting)], self._queue[len(starting) :]
        self._running[ended] = False
        self._running[starting] = True
        # In a first reset environments without an episode still need some state: they take the last one's and are never counted.
        self._seeds[starting] = taken
        self._seeds[ended[len(starting) :]] = taken[-1] if taken else 0
        if first or len(starting):
            mask = np.ones(self._rows, bool) if first else self._running & _mask(starting, self._rows)
            self.observation = self._env.reset(self._seeds.tolist(), None if first else mask)
            self._executor.reset(mask)
            self._safety.reset(self._start, mask)
        for row in starting:
            self._executor.seams[row] = self._executor.seam_counts[row] = 0
            self._rngs[row] = generator(self._config.policy_seed, "episode", int(self._seeds[row]))
        for total in (self._length, self._return, self._success, self._recent, self._change, self._jerk):
            total[starting] = 0

    def _account(self, sent: Array, reward: Array, success: Array) -> None:
        """Add one step to the sums of the rows; rows that are not running are reset before they count again."""
        self._length += 1
        self._return += reward
        self._success |= success
        self._recent[:, :-1] = self._recent[:, 1:]
        self._recent[:, -1] = sent
        a, b, c, d = np.moveaxis(self._recent, 1, 0)
        self._change += np.where(self._length >= 2, np.abs(d - c).mean(axis=1), 0)
        self._jerk += np.where(self._length >= 4, ((d - 3 * c + 3 * b - a) ** 2).mean(axis=1), 0)

    def _result(self, row: int) -> EpisodeResult:
        length = int(self._length[row])
        hits = {kind: int(count[row]) for kind, count in self._safety.counts.items() if count[row]}
        return EpisodeResult(
            seed=int(self._seeds[row]),
            success=bool(self._success[row]),
            length=length,
            episode_return=float(self._return[row]),
            mean_action_change=float(self._change[row] / max(length - 1, 1)),
            mean_squared_jerk=float(self._jerk[row] / max(length - 3, 1)),
            safety_hits=hits,
            mean_seam=float(self._executor.seams[row] / max(self._executor.seam_counts[row], 1)),
        )


def evaluate(
    env: Env,
    policy: Policy,
    seeds: Sequence[int],
    config: RolloutConfig | None = None,
    *,
    progress: Progress | None = None,
    clock: Clock = time.perf_counter,
) -> EvaluationResult:
    """Run one episode per seed and return what happened.

    Ctrl-C or SIGTERM ends the evaluation after the control step under way: the result then holds the finished episodes and names
    the signal.

    Args:
        env: any number of environments.
        policy: a batch of rows is asked with one generator per row.
        seeds: initial states, all different.
        config: defaults if None.
        progress: called with each finished episode.
        clock: monotonic seconds; used for timings only.

    Raises:
        RefusedError: before the first step, if policy and environment do not fit, or seeds repeat.
    """
    config = config or RolloutConfig()
    timed = TimedPolicy(policy, clock)
    rollouts = Rollouts(env, timed, seeds, config)
    first = {key: rollouts.observation[key][:1] for key in policy.spaces.observation}
    history = {key: np.repeat(value[:, None], policy.obs_horizon, axis=1) for key, value in first.items()}
    single = time_decisions(policy, history, config.timed_decisions, budget_s=config.timing_budget_s, clock=clock)
    results: dict[int, EpisodeResult] = {}
    begin = clock()
    with InterruptGuard() as guard:
        while rollouts.running and guard.signal_number is None:
            for episode in rollouts.advance().finished:
                results[episode.seed] = episode
                if progress is not None:
                    progress(episode)
            rollouts.refill()
    return EvaluationResult(
        task=env.spec.task,
        fidelity=env.spec.fidelity,
        robot=env.spec.spaces.robot,
        max_episode_steps=env.spec.max_episode_steps,
        control_rate_hz=env.spec.spaces.control_rate_hz,
        config=config,
        episodes=tuple(results[int(seed)] for seed in seeds if int(seed) in results),
        batch_latency=timed.latency(),
        single_latency=single,
        wall_s=clock() - begin,
        seeds_asked=len(seeds),
        interrupted_by=guard.signal_number,
    )


def _checked_seeds(seeds: Sequence[int]) -> list[int]:
    checked = [int(seed) for seed in seeds]
    if not checked:
        raise RefusedError("An evaluation needs at least one seed.")
    if len(set(checked)) != len(checked) or min(checked) < 0:
        raise RefusedError(
            f"Seeds must be different and not negative; {len(checked)} came, {len(set(checked))} of them different."
        )
    return checked


def _mask(rows: Array, size: int) -> Array:
    mask = np.zeros(size, bool)
    mask[rows] = True
    return mask
