"""Turns chunks of predicted actions into one action per control step; the evaluator and the robot run this same code."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from robolearn.core.continuation import soft_weights
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, CorrectingPolicy, Policy
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

    continuation: Literal["switch", "blend", "guided", "trained"] = "switch"
    """How a new chunk continues the one under way. ``switch`` ignores it. ``blend`` mixes both, with decaying weight of the
    old one. ``guided`` and ``trained`` ask the policy for a chunk that continues the old one (real-time chunking): by pulling
    its denoising, or because it was trained for that (``max_delay``)."""
    delay_steps: int | None = 0
    """Control steps that a decision is expected to take: so much of the old chunk is kept. null: as the engine measures."""

    def __post_init__(self) -> None:
        if self.exec_horizon < 1:
            raise RefusedError(f"exec_horizon={self.exec_horizon} must be at least 1.")
        if self.continuation not in ("switch", "blend", "guided", "trained"):
            raise RefusedError(f"continuation={self.continuation!r} is unknown. Allowed: switch, blend, guided, trained.")
        if self.delay_steps is not None and self.delay_steps < 0:
            raise RefusedError(f"delay_steps={self.delay_steps} must not be negative.")
        if self.continuation != "switch" and self.temporal_overlap:
            raise RefusedError(f"temporal_overlap and continuation={self.continuation!r} exclude each other.")
        if not np.isfinite(self.overlap_decay) or self.overlap_decay < 0:
            raise RefusedError(f"overlap_decay={self.overlap_decay} must be finite and not negative.")


type Lateness = Callable[[Sequence[np.random.Generator]], Array]
"""From one generator per decision to the (n,) control steps by which each decision comes late: simulates slow inference."""


@dataclass(frozen=True)
class Decision:
    """A decision that is made while the queue goes on being played: ``ask`` in another thread, then ``ChunkExecutor.arrive``."""

    ask: Callable[[], ActionChunk]
    """Asks the policy about what had been seen when the decision began; touches nothing of the executor."""
    plan: Array
    """(1, h, a) what was left of the queue then, zeros behind it."""
    left: Array
    """(1,) int, how much of it is real."""
    cursor: int
    """Where the queue stood."""


class ChunkExecutor:
    """Observation history and action queue for ``b`` rows, which may be at different points of their chunks.

    A row's actions depend on its own observations and generator alone: rows that need a chunk are sent to the policy together,
    but each draws from its own generator.

    Attributes:
        delay_steps: control steps that a decision is expected to take; may change between decisions.
        seams: (b,) sums over decisions of how far apart, in half ranges of the action, the old and the new chunk are at the
        first step
            that the new one decides (mean over elements, those called ``gripper`` aside).
        seam_counts: (b,) decisions that went into it.
    """

    def __init__(self, policy: Policy, config: ExecutorConfig, *, num_rows: int, lateness: Lateness | None = None) -> None:
        if config.exec_horizon > policy.pred_horizon:
            raise RefusedError(
                f"exec_horizon={config.exec_horizon} must lie in [1, {policy.pred_horizon}], the policy's pred_horizon."
            )
        self.delay_steps = config.delay_steps or 0
        if config.exec_horizon + self.delay_steps > policy.pred_horizon:
            raise RefusedError(
                f"A delay of {self.delay_steps} steps after exec_horizon={config.exec_horizon} is longer than the chunk of "
                f"{policy.pred_horizon}: nothing would be left to execute meanwhile."
            )
        self._asks_to_continue = config.continuation in ("guided", "trained")
        if self._asks_to_continue and not isinstance(policy, ContinuingPolicy):
            raise RefusedError(f"continuation={config.continuation!r} needs a policy that can continue a chunk, this one cannot.")
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
        self._due_at = np.full(num_rows, config.exec_horizon)
        self._lateness = lateness
        arm = np.array(["gripper" not in name for name in policy.spaces.action.names or [""] * policy.spaces.action_dim])
        self._seam_scale = arm / (max(1, arm.sum()) * policy.spaces.action_scaling()[1])
        self.seams, self.seam_counts = np.zeros(num_rows), np.zeros(num_rows, np.int64)
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
        self._cursor[rows] = self._due_at[rows] = self._config.exec_horizon
        self._weight[rows], self._total[rows], self._chunks[rows] = 0, 0, 0

    def skip(self, observation: Observation) -> None:
        """Move every row on by a control step in which no action was asked for: history and queue slide by one.

        This keeps the queue in step with the world when a decision took longer than a control step.

        Raises:
            RefusedError: see :meth:`act`.
        """
        self._observe(observation, np.ones(self._num_rows, bool))
        self._cursor += 1

    def act(
        self,
        observation: Observation,
        rngs: Sequence[np.random.Generator],
        *,
        active: Array | None = None,
        elsewhere: Callable[[], bool] | None = None,
    ) -> Array:
        """Return the actions (b, a) float32 for the control step at which ``observation`` was taken.

        Args:
            observation: key -> (b, ...) in raw units; keys that the policy does not read are ignored.
            rngs: one generator per row, used for the rows that need a chunk.
            active: (b,) bool; other rows get zeros and cost no policy query. All by default.
            elsewhere: asked, of a single row, where a decision is due and there is a plan to play meanwhile: True where it is
                being made elsewhere (see :meth:`decision`). None decides at once.

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
        due = np.flatnonzero(rows & (self._cursor >= self._due_at))
        if due.size and not (elsewhere is not None and self.left() and elsewhere()):
            self._decide(due, rngs)
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

    def decision(self, rngs: Sequence[np.random.Generator]) -> Decision:
        """Return the decision that is due, to be made while the queue is played on.

        Raises:
            RefusedError: there is more than one row.
        """
        if self._num_rows != 1:
            raise RefusedError(f"Only a single row can be decided for while it is played, there are {self._num_rows}.")
        only, left = np.zeros(1, np.int64), self.left()
        plan = self._remaining(only)
        ask = self._question(only, rngs, plan, left if self._asks_to_continue else 0)
        return Decision(ask, plan, np.array([left]), int(self._cursor[0]))

    def arrive(self, decision: Decision, chunk: ActionChunk) -> None:
        """Take over the chunk of a decision that began some control steps ago: from now on it is as late as it is.

        Raises:
            RefusedError: the chunk has the wrong shape.
        """
        only = np.zeros(1, np.int64)
        late = self._cursor - decision.cursor
        self._cursor -= late
        self._accept(only, chunk)
        self._join(only, decision.plan, decision.left, late)
        self._cursor += late

    def left(self) -> int:
        """Return how many control steps are still planned for the only row."""
        return max(int((self._weight[0] > 0).sum()) - int(self._cursor[0]), 0)

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
        for key, feature in self._policy.spaces.observation.items():  # all or none: what is refused moves no part of the history
            newest = np.asarray(observation[key])
            if key not in self._history:
                shape = (self._num_rows, self._policy.obs_horizon, *feature.shape)
                self._history[key] = np.zeros(shape, feature.dtype)
            history = self._history[key]
            history[:, :-1] = history[:, 1:]
            history[:, -1] = newest
            starting = rows & self._fresh
            history[starting] = newest[starting][:, None]
        self._fresh &= ~rows

    def _decide(self, due: Array, rngs: Sequence[np.random.Generator]) -> None:
        """Ask the policy for the rows ``due``; those with equally much left of their plan together, where that matters to it."""
        left = np.maximum((self._weight[due] > 0).sum(axis=1) - self._cursor[due], 0)
        for count in np.unique(left) if self._asks_to_continue else [None]:
            part = due if count is None else due[left == count]
            sources, plan = [rngs[i] for i in part], self._remaining(part)
            chunk = self._question(part, sources, plan, 0 if count is None else int(count))()
            late = np.zeros(len(part), np.int64) if self._lateness is None else self._lateness(sources)
            self._accept(part, chunk)
            self._join(part, plan, left if count is None else left[left == count], late)

    def _question(self, rows: Array, rngs: Sequence[np.random.Generator], plan: Array, left: int) -> Callable[[], ActionChunk]:
        """Return what asks the policy for the chunks of ``rows``, which have ``left`` steps of their ``plan`` to continue."""
        seen = {k: v[rows] for k, v in self._history.items()}
        policy, method, delay = self._policy, self._config.continuation, min(self.delay_steps, left)
        if left and isinstance(policy, ContinuingPolicy):
            return lambda: policy.continue_chunk(seen, rngs, plan[:, :left], delay=delay, method=method)
        return lambda: policy.predict(seen, rngs)

    def _remaining(self, rows: Array) -> Array:
        """Return (n, h, a): what is planned from the cursor on, zeros behind it."""
        at = self._cursor[rows][:, None] + np.arange(self._total.shape[1])
        inside = at < self._total.shape[1]
        at = np.where(inside, at, 0)
        weight = np.where(inside, self._weight[rows[:, None], at], 0)[:, :, None]
        return np.where(weight > 0, self._total[rows[:, None], at] / np.maximum(weight, 1e-9), 0).astype(np.float32)

    def _join(self, rows: Array, plan: Array, left: Array, late: Array) -> None:
        """Keep the old ``plan`` (n, h, a) until the new chunk takes over, blend if asked to, and measure the seam.

        ``left`` (n,) is how much of the plan is real. A row without one takes its first chunk at once.
        """
        horizon = self._total.shape[1]
        kept = late if self._config.continuation == "switch" else np.maximum(late, self.delay_steps)
        kept = np.minimum(kept, left)
        if self._config.continuation == "blend":
            pairs = zip(kept.tolist(), left.tolist(), strict=True)
            share = np.stack([soft_weights(k, n, horizon) if n else np.zeros(horizon) for k, n in pairs])[:, :, None]
            self._total[rows] = share * plan + (1 - share) * self._total[rows]
        held = np.arange(horizon) < kept[:, None]
        weight = self._weight[rows][:, :, None]
        self._total[rows] = np.where(held[:, :, None], plan * weight, self._total[rows])
        meets = np.flatnonzero(kept < left)
        at = kept[meets]
        gap = np.abs(self._total[rows[meets], at] / weight[meets, at] - plan[meets, at])
        self.seams[rows[meets]] += gap @ self._seam_scale
        self.seam_counts[rows[meets]] += 1
        # A decision that takes longer than exec_horizon puts the next one off: there is one computer.
        self._due_at[rows] = np.maximum(self._config.exec_horizon, np.where(left > 0, late, 0))

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
