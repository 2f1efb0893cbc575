"""Residual RL: an off-policy actor-critic learns a bounded correction of every action of a frozen policy.

ResFiT (Ankile et al. 2025, "Residual Off-Policy RL for Finetuning Behavior Cloning Policies"): TD3 (Fujimoto et al. 2018) with
a REDQ ensemble (Chen et al. 2021), layer norm, returns over n steps and half of each batch from demonstrations (RLPD, Ball et
al. 2023). With ``a_b`` the base's action and ``r(s, a_b)`` the residual, executed is ``a = clip(a_b + r)``:

- critics: ``(Q_i(s, a) - y)^2``, ``y = sum_j d^j reward_j + d^n min_subset Q'(s_n, clip(a_b_n + r'(s_n, a_b_n) + smoothing))``
- actor: ``-mean_i Q_i(s, clip(a_b + r)) / mean|Q| + penalty mean((r / residual_scale)^2)``, normalised as in TD3+BC (Fujimoto
  and Gu 2021, eq. 5): where the critics see no difference the residual stays small
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
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Array, Observation
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import CriticConfig, CriticEnsemble, follow, subset_minimum
from robolearn.policies import corrected
from robolearn.refine.base import critic_autocast, descend, module_tensors, restore_modules, wrap
from robolearn.train.online import Phase


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of residual RL."""

    residual_scale: float = 0.2
    """Bound of the residual, in normalised action units."""
    actor: ActorConfig = field(default_factory=lambda: ActorConfig(layers=2))
    """The residual network."""
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(members=5, layers=2))
    """The critics."""
    window_steps: int = 3
    """n of the n-step return, control steps."""
    discount: float = 0.99
    """Per control step."""
    actor_learning_rate: float = 1.0e-5
    """Adam's, of the actor; large ones saturate the residual before the critics know anything."""
    penalty: float = 0.03
    """Weight of the mean squared residual, relative to its bound, against the normalised value."""
    critic_learning_rate: float = 3.0e-4
    """Adam's, of the critics."""
    actor_every: int = 2
    """Critic updates per actor update (TD3's policy delay)."""
    target_rate: float = 0.005
    """How fast target networks follow."""
    exploration: float = 0.05
    """Standard deviation of the noise on explored residuals, normalised action units."""
    warmup_exploration: float = 0.05
    """The same during the warm-up, around the base's action; 0 is the base alone."""
    smoothing: float = 0.05
    """Standard deviation of the noise on the target's residual (TD3's target smoothing), clipped at three of them."""
    outcome_floor: bool = True
    """Lift targets to the return that the episode really had, where it is known (Wilcox et al. 2022, MCAC): values reach back
    at once."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    value_range: tuple[float, float] = (0.0, 1.0)
    """Returns that are possible; targets are clipped to them. With a reward of 1 on success no return is outside [0, 1]."""
    bf16: bool = False
    """Compute the networks in bfloat16."""

    def __post_init__(self) -> None:
        if self.window_steps < 1 or self.actor_every < 1 or not 0 < self.discount < 1:
            raise RefusedError("window_steps and actor_every must be >= 1 and discount in (0, 1).")
        if min(self.exploration, self.warmup_exploration, self.smoothing) < 0:
            raise RefusedError("exploration, warmup_exploration and smoothing must not be negative.")


class Behaviour:
    """Explores around the refined policy: noise on each residual, within the residual's bound."""

    def __init__(self, policy: corrected.Policy, actor: torch.nn.Module, config: Config) -> None:
        self._policy, self._actor, self._config = policy, actor, config
        self.spaces, self.obs_horizon, self.pred_horizon = policy.spaces, policy.obs_horizon, policy.pred_horizon
        self.device: torch.device = policy.action_centre.device
        self.condition_dim: int = policy.encoder.condition_dim
        self.warmup = True
        self.noted = torch.zeros(0, device=self.device)

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return the base's chunk."""
        return self._policy.predict(observation, rng)

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """Return the action plus an explored residual; notes the condition."""
        policy, config = self._policy, self._config
        noise = torch.as_tensor(standard_normal(rng, action.shape), device=self.device)
        with torch.inference_mode():
            condition = policy.condition(policy.encoder.read(observation, self.device))
            base = torch.as_tensor(action, dtype=torch.float32, device=self.device)
            if self.warmup:
                residual = config.warmup_exploration * noise
            else:
                residual = policy.residual(condition, policy.to_normalized(base).clamp(-1.0, 1.0), self._actor)
                residual = residual + config.exploration * noise
            residual = residual.clamp(-config.residual_scale, config.residual_scale)
            raw = (base + residual * policy.action_half_range).cpu().numpy()
        self.noted = condition.clone()
        return raw


class Refiner:
    """Learns the residual of a :class:`robolearn.policies.corrected.Policy`."""

    plan_steps = 1

    def __init__(self, policy: corrected.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self.window_steps, self.discount = config.window_steps, config.discount
        action_dim = policy.spaces.action_dim
        device = policy.action_centre.device
        self._actor = copy.deepcopy(policy.actor).requires_grad_(True)
        self._critics = CriticEnsemble(policy.encoder.condition_dim + action_dim, config.critic).to(device)
        self._target_critics = copy.deepcopy(self._critics).requires_grad_(False)
        # The deployed residual is the slow copy: TD3's target actor, averaged over the last 1 / target_rate updates.
        policy.actor.requires_grad_(False)
        self._actor_optimizer = torch.optim.Adam(self._actor.parameters(), config.actor_learning_rate, fused=True)
        self._critic_optimizer = torch.optim.Adam(self._critics.parameters(), config.critic_learning_rate, fused=True)
        self._updates = 0

    def behaviour(self) -> Behaviour:
        """Return the exploring policy."""
        return Behaviour(self._policy, self._actor, self._config)

    def policy(self) -> corrected.Policy:
        """Return the refined policy."""
        return self._policy

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one critic update and, when due, one actor update."""
        config = self._config
        self._updates += 1
        self._policy.reach.fill_(phase.reach)
        metrics = self._update_critics(batch, rng)
        if phase.actor and self._updates % config.actor_every == 0:
            metrics |= self._update_actor(batch)
            follow(self._policy.actor, self._actor, config.target_rate * config.actor_every)
        follow(self._target_critics, self._critics, config.target_rate)
        return metrics

    def _update_critics(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        config = self._config
        with torch.no_grad(), critic_autocast(config.bf16, batch.returns.device):
            base = batch.following["plan"]
            residual = self._policy.residual(batch.following["condition"], base)
            noise = config.smoothing * torch.randn(residual.shape, generator=rng, device=residual.device)
            residual = residual + noise.clamp(-3.0 * config.smoothing, 3.0 * config.smoothing)
            residual = residual.clamp(-config.residual_scale, config.residual_scale)
            following = self._target_critics(batch.following["condition"], (base + residual).clamp(-1.0, 1.0)).float()
            target = batch.returns + batch.bootstrap * subset_minimum(following, config.critic.subset, rng)
            if config.outcome_floor:
                target = torch.maximum(target, batch.outcomes)
            target = target.clamp(*config.value_range)
        with critic_autocast(config.bf16, batch.returns.device):
            values = self._critics(batch.condition, batch.fields["action"]).float()
        loss = (values - target).square().mean(dim=1).sum()
        descend(loss, self._critics, self._critic_optimizer, self._config.max_gradient_norm)
        return {
            "loss": loss.detach() / len(values),
            "q_mean": values.detach().mean(),
            "q_target": target.mean(),
            "q_spread": values.detach().std(dim=0).mean(),
        }

    def _update_actor(self, batch: ReplayBatch) -> dict[str, Tensor]:
        config = self._config
        base = batch.fields["plan"]
        with critic_autocast(config.bf16, base.device):
            residual = self._policy.residual(batch.condition, base, self._actor)
            values = self._critics(batch.condition, (base + residual).clamp(-1.0, 1.0)).float()
        size = (residual.float() / config.residual_scale).square().mean()
        loss = -values.mean() / values.detach().abs().mean().clamp_min(1e-3) + config.penalty * size
        descend(loss, self._actor, self._actor_optimizer, config.max_gradient_norm)
        # Means are over all updates of a row of metrics, and this one happens at every actor_every-th.
        norm = residual.detach().float().square().mean().sqrt() * config.actor_every
        return {"residual_rms": norm, "actor_loss": loss.detach() * config.actor_every}

    def tensors(self) -> dict[str, Tensor]:
        """Return networks, optimisers and the count of updates."""
        return module_tensors(self._modules(), self._optimizers()) | {"updates": torch.tensor(self._updates)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, self._modules(), self._optimizers())
        self._updates = int(tensors["updates"])

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"actor": self._actor, "critics": self._critics, "target_critics": self._target_critics}

    def _optimizers(self) -> dict[str, Any]:
        return {"actor": self._actor_optimizer, "critics": self._critic_optimizer}


def refined_policy(base: torch.nn.Module, config: Config) -> corrected.Policy:
    """Return the corrected policy around a loaded ``base``; it equals the base exactly until it has learned."""
    return wrap(base, "corrected", corrected.Config(actor=config.actor, residual_scale=config.residual_scale))
