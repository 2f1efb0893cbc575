"""Residual RL: an off-policy actor-critic learns a bounded correction of every action of a frozen policy.

ResFiT (Ankile et al. 2025, "Residual Off-Policy RL for Finetuning Behavior Cloning Policies"): TD3 (Fujimoto et al. 2018) with
a REDQ ensemble (Chen et al. 2021), layer norm, returns over n steps and half of each batch from demonstrations (RLPD, Ball et
al. 2023). With ``a_b`` the base's action and ``r(s, a_b)`` the residual, executed is ``a = clip(a_b + r)``:

- critics: ``(Q_i(s, a) - y)^2``, ``y = sum_j d^j reward_j + d^n min_subset Q'(s_n, clip(a_b_n + r'(s_n, a_b_n) + smoothing))``
- actor: ``-(mean_i A_i - pessimism std_i A_i) / mean|Q| + penalty mean((r / residual_scale)^2)`` with the advantage over the
  base's action ``A_i = Q_i(s, clip(a_b + r)) - Q_i(s, a_b)``, normalised as in TD3+BC (Fujimoto and Gu 2021, eq. 5): where the
  critics see no difference, or see different ones, the residual stays small
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import Array, Observation
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import follow, make_critics, subset_minimum
from robolearn.policies import corrected
from robolearn.refine.base import (
    Behaviour,
    Critics,
    LearnerConfig,
    adam,
    bootstrapped_rows,
    cautious_gain,
    descend,
    module_tensors,
    restore_modules,
    wrap,
)
from robolearn.refine.recorded import recorded
from robolearn.train.online import Phase


@dataclass(frozen=True)
class Config(LearnerConfig):
    """Hyper-parameters of residual RL."""

    window_steps: int = 4
    """n of the n-step return, control steps."""
    residual_scale: float = 0.2
    """Bound of the residual, in normalised action units."""
    actor: ActorConfig = field(default_factory=lambda: ActorConfig(layers=2))
    """The residual network."""
    actor_learning_rate: float = 2.0e-6
    """Adam's, of the actor. It must not cross its bound before the first episodes that it changed have ended: with width w and
    Adam's steps of this size that takes about ``1 / (w actor_learning_rate)`` actor updates."""
    penalty: float = 0.03
    """Weight of the mean squared residual, relative to its bound, against the normalised value."""
    pessimism: float = 0.5
    """Standard deviations between the critics that are taken off the advantage; critics that disagree move nothing."""
    actor_every: int = 2
    """Critic updates per actor update (TD3's policy delay)."""
    exploration: float = 0.05
    """Standard deviation of the noise on explored residuals, normalised action units, times the reach: noise can ruin a base as
    well as an actor can, so it grows and shrinks with it."""
    warmup_exploration: float = 0.05
    """The same during the warm-up, at full size; 0 is the base alone, which a dip guard compares with."""
    exploration_hold: int = 4
    """Control steps over which explored noise stays the same. One small deviation decides nothing, and its sign drowns in what
    else happens; held, it adds up to something that a return over as many steps shows."""
    smoothing: float = 0.05
    """Standard deviation of the noise on the target's residual (TD3's target smoothing), clipped at three of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.actor_every, self.exploration_hold) < 1:
            raise RefusedError(f"actor_every={self.actor_every} and exploration_hold={self.exploration_hold} must be >= 1.")
        if min(self.exploration, self.warmup_exploration, self.smoothing) < 0:
            raise RefusedError("exploration, warmup_exploration and smoothing must not be negative.")


class ResidualBehaviour(Behaviour):
    """Explores around the refined policy: noise on each residual, within the residual's bound.

    Attributes:
        held: (lanes, a) the standard normal draws that last.
    """

    def __init__(self, policy: corrected.Policy, actor: torch.nn.Module, config: Config) -> None:
        super().__init__(policy)
        self._actor, self._config = actor, config
        self.held: Array = np.zeros((0, policy.spaces.action_dim), np.float32)

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """Return the action plus an explored residual; notes the condition."""
        policy, config = self._policy, self._config
        drawn = standard_normal(rng, action.shape)
        due = self.ages % config.exploration_hold == 0
        self.held = np.where(due[:, None], drawn, self.held) if len(self.held) else drawn
        noise = torch.as_tensor(self.held, device=self.device)
        condition = self.note(observation)
        with torch.inference_mode():
            base = torch.as_tensor(action, dtype=torch.float32, device=self.device)
            if self.warmup:
                residual = config.warmup_exploration * noise
            else:
                residual = policy.residual(condition, policy.normalize_action(base), self._actor)
                residual = residual + policy.reach * config.exploration * noise
            residual = residual.clamp(-config.residual_scale, config.residual_scale)
            return (base + residual * policy.action_half_range).cpu().numpy()


class Refiner:
    """Learns the residual of a :class:`robolearn.policies.corrected.Policy`."""

    plan_steps, latent_size, ramps = 1, 0, True

    def __init__(self, policy: corrected.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self.window_steps, self.discount = config.window_steps, config.discount
        self._actor = copy.deepcopy(policy.actor).requires_grad_(True)
        # The deployed residual is the slow copy: TD3's target actor, averaged over the last 1 / target_rate updates.
        policy.actor.requires_grad_(False)
        self._actor_optimizer = adam(self._actor.parameters(), config.actor_learning_rate)
        critics = make_critics(policy.encoder, policy.spaces.action_dim, config.critic)
        self._critics = Critics(critics.to(policy.device), config)
        self._behaviour = ResidualBehaviour(policy, self._actor, config)
        self._updates = 0
        self._learn_critics = recorded(self._update_critics, policy.device, config.cuda_graph)
        self._learn_actor = recorded(self._update_actor, policy.device, config.cuda_graph)

    def behaviour(self) -> ResidualBehaviour:
        """Return the exploring policy."""
        return self._behaviour

    def policy(self) -> corrected.Policy:
        """Return the refined policy."""
        return self._policy

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one critic update and, when due, one actor update."""
        config = self._config
        self._updates += 1
        metrics = self._learn_critics(batch, rng)
        if phase.actor and self._updates % config.actor_every == 0:
            metrics = metrics | self._learn_actor(batch, rng)
        return metrics

    def _update_critics(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        config = self._config
        following = torch.zeros_like(batch.returns)
        rows = bootstrapped_rows(batch, config.outcome_weight)
        with torch.no_grad(), config.autocast(following.device):
            condition, base = batch.following["condition"][rows], batch.following["plan"][rows]
            residual = self._policy.residual(condition, base)
            noise = config.smoothing * torch.randn(residual.shape, generator=rng, device=residual.device)
            residual = residual + noise.clamp(-3.0 * config.smoothing, 3.0 * config.smoothing)
            residual = residual.clamp(-config.residual_scale, config.residual_scale)
            values = self._critics.slow(condition, (base + residual).clamp(-1.0, 1.0)).float()
            following[rows] = subset_minimum(values, config.critic.subset, rng)
        return self._critics.learn(batch, batch.fields["action"], following)

    def _update_actor(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        del rng
        config = self._config
        base = batch.fields["plan"]
        with config.autocast(base.device):
            residual = self._policy.residual(batch.condition, base, self._actor)
            values = self._critics.online(batch.condition, (base + residual).clamp(-1.0, 1.0)).float()
            with torch.no_grad():
                usual = self._critics.online(batch.condition, base).float()
        size = (residual.float() / config.residual_scale).square().mean()
        gain = cautious_gain(values, usual, config.pessimism)
        loss = config.penalty * size - gain / usual.abs().mean().clamp_min(1e-3)
        descend(loss, self._actor, self._actor_optimizer, config.max_gradient_norm)
        follow(self._policy.actor, self._actor, config.target_rate * config.actor_every)
        # Means are over all updates of a row of metrics, and this one happens at every actor_every-th.
        norm = residual.detach().float().square().mean().sqrt() * config.actor_every
        every = config.actor_every
        return {"residual_rms": norm, "actor_loss": loss.detach() * every, "advantage": gain.detach() * every}

    def tensors(self) -> dict[str, Tensor]:
        """Return networks, optimisers, the count of updates and the noise that is held."""
        counts = {"updates": torch.tensor(self._updates), "held": torch.from_numpy(self._behaviour.held.copy())}
        return module_tensors(self._modules(), self._optimizers()) | counts

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, self._modules(), self._optimizers())
        self._updates, self._behaviour.held = int(tensors["updates"]), tensors["held"].numpy().copy()

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"actor": self._actor, "critics": self._critics.online, "target_critics": self._critics.slow}

    def _optimizers(self) -> dict[str, Any]:
        return {"actor": self._actor_optimizer, "critics": self._critics.optimizer}


def refined_policy(base: torch.nn.Module, config: Config) -> corrected.Policy:
    """Return the corrected policy around a loaded ``base``; it equals the base exactly until it has learned."""
    return wrap(base, "corrected", corrected.Config(actor=config.actor, residual_scale=config.residual_scale))
