"""A policy at work in its own process: the evaluator's executor on one robot, with its latency measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Policy
from robolearn.core.types import Array, Observation
from robolearn.deploy.executor import ChunkExecutor, ExecutorConfig

type Clock = Callable[[], float]
"""Monotonic seconds."""

KEPT_LATENCIES = 500


class Engine:
    """Turns frames into chunks of which row 0 is for the frame's own control step.

    It runs :class:`robolearn.deploy.executor.ChunkExecutor`, as the evaluator does, so replanning, overlapping and per-step
    corrections are the ones that were measured.
    """

    def __init__(self, policy: Policy, config: ExecutorConfig, *, clock: Clock) -> None:
        self._policy, self._clock = policy, clock
        self._executor = ChunkExecutor(policy, config, num_rows=1)
        self._horizon = config.exec_horizon
        self._step = 0
        self._rng = np.random.default_rng(0)
        self.latencies_s: deque[float] = deque(maxlen=KEPT_LATENCIES)
        """Durations of the newest decisions (those that asked the policy), the warm-up not among them."""

    def warm_up(self) -> float:
        """Decide once on zeros, which pays for compilation and caches, and return how long that took [s]."""
        features = self._policy.spaces.observation
        frame = {key: np.zeros(f.shape, f.dtype) for key, f in features.items()}
        self.reset(np.random.default_rng(0))
        begin = self._clock()
        self.act(frame)
        took = self._clock() - begin
        self.latencies_s.clear()
        self.reset(np.random.default_rng(0))
        return took

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode: history, queue and step count start again, and ``rng`` is the source of every draw from now on."""
        self._executor.reset()
        self._rng, self._step = rng, 0

    def act(self, frame: Observation) -> Array:
        """Return (h, a) float32: the action for the frame's control step, then what is planned behind it.

        Args:
            frame: key -> array without batch axis; frames come one control step apart.

        Raises:
            RefusedError: the frame does not fit the policy, or the policy returned a number that is not finite.
        """
        begin = self._clock()
        action = self._executor.act({key: value[None] for key, value in frame.items()}, [self._rng])
        since = self._step % self._horizon
        rows = self._executor.planned(self._policy.pred_horizon - since)[0]
        rows[0] = action[0]
        if since == 0:
            self.latencies_s.append(self._clock() - begin)
        self._step += 1
        if not np.isfinite(rows).all():
            raise RefusedError(f"The policy's actions are not finite in {int((~np.isfinite(rows)).any(axis=1).sum())} rows.")
        return rows

    def latency_s(self, quantile: float) -> float:
        """Return a quantile of the newest decisions' durations; NaN before the first."""
        return float(np.quantile(self.latencies_s, quantile)) if self.latencies_s else float("nan")
