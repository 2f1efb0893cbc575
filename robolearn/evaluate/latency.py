"""Timing of policy queries; clocks are passed in and read only around the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, CorrectingPolicy, Policy, RandomSource
from robolearn.core.seeding import generator
from robolearn.core.types import ActionChunk, Array, Observation
from robolearn.evaluate.result import Latency

type Clock = Callable[[], float]
"""Monotonic seconds."""

WARM_UP_DECISIONS = 3
"""Queries made before timing: the first ones compile kernels and fill caches."""


class TimedPolicy:
    """A policy that notes how long each query took; chunks are passed through unchanged."""

    def __init__(self, policy: Policy, clock: Clock) -> None:
        self._policy, self._clock = policy, clock
        self.spaces, self.obs_horizon, self.pred_horizon = policy.spaces, policy.obs_horizon, policy.pred_horizon
        self._seconds: list[float] = []
        self._rows: list[int] = []
        if isinstance(policy, CorrectingPolicy):
            self.correct = policy.correct
        if isinstance(policy, ContinuingPolicy):
            self.continue_chunk = self._continue_chunk

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        return self._note(lambda: self._policy.predict(observation, rng))

    def _continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        policy: Any = self._policy
        return self._note(lambda: policy.continue_chunk(observation, rng, committed, delay=delay, method=method))

    def _note(self, ask: Callable[[], ActionChunk]) -> ActionChunk:
        start = self._clock()
        chunk = ask()
        self._seconds.append(self._clock() - start)
        self._rows.append(len(chunk.actions))
        return chunk

    def latency(self) -> Latency:
        """Return all durations so far."""
        return Latency(
            what="wall-clock time of one policy.predict call on all rows that were due together",
            seconds=tuple(round(s, 7) for s in self._seconds),
            mean_rows=float(np.mean(self._rows)) if self._rows else 0.0,
        )


def time_decisions(policy: Policy, observation: Observation, n: int, *, budget_s: float, clock: Clock) -> Latency:
    """Time single decisions: ``policy.predict`` on one row, from numpy observation to numpy actions.

    Args:
        policy: queried ``WARM_UP_DECISIONS`` times before timing.
        observation: key -> (1, obs_horizon, ...).
        n: decisions to time; fewer if the budget is used up, none if n is 0.
        budget_s: seconds after which no further decision is started.
        clock: monotonic seconds.
    """
    rows = {key: len(value) for key, value in observation.items()}
    if set(rows.values()) != {1}:
        raise RefusedError(f"Single decisions are timed on one row, got {rows}.")
    seconds: list[float] = []
    rng = generator(0, "latency")
    begin = clock()
    for index in range(n + WARM_UP_DECISIONS if n else 0):
        start = clock()
        if index > WARM_UP_DECISIONS and start - begin > budget_s:
            break
        policy.predict(observation, [rng])
        if index >= WARM_UP_DECISIONS:
            seconds.append(round(clock() - start, 7))
    return Latency(what="wall-clock time of one policy.predict call on one row", seconds=tuple(seconds), mean_rows=1.0)
