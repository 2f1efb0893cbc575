"""Best of N: critics learn to value the base's chunks, and the best of several proposals is executed.

The policy itself never moves: every executed chunk is one that the frozen base proposed, so critics that know nothing choose at
random, which is the base. What is valued is what acts (SARSA, on chunks of k control steps): with ``d`` the discount per
control step and ``p_k`` the chunk that was planned at ``s_k``,

- critics: ``(Q_i(s, a) - y)^2``, ``y = sum_j d^j reward_j + d^k mean_i Q'_i(s_k, p_k)``
- acting: ``argmax_n mean_i Q_i(s, D(s, w_n)) - pessimism std_i Q_i``, ``w_n`` from N(0, I), n = 1..N

No update decodes anything, so this is by far the cheapest method. IDQL (Hansen-Estruch et al. 2023) and Q-chunking (Li et al.
2025) choose the same way.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.types import ActionChunk, Array, Observation
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.nets.critics import CriticConfig, CriticEnsemble, follow
from robolearn.policies import selected
from robolearn.refine.base import critic_autocast, descend, module_tensors, restore_modules, settle, wrap
from robolearn.train.online import Phase


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of best of N."""

    candidates: int = 16
    """Chunks proposed per decision."""
    pessimism: float = 0.5
    """Standard deviations between the critics that are taken off each candidate's value."""
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(members=5, layers=2))
    """The critics."""
    window_steps: int = 4
    """k, control steps of the chunk that is valued; equal to ``evaluate.exec_horizon``."""
    discount: float = 0.999
    """Per control step. A smaller one rewards haste more than it punishes failure, and critics learn haste first."""
    critic_learning_rate: float = 3.0e-4
    """Adam's."""
    target_rate: float = 0.005
    """How fast the target critics, which also choose, follow."""
    outcome_weight: float = 0.5
    """Share of the return that the episode really had in the target, where it is known; the rest is bootstrapped. It carries
    success and
    failure back over a whole episode at once."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    value_range: tuple[float, float] | None = (0.0, 1.0)
    """Returns that are possible; targets are clipped to them. Null does not clip."""
    bf16: bool = False
    """Compute the critics in bfloat16."""

    def __post_init__(self) -> None:
        if self.window_steps < 1 or not 0 < self.discount < 1:
            raise RefusedError(f"window_steps={self.window_steps} must be >= 1 and discount={self.discount} in (0, 1).")


class Behaviour:
    """Acts as the refined policy does: sampling N proposals explores by itself."""

    def __init__(self, policy: selected.Policy) -> None:
        self._policy = policy
        self.spaces, self.obs_horizon, self.pred_horizon = policy.spaces, policy.obs_horizon, policy.pred_horizon
        self.device: torch.device = policy.selecting.device
        self.condition_dim: int = policy.encoder.condition_dim
        self.warmup = True
        self.noted = torch.zeros(0, device=self.device)

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return the base's chunk in the warm-up, the chosen one afterwards."""
        return (self._policy.base if self.warmup else self._policy).predict(observation, rng)  # type: ignore[operator]

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """Return ``action``; notes the condition."""
        with torch.inference_mode():
            condition = self._policy.condition(self._policy.encoder.read(observation, self.device))
        self.noted = condition.clone()
        return action


class Refiner:
    """Learns the critics of a :class:`robolearn.policies.selected.Policy`; its slow copy chooses and is the target."""

    def __init__(self, policy: selected.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self.window_steps, self.discount, self.plan_steps = config.window_steps, config.discount, config.window_steps
        self._critics: CriticEnsemble = copy.deepcopy(policy.critics)
        policy.critics.requires_grad_(False)
        self._optimizer = torch.optim.Adam(self._critics.parameters(), config.critic_learning_rate, fused=True)

    def behaviour(self) -> Behaviour:
        """Return the exploring policy."""
        return Behaviour(self._policy)

    def policy(self) -> selected.Policy:
        """Return the refined policy."""
        return self._policy

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one critic update; the critics begin to choose when the actor phase does."""
        config = self._config
        if phase.actor and not self._policy.selecting:
            self._policy.selecting.fill_(True)
        with torch.no_grad(), critic_autocast(config.bf16, batch.returns.device):
            following = self._policy.critics(batch.following["condition"], batch.following["plan"]).float()
            target = batch.returns + batch.bootstrap * following.mean(dim=0)
            target = settle(target, batch, config.outcome_weight)
            if config.value_range is not None:
                target = target.clamp(*config.value_range)
        with critic_autocast(config.bf16, batch.returns.device):
            values = self._critics(batch.condition, batch.actions.flatten(1)).float()
        loss = (values - target).square().mean(dim=1).sum()
        descend(loss, self._critics, self._optimizer, config.max_gradient_norm)
        follow(self._policy.critics, self._critics, config.target_rate)
        return {
            "loss": loss.detach() / len(values),
            "q_mean": values.detach().mean(),
            "q_target": target.mean(),
            "q_spread": values.detach().std(dim=0).mean(),
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return networks and optimiser."""
        return module_tensors({"critics": self._critics}, {"critics": self._optimizer})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, {"critics": self._critics}, {"critics": self._optimizer})


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the selecting policy around a loaded ``base``; it equals the base exactly until the critics have learned."""
    settings = selected.Config(
        critic=config.critic, candidates=config.candidates, valued_steps=config.window_steps, pessimism=config.pessimism
    )
    return wrap(base, "selected", settings)
