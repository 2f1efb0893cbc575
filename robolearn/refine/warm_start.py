"""Warm-started off-policy reinforcement learning that keeps no offline data (WSRL, Zhou et al. 2024).

The frozen base acts through the warm-up and fills the replay with what it does; then soft actor-critic (SAC, Haarnoja et al.
2018) with a large LayerNorm ensemble (REDQ, Chen et al. 2021) learns from what is met online, the warm-up included, and no
demonstration is ever seen. WSRL carries over a pre-trained Gaussian actor and its critics (Cal-QL). A diffusion policy has
neither, so here, and that is a difference from the paper, both are learned **during** the warm-up: a tanh-Gaussian actor
``p(c | s)`` of chunks c of k actions is fitted to the base's chunks c_b, and the critics value the base. From the end of the
warm-up on the actor acts alone, in place of the base. With ``d`` the discount per control step and returns over n steps:

- fit, warm-up: ``-E[log p(clip(c_b + fit_noise e) | s)] / (k a)``, e ~ N(0, I); the noise gives the density a width
- critics, warm-up: ``(Q_i(s, c) - y)^2``, ``y = sum_j d^j reward_j + d^n min_subset Q'(s_n, c_b_n)``
- critics, then: the same with ``Q'(s_n, c')``, c' from ``p(. | s_n)``; the entropy is not counted in the target
- actor, then: ``E[alpha log p(c | s) - min_i Q_i(s, c)]``, ``c ~ p(. | s)``
- temperature: ``log alpha (H - target_entropy)`` with ``H = -E log p(c | s) / (k a)``

The actor is not bounded around the base: it can become anything, also worse.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Observation
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import CriticConfig, follow, make_critics, subset_minimum
from robolearn.policies import replaced
from robolearn.refine.base import (
    Behaviour,
    Critics,
    LearnerConfig,
    adam,
    descend,
    module_tensors,
    restore_modules,
    wrap,
)
from robolearn.refine.recorded import recorded
from robolearn.train.refiner import Phase


@dataclass(frozen=True)
class Config(LearnerConfig):
    """Hyper-parameters of warm-started reinforcement learning."""

    critic: CriticConfig = field(default_factory=lambda: CriticConfig(members=10, layers=2))
    """The critics."""
    chunk_steps: int = 4
    """k, control steps that the actor decides at once; equal to ``evaluate.exec_horizon``. 1 is the paper's."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """The network that takes the base's place."""
    fit_learning_rate: float = 3.0e-4
    """Adam's, of the actor while it is fitted."""
    actor_learning_rate: float = 1.0e-5
    """Adam's, of the actor afterwards. The usual 3e-4 leaves what was fitted before the critics have seen what comes of it."""
    actor_every: int = 4
    """Critic updates per actor update; during the fit the actor moves at every one."""
    fit_noise: float = 0.05
    """Standard deviation of the noise on the base's actions that the actor is fitted to, normalised action units."""
    temperature: float = 1.0e-4
    """Weight of the entropy at first. Values lie in [0, 1] and hardly differ between actions, so with SAC's 1, even with 0.001,
    the actor runs away to noise."""
    temperature_learning_rate: float = 1.0e-2
    """Adam's, of the logarithm of the temperature; 0 keeps it."""
    target_entropy: float = -1.5
    """Entropy per action element that the temperature seeks, nats; a Gaussian of deviation 0.05 has -1.58, SAC takes -1."""
    uses_demonstrations: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.chunk_steps <= self.window_steps:
            raise RefusedError(f"chunk_steps={self.chunk_steps} must lie in [1, window_steps={self.window_steps}].")
        if self.actor_every < 1 or not self.temperature > 0 or self.fit_noise < 0:
            raise RefusedError(f"actor_every must be >= 1, temperature positive and fit_noise not negative; got {self}.")


class ActorBehaviour(Behaviour):
    """Samples the actor that is learning; in the warm-up the base acts."""

    def __init__(self, policy: replaced.Policy, actor: Any) -> None:
        super().__init__(policy)
        self._actor = actor

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return a sampled chunk."""
        if self.warmup:
            return super().predict(observation, rng)
        policy = self._policy
        rows = len(next(iter(observation.values())))
        shape = (rows, policy.config.chunk_steps * policy.spaces.action_dim)
        noise = torch.as_tensor(standard_normal(rng, shape), device=self.device)
        with torch.inference_mode():
            condition = policy.condition(policy.encoder.read(observation, self.device))
            chosen, _ = self._actor.sample(condition, noise)
            return ActionChunk(policy.chunk(chosen).float().cpu().numpy())


class Refiner:
    """Learns the actor of a :class:`robolearn.policies.replaced.Policy`."""

    latent_size, ramps = 0, False

    def __init__(self, policy: replaced.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self.window_steps, self.discount, self.plan_steps = config.window_steps, config.discount, config.chunk_steps
        self._chunk_dim = config.chunk_steps * policy.spaces.action_dim
        self._actor: Any = copy.deepcopy(policy.actor).requires_grad_(True)
        # The deployed actor is the slow copy, as in the other methods.
        policy.actor.requires_grad_(False)
        self._critics = Critics(make_critics(policy.encoder, self._chunk_dim, config.critic).to(policy.device), config)
        self._log_temperature = torch.nn.ParameterList([torch.tensor(math.log(config.temperature), device=policy.device)])
        self._modules: dict[str, torch.nn.Module] = {
            "actor": self._actor,
            "critics": self._critics.online,
            "target_critics": self._critics.slow,
            "temperature": self._log_temperature,
        }
        self._optimizers = {
            "fit": adam(self._actor.parameters(), config.fit_learning_rate),
            "actor": adam(self._actor.parameters(), config.actor_learning_rate),
            "critics": self._critics.optimizer,
            "temperature": adam(self._log_temperature.parameters(), config.temperature_learning_rate),
        }
        self._updates, self._acting = 0, False
        self._learn_critics = recorded(self._update_critics, policy.device, config.cuda_graph)
        self._learn_fit = recorded(self._fit, policy.device, config.cuda_graph)
        self._learn_actor = recorded(self._update_actor, policy.device, config.cuda_graph)

    def behaviour(self) -> ActorBehaviour:
        """Return the exploring policy."""
        return ActorBehaviour(self._policy, self._actor)

    def policy(self) -> replaced.Policy:
        """Return the refined policy."""
        return self._policy

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one critic update and a fit, or, after the warm-up, an actor update when it is due."""
        config, policy = self._config, self._policy
        self._updates += 1
        if phase.actor and not self._acting:
            follow(policy.actor, self._actor, 1.0)
            policy.acting.fill_(True)
            self._acting = True
        metrics = self._learn_critics(batch, rng, phase.actor)
        if not phase.actor:
            return metrics | self._learn_fit(batch, rng)
        if self._updates % config.actor_every == 0:
            metrics = metrics | self._learn_actor(batch, rng)
        return metrics

    def _update_critics(self, batch: ReplayBatch, rng: torch.Generator, acting: bool) -> dict[str, Tensor]:
        config = self._config
        with torch.no_grad(), config.autocast(batch.returns.device):
            condition, chunk = batch.following["condition"], batch.following["plan"]
            if acting:
                chunk, _ = self._actor.sample(condition, self._noise(chunk, rng))
            values = self._critics.slow(condition, chunk).float()
        following = subset_minimum(values, config.critic.subset, rng)
        return self._critics.learn(batch, batch.actions[:, : self.plan_steps].flatten(1), following)

    def _fit(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        config, plan = self._config, batch.fields["plan"]
        target = (plan + config.fit_noise * self._noise(plan, rng)).clamp(-1.0, 1.0)
        with config.autocast(plan.device):
            loss = -self._actor.log_density(batch.condition, target).mean() / self._chunk_dim
        descend(loss, self._actor, self._optimizers["fit"], config.max_gradient_norm)
        return {"fit_loss": loss.detach()}

    def _update_actor(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        config, condition = self._config, batch.condition
        temperature = self._log_temperature[0].exp().detach()
        with config.autocast(condition.device):
            chunk, log_density = self._actor.sample(condition, self._noise(batch.fields["plan"], rng))
            value = self._critics.online(condition, chunk).float().amin(dim=0).mean()
        loss = temperature * log_density.mean() - value
        descend(loss, self._actor, self._optimizers["actor"], config.max_gradient_norm)
        entropy = -log_density.detach().mean() / self._chunk_dim
        dual = self._log_temperature[0] * (entropy - config.target_entropy)
        descend(dual, self._log_temperature, self._optimizers["temperature"], config.max_gradient_norm)
        follow(self._policy.actor, self._actor, config.target_rate * config.actor_every)
        # Means are over all updates of a row of metrics, and this one happens at every actor_every-th.
        found = {"actor_loss": loss.detach(), "entropy": entropy, "temperature": temperature}
        return {name: metric * config.actor_every for name, metric in found.items()}

    def _noise(self, like: Tensor, rng: torch.Generator) -> Tensor:
        return torch.randn(like.shape, generator=rng, device=like.device)

    def tensors(self) -> dict[str, Tensor]:
        """Return networks, optimisers and the count of updates."""
        return module_tensors(self._modules, self._optimizers) | {"updates": torch.tensor(self._updates)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, self._modules, self._optimizers)
        self._updates, self._acting = int(tensors["updates"]), bool(self._policy.acting)


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the replaced policy around a loaded ``base``; it equals the base exactly until the warm-up is over."""
    return wrap(base, "replaced", replaced.Config(actor=config.actor, chunk_steps=config.chunk_steps))
