"""Environments that act for the online loop: executor, safety filter, restarts, and what it takes to bring them back."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.core.seeding import first_online_seed, generator
from robolearn.core.types import Array, Observation, Step, require_compatible
from robolearn.data.replay_buffer import ACTION, CONDITION, LATENT, PLAN, SINCE_DECISION
from robolearn.deploy.executor import ChunkExecutor, ExecutorConfig
from robolearn.deploy.limits import SafetyLimits
from robolearn.deploy.safety import SafetyFilter


@dataclass(frozen=True)
class Outcome:
    """One control step of all lanes."""

    observation: Observation
    """What was seen before the step, of what the policy reads: key -> (lanes, ...), raw units."""
    fields: Mapping[str, Tensor]
    """What was decided: the fields of :class:`robolearn.data.replay_buffer.ReplayBuffer` and what else the behaviour noted."""
    sent: Array
    """(lanes, a) the action that was executed, raw units."""
    step: Step
    """What came of it; a time limit that counts as failure terminates."""

    @property
    def finished(self) -> tuple[bool, ...]:
        """Success of each episode that ended."""
        return tuple(np.asarray(self.step.success, bool)[np.asarray(self.step.ended, bool)].tolist())

    def replay(self) -> dict[str, Any]:
        """Return what the replay buffer's ``add`` takes."""
        return {"fields": self.fields, **self.results()}

    def results(self) -> dict[str, Tensor]:
        """Return ``reward`` float32, ``terminated`` and ``truncated`` bool, (lanes,) each, on the policy's device."""
        device = self.fields[CONDITION].device
        step = {"reward": np.float32, "terminated": bool, "truncated": bool}
        return {k: torch.as_tensor(np.asarray(getattr(self.step, k), kind), device=device) for k, kind in step.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Return fields and results by name."""
        return {**self.fields, **self.results()}


class Lanes:
    """``count`` environments whose episodes start anew as soon as they end; every lane acts at every step.

    Alternate :meth:`decide` and :meth:`step`; the latter touches neither torch nor the behaviour and may run in another thread.
    """

    def __init__(
        self,
        env: Env,
        behaviour: Any,
        *,
        exec_horizon: int,
        plan_steps: int,
        latent_size: int,
        timeouts_fail: bool,
        seed: int,
    ) -> None:
        require_compatible(behaviour.spaces, env.spec.spaces, what=f"refining on task {env.spec.task!r}")
        self.count = env.num_envs
        self.device: torch.device = behaviour.device
        self._env, self._behaviour, self._plan_steps, self._seed = env, behaviour, plan_steps, seed
        self._latent_size, self._timeouts_fail = latent_size, timeouts_fail
        self._exec_horizon = exec_horizon
        self._executor = ChunkExecutor(behaviour, ExecutorConfig(exec_horizon), num_rows=self.count)
        limits = SafetyLimits.from_spaces(env.spec.spaces)
        self._safety = SafetyFilter(limits, num_rows=self.count)
        self._safety.reset(np.broadcast_to(np.clip(0.0, *limits.inner_bounds()), (self.count, limits.dim)))
        self._centre, self._half = env.spec.spaces.action_scaling()
        self._rngs = [generator(seed, "explore", lane) for lane in range(self.count)]
        self._started = 0
        self._seeds = np.zeros(self.count, np.int64)
        self._ages = np.zeros(self.count, np.int64)
        self._sent_log: deque[Array] = deque(maxlen=env.spec.max_episode_steps)
        self._ticks = 0
        self._observation: Observation = self._reset(np.ones(self.count, bool))

    def field_dims(self) -> dict[str, int]:
        """Return the replay's fields and their sizes."""
        action_dim = len(self._centre)
        dims = {CONDITION: self._behaviour.condition_dim, ACTION: action_dim, PLAN: self._plan_steps * action_dim}
        return dims | ({LATENT: self._latent_size, SINCE_DECISION: 1} if self._latent_size else {})

    def decide(self, *, warmup: bool) -> None:
        """Choose the actions of the next step; in the warm-up the frozen base chooses them."""
        asked = np.flatnonzero(self._executor.since_decision() + 1 >= self._exec_horizon)
        self._behaviour.warmup, self._behaviour.ages, self._behaviour.asked = warmup, self._ages, asked
        # Copied: environments may write the next observation into the same arrays.
        self._seen = {key: np.array(self._observation[key]) for key in self._behaviour.spaces.observation}
        wanted = self._executor.act(self._observation, self._rngs)
        rate_hz = self._env.spec.spaces.control_rate_hz
        self._sent = self._safety.apply(wanted, now_s=self._ticks / rate_hz).astype(np.float32)
        plan = np.clip((self._executor.planned(self._plan_steps) - self._centre) / self._half, -1.0, 1.0)
        self._fields = {
            **self._behaviour.noted,
            ACTION: torch.as_tensor((self._sent - self._centre) / self._half, device=self.device),
            PLAN: torch.as_tensor(plan.reshape(self.count, -1), device=self.device),
        }
        if self._latent_size:
            latent = np.asarray(self._executor.latent_noise()).reshape(self.count, -1)
            since = self._executor.since_decision()[:, None].astype(np.float32)
            recorded = {LATENT: latent, SINCE_DECISION: since}
            self._fields |= {name: torch.tensor(value, device=self.device) for name, value in recorded.items()}

    def step(self) -> Outcome:
        """Execute the chosen actions; restart the lanes whose episode has ended."""
        step = self._env.step(self._sent)
        self._ticks += 1
        self._sent_log.append(self._sent)
        self._ages += 1
        self._observation = step.observation
        ended = np.asarray(step.ended, bool)
        if ended.any():
            self._observation = self._reset(ended)
        if self._timeouts_fail:
            over = np.asarray(step.terminated | step.truncated, bool)
            step = replace(step, terminated=over, truncated=np.zeros_like(over))
        return Outcome(self._seen, self._fields, self._sent, step)

    def _reset(self, mask: Array) -> Observation:
        rows = np.flatnonzero(mask)
        first = first_online_seed(self._seed) + self._started
        self._seeds[rows] = first + np.arange(len(rows))
        self._started += len(rows)
        self._ages[rows] = 0
        self._executor.reset(mask)
        return self._env.reset(self._seeds.tolist(), None if mask.all() else mask)

    def tensors(self) -> dict[str, Tensor]:
        """Return the arrays that :meth:`restore` reads."""
        log = list(self._sent_log)[-max(1, int(self._ages.max())) :] if self._sent_log else []
        arrays = {f"executor/{k}": v for k, v in self._executor.state().items()}
        arrays |= {f"observation/{k}": v for k, v in self._observation.items()}
        arrays |= {"seeds": self._seeds, "ages": self._ages}
        if log:
            arrays["sent"] = np.stack(log)
        return {name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}

    def state(self) -> dict[str, object]:
        """Return the rest of the state, JSON-serialisable."""
        return {"started": self._started, "ticks": self._ticks, "rngs": [rng.bit_generator.state for rng in self._rngs]}

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Bring the lanes back to :meth:`state` and :meth:`tensors`: running episodes are stepped again as logged.

        Raises:
            RefusedError: the environments do not come back to the observation that was saved (another simulator or version).
        """
        arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
        if arrays["seeds"].shape != self._seeds.shape:
            raise RefusedError(f"The checkpoint has {len(arrays['seeds'])} environments, this run {self.count}.")
        self._started, self._ticks = int(state["started"]), int(state["ticks"])
        for rng, saved in zip(self._rngs, state["rngs"], strict=True):
            rng.bit_generator.state = saved
        self._seeds[:], self._ages[:] = arrays["seeds"], arrays["ages"]
        self._replay_episodes(arrays)
        self._executor.restore({k.removeprefix("executor/"): v for k, v in arrays.items() if k.startswith("executor/")})

    def _replay_episodes(self, arrays: Mapping[str, Array]) -> None:
        """Step every lane through its running episode; a lane begins when as many logged steps are left as its episode is old."""
        length = int(self._ages.max())
        log = arrays["sent"][-length:] if length else np.zeros((0, self.count, len(self._centre)), np.float32)
        observation = self._env.reset(self._seeds.tolist())
        for done, sent in enumerate(log):
            beginning = self._ages == length - done
            if done and beginning.any():
                self._env.reset(self._seeds.tolist(), beginning)
            observation = self._env.step(sent).observation
        fresh = self._ages == 0
        if length and fresh.any():
            observation = self._env.reset(self._seeds.tolist(), fresh)
        self._sent_log.clear()
        self._sent_log.extend(log)
        for key, value in observation.items():
            if not np.array_equal(value, arrays[f"observation/{key}"]):
                raise RefusedError(
                    f"The environments did not come back to the saved {key!r}: another simulator or version made it."
                )
        self._observation = observation
