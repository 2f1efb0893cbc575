"""Filtered behaviour cloning: the policy's own successes are kept, and a copy of it is trained on them.

With ``L`` the base's supervised loss (for the diffusion policy Ho et al. 2020, eq. 14), ``E`` the episodes that succeeded so far
and, where given, the demonstrations that did, each update is one Adam step on

    E_{(s, a) from E} L(theta; s, a)

with the executed chunks ``a`` and the windows of supervised training. The base's rollouts of the warm-up begin E; afterwards the
copy acts and its successes join, so filtering and training iterate: reward-weighted regression (Peters and Schaal 2007) with the
rewards 0 and 1. What acts is the slow average ``theta' <- theta' + average_rate (theta - theta')``. There is no critic, and no
failure is learned from.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, Array
from robolearn.data.dataset import Batch
from robolearn.data.episode_memory import EpisodeMemory
from robolearn.data.store import EpisodeStore
from robolearn.nets.critics import follow
from robolearn.policies import tuned
from robolearn.refine.base import Behaviour, descend, module_tensors, restore_modules, wrap
from robolearn.train.lanes import Outcome
from robolearn.train.refiner import Phase


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of filtered behaviour cloning."""

    learning_rate: float = 1.0e-4
    """Adam's."""
    batch_size: int = 256
    """Windows per update."""
    updates_per_step: float = 0.05
    """Updates per control step after the warm-up."""
    average_rate: float = 0.005
    """How fast the weights that act follow the trained ones."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    uses_demonstrations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.updates_per_step > 0 or not 0 < self.average_rate <= 1:
            raise RefusedError(f"batch_size must be >= 1, updates_per_step positive and average_rate in (0, 1]; got {self}.")


class Refiner:
    """Trains the copy inside a :class:`robolearn.policies.tuned.Policy`."""

    plan_steps, latent_size = 1, 0

    def __init__(self, policy: tuned.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self._learner = copy.deepcopy(policy.tuned).requires_grad_(True)
        self._optimizer = torch.optim.Adam(self._learner.parameters(), config.learning_rate, fused=True)
        self._own, self._given = (EpisodeMemory(policy.obs_horizon, policy.pred_horizon, policy.device) for _ in ("own", "given"))
        self._log: list[dict[str, Array]] = []
        """The newest steps of all lanes, as many as the oldest running episode has."""
        self._ages = np.zeros(0, np.int64)
        self._steps, self._updates = 0, 0

    def behaviour(self) -> Behaviour:
        """Return the exploring policy: the base in the warm-up, then the refined one."""
        return Behaviour(self._policy)

    def policy(self) -> tuned.Policy:
        """Return the refined policy."""
        return self._policy

    def imitate(self, store: EpisodeStore, episodes: Sequence[int]) -> None:
        """Learn from the successes among the demonstrations ``episodes`` too."""
        keys = [*self._policy.spaces.observation, ACTION]
        for index in episodes:
            if store.successes[index]:
                self._given.add(store.read(index, keys).data)

    def observe(self, outcome: Outcome, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Keep the episodes that succeeded with this step; after the warm-up make the updates that are due."""
        self._remember(outcome)
        if not phase.actor or not len(self._own) + len(self._given):
            return {}
        self._steps += len(self._ages)
        due = int(self._steps * self._config.updates_per_step) - self._updates
        losses = [self._update(rng) for _ in range(due)]
        if not losses:
            return {}
        self._policy.acting.fill_(True)
        return {"loss": torch.stack(losses).mean(), "kept_episodes": torch.tensor(float(self._own.episodes))}

    def _remember(self, outcome: Outcome) -> None:
        self._log.append({**outcome.observation, ACTION: outcome.sent})
        if not len(self._ages):
            self._ages = np.zeros(len(outcome.sent), np.int64)
        self._ages += 1
        ended = np.asarray(outcome.step.ended, bool)
        for lane in np.flatnonzero(ended & np.asarray(outcome.step.success, bool)):
            steps = self._log[-self._ages[lane] :]
            self._own.add({key: np.stack([step[key][lane] for step in steps]) for key in steps[0]})
        self._ages[ended] = 0
        del self._log[: len(self._log) - int(self._ages.max())]

    def _update(self, rng: torch.Generator) -> Tensor:
        self._updates += 1
        config = self._config
        # The copy stays in evaluation mode: dropout would draw from torch's global generator, which no checkpoint holds.
        loss, _ = self._learner.loss(self._draw(rng), rng)
        descend(loss, self._learner, self._optimizer, config.max_gradient_norm)
        follow(self._policy.tuned, self._learner, config.average_rate)
        return loss.detach()

    def _draw(self, rng: torch.Generator) -> Batch:
        own, given = self._own, self._given
        index = torch.randint(len(own) + len(given), (self._config.batch_size,), generator=rng, device=self._policy.device)
        mine = index < len(own)
        parts = [memory.batch(i) for memory, i in ((own, index[mine]), (given, index[~mine] - len(own))) if len(i)]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def tensors(self) -> dict[str, Tensor]:
        """Return the copy, its optimiser, the kept episodes and the running ones; not the demonstrations."""
        log = {f"log/{k}": torch.from_numpy(np.stack([s[k] for s in self._log])) for k in (self._log or [{}])[0]}
        counts = {"steps": torch.tensor(self._steps), "updates": torch.tensor(self._updates)}
        kept = {f"own/{key}": value for key, value in self._own.state().items()}
        return self._networks() | kept | log | counts | {"ages": torch.from_numpy(self._ages.copy())}

    def _networks(self) -> dict[str, Tensor]:
        return module_tensors({"learner": self._learner}, {"learner": self._optimizer})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, {"learner": self._learner}, {"learner": self._optimizer})
        self._own.restore({k.removeprefix("own/"): v for k, v in tensors.items() if k.startswith("own/")})
        self._ages = tensors["ages"].numpy().copy()
        log = {k.removeprefix("log/"): v.numpy().copy() for k, v in tensors.items() if k.startswith("log/")}
        self._log = [{k: v[i] for k, v in log.items()} for i in range(int(self._ages.max(initial=0)))]
        self._steps, self._updates = int(tensors["steps"]), int(tensors["updates"])


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the tuned policy around a loaded ``base``; it equals the base exactly until the copy has learned."""
    policy = wrap(base, "tuned", tuned.Config())
    policy.tuned.load_state_dict(base.state_dict())
    return policy
