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

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.data.store import EpisodeStore
from robolearn.policies import tuned
from robolearn.refine.base import Behaviour, wrap
from robolearn.refine.cloning import CloningConfig, SelfCloning
from robolearn.train.lanes import Outcome
from robolearn.train.refiner import Phase


@dataclass(frozen=True)
class Config(CloningConfig):
    """Hyper-parameters of filtered behaviour cloning."""

    updates_per_step: float = 0.05
    """Updates per control step after the warm-up."""
    uses_demonstrations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.updates_per_step > 0:
            raise RefusedError(f"updates_per_step={self.updates_per_step} must be positive.")


class Refiner:
    """Trains the copy inside a :class:`robolearn.policies.tuned.Policy`."""

    plan_steps, latent_size, ramps = 1, 0, False

    def __init__(self, policy: tuned.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self._cloning = SelfCloning(policy.tuned, config)
        self._steps, self._updates = 0, 0

    def behaviour(self) -> Behaviour:
        """Return the exploring policy: the base in the warm-up, then the refined one."""
        return Behaviour(self._policy)

    def policy(self) -> tuned.Policy:
        """Return the refined policy."""
        return self._policy

    def imitate(self, store: EpisodeStore, episodes: Sequence[int]) -> None:
        """Learn from the successes among the demonstrations ``episodes`` too."""
        self._cloning.imitate(store, episodes)

    def observe(self, outcome: Outcome, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Keep the episodes that succeeded with this step; after the warm-up make the updates that are due."""
        self._cloning.remember(outcome)
        if not phase.actor or not len(self._cloning):
            return {}
        self._steps += len(outcome.sent)
        due = int(self._steps * self._config.updates_per_step) - self._updates
        losses = [self._cloning.update(rng) for _ in range(due)]
        if not losses:
            return {}
        self._updates += due
        self._policy.acting.fill_(True)
        return {"loss": torch.stack(losses).mean(), "kept_episodes": torch.tensor(float(self._cloning.episodes))}

    def tensors(self) -> dict[str, Tensor]:
        """Return the copy, its optimiser, the kept episodes and the running ones; not the demonstrations."""
        counts = {"steps": torch.tensor(self._steps), "updates": torch.tensor(self._updates)}
        return self._cloning.tensors() | counts

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        self._cloning.restore(tensors)
        self._steps, self._updates = int(tensors["steps"]), int(tensors["updates"])


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the tuned policy around a loaded ``base``; it equals the base exactly until the copy has learned."""
    policy = wrap(base, "tuned", tuned.Config())
    policy.tuned.load_state_dict(base.state_dict())
    return policy
