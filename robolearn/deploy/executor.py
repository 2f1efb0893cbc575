"""Turns chunks of predicted actions into one action per control step; the evaluator and the robot run this same code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import CorrectingPolicy, Policy
from robolearn.core.types import ActionChunk, Array, Observation


@dataclass(frozen=True)
class ExecutorConfig:
    """How much of each chunk is executed, and whether consecutive chunks are blended."""

    exec_horizon: int = 8
    """Steps executed before the policy is asked again; in [1, pred_horizon]."""
    temporal_overlap: bool = False
    """Average every chunk that covers a step, instead of obeying the newest alone (ACT, Zhao et al. 2023, section IV-A)."""
    overlap_decay: float = 0.01
    """m in the weights exp(-m i), where i = 0 is the oldest chunk; a larger m trusts old predictions more [1/chunk]."""

    def __post_init__(self) -> None:
        if self.exec_horizon < 1:
            raise RefusedError(f"exec_horizon={self.exec_horizon} must be at least 1.")
        if not np.isfinite(self.overlap_decay) or self.overlap_decay < 0:
            raise RefusedError(f"overlap_decay={self.overlap_decay} must be finite and not negative.")


class ChunkExecutor:
    """Observation history and action queue for ``b`` rows, which may be at different points of their chunks.

    A row's actions depend on its own observations and generator alone: rows that need a chunk are sent to the policy together,
    but each draws from its own generator.
    """

    def __init__(self, policy: Policy, config: ExecutorConfig, *, num_rows: int) -> None:
        if config.exec_horizon > policy.pred_horizon:
            raise RefusedError(
                f"exec_horizon={config.exec_horizon} must lie in [1, {policy.pred_horizon}], the policy's pred_horizon."
            )
        if num_rows < 1:
            raise RefusedError(f"{num_rows=} must be at least 1.")
        self._policy = policy
        self._config = config
        self._num_rows = num_rows
        self._history: Observation = {}
        # A step's action is _total / _weight: one chunk with weight 1, or the weighted sum of all chunks that cover the step.
        self._total = np.zeros((num_rows, policy.pred_horizon, policy.spaces.action_dim), np.float32)
        self._weight = np.zeros((num_rows, policy.pred_horizon), np.float32)
        self._chunks = np.zeros((num_rows, policy.pred_horizon), np.int64)
        self._cursor = np.full(num_rows, config.exec_horizon)
        self._fresh = np.ones(num_rows, bool)
        self._latent_noise: Array | None = None

    def reset(self, mask: Array | None = None) -> None:
        """Forget history and queue of the rows in ``mask`` (b,) bool, all by default: a new episode begins there."""
        rows = np.ones(self._num_rows, bool) if mask is None else np.asarray(mask, bool)
        if rows.shape != (self._num_rows,):
            raise RefusedError(f"The reset mask must have shape {(self._num_rows,)}, got {rows.shape}.")
        self._fresh |= rows
        self.replan(rows)

    def replan(self, mask: Array | None = None) -> None:
        """Forget the queue, not the history, of the rows in ``mask`` (b,) bool: the policy is asked at the next :meth:`act`."""
        rows = slice(None) if mask is None else mask
        self._cursor[rows] = self._config.exec_horizon
        self._weight[rows], self._total[rows], self._chunks[rows] = 0, 0, 0

    def skip(self, observation: Observation) -> None:
        """Move every row on by a control step in which no action was asked for: history and queue slide by one.

        This keeps the queue in step with the world when a decision took longer than a control step.

        Raises:
            RefusedError: see :meth:`act`.
        """
        self._observe(observation, np.ones(self._num_rows, bool))
        self._cursor += 1

    def act(self, observation: Observation, rngs: Sequence[np.random.Generator], *, active: Array | None = None) -> Array:
        """Return the actions (b, a) float32 for the control step at which ``observation`` was taken.

        Args:
            observation: key -> (b, ...) in raw units; keys that the policy does not read are ignored.
            rngs: one generator per row, used for the rows that need a chunk.
            active: (b,) bool; other rows get zeros and cost no policy query. All by default.

        Raises:
            RefusedError: an observation is missing, misshapen or not finite, or the chunk has the wrong shape. Non-finite
                actions pass: refusing them is the safety filter's part, which knows what to send instead.
        """
        rows = np.ones(self._num_rows, bool) if active is None else np.asarray(active, bool)
        if len(rngs) != self._num_rows or rows.shape != (self._num_rows,):
            raise RefusedError(
                f"{self._num_rows} rows need as many generators and mask entries, got {len(rngs)} and {rows.shape}."
            )
        self._observe(observation, rows)
        due = np.flatnonzero(rows & (self._cursor >= self._config.exec_horizon))
        if due.size:
            chunk = self._policy.predict({k: v[due] for k, v in self._history.items()}, [rngs[i] for i in due])
            self._accept(due, chunk)
        active_rows = np.flatnonzero(rows)
        action = np.zeros((self._num_rows, self._total.shape[2]), np.float32)
        at = active_rows, self._cursor[active_rows]
        action[active_rows] = self._total[at] / self._weight[at][:, None]
        if isinstance(self._policy, CorrectingPolicy) and active_rows.size:
            seen = {k: v[active_rows] for k, v in self._history.items()}
            action[active_rows] = self._policy.correct(seen, action[active_rows], [rngs[i] for i in active_rows])
        self._cursor[active_rows] += 1
        return action

    def planned(self, steps: int) -> Array:
        """Return (b, steps, a): what the queue holds from the step of the last :meth:`act` on, before any correction.

        Behind the end of the queue its last action is repeated. Rows without a chunk hold zeros.
        """
        at = np.minimum(self._cursor[:, None] - 1 + np.arange(steps), self._total.shape[1] - 1)
        rows = np.arange(self._num_rows)[:, None]
        at = np.clip(at, 0, np.maximum((self._weight > 0).sum(axis=1) - 1, 0)[:, None])
        return self._total[rows, at] / np.maximum(self._weight[rows, at], 1e-9)[:, :, None]

    def since_decision(self) -> Array:
        """Return (b,): how many steps before that of the last :meth:`act` the chunk of each row was decided."""
        return self._cursor - 1

    def latent_noise(self) -> Array | None:
        """Return (b, ...) what the newest chunk of each row was decoded from; None where the policy does not say."""
        return self._latent_noise

    def state(self) -> dict[str, Array]:
        """Return history and queue as arrays that :meth:`restore` reads."""
        queue = {
            "total": self._total,
            "weight": self._weight,
            "chunks": self._chunks,
            "cursor": self._cursor,
            "fresh": self._fresh,
        }
        if self._latent_noise is not None:
            queue["latent_noise"] = self._latent_noise
        return {name: np.array(value) for name, value in queue.items()} | {
            f"history/{k}": v.copy() for k, v in self._history.items()
        }

    def restore(self, state: Mapping[str, Array]) -> None:
        """Continue from :meth:`state` of an executor of the same policy, configuration and number of rows."""
        self._history = {k.removeprefix("history/"): v.copy() for k, v in state.items() if k.startswith("history/")}
        for name, own in (("total", self._total), ("weight", self._weight), ("chunks", self._chunks), ("cursor", self._cursor)):
            if state[name].shape != own.shape:
                raise RefusedError(f"Executor state {name!r} has shape {state[name].shape}, this executor's is {own.shape}.")
            own[:] = state[name]
        self._fresh[:] = state["fresh"]
        self._latent_noise = state["latent_noise"].copy() if "latent_noise" in state else None

    def _observe(self, observation: Observation, rows: Array) -> None:
        """Append the newest observation; at the start of an episode it fills the whole history."""
        for key, feature in self._policy.spaces.observation.items():
            if key not in observation:
                raise RefusedError(f"Observation {key!r} is missing; came {sorted(observation)}.")
            newest = np.asarray(observation[key])
            if newest.shape != (self._num_rows, *feature.shape):
                raise RefusedError(f"{key!r} must have shape {(self._num_rows, *feature.shape)}, got {newest.shape}.")
            if newest.dtype.kind == "f" and not np.isfinite(newest[rows]).all():
                bad = np.flatnonzero(rows & ~np.isfinite(newest).reshape(self._num_rows, -1).all(axis=1))
                raise RefusedError(f"{key!r} is not finite in rows {bad.tolist()}.")
            if key not in self._history:
                shape = (self._num_rows, self._policy.obs_horizon, *feature.shape)
                self._history[key] = np.zeros(shape, feature.dtype)
            history = self._history[key]
            history[:, :-1] = history[:, 1:]
            history[:, -1] = newest
            starting = rows & self._fresh
            history[starting] = newest[starting][:, None]
        self._fresh &= ~rows

    def _accept(self, due: Array, chunk: ActionChunk) -> None:
        """Queue new chunks for the rows ``due``, on top of what older chunks said if they overlap."""
        expected = (len(due), *self._total.shape[1:])
        if chunk.actions.shape != expected:
            raise RefusedError(f"The policy's chunk must have shape {expected}, got {chunk.actions.shape}.")
        if not self._config.temporal_overlap:
            self._total[due], self._weight[due] = chunk.actions, 1
        else:
            # Rows that have just started hold zeros, so shifting them past the used steps changes nothing.
            at = self._cursor[due][:, None] + np.arange(self._total.shape[1])
            kept = at < self._total.shape[1]
            at = np.where(kept, at, 0)
            for queue in (self._total, self._weight, self._chunks):
                rows = queue[due[:, None], at]
                queue[due] = np.where(kept.reshape(*kept.shape, *(1,) * (rows.ndim - 2)), rows, 0)
            weight = np.exp(-self._config.overlap_decay * self._chunks[due]).astype(np.float32)
            self._total[due] += weight[:, :, None] * chunk.actions
            self._weight[due] += weight
            self._chunks[due] += 1
        self._cursor[due] = 0
        if chunk.latent_noise is not None:
            if self._latent_noise is None:
                self._latent_noise = np.zeros((self._num_rows, *chunk.latent_noise.shape[1:]), np.float32)
            self._latent_noise[due] = chunk.latent_noise
