"""Residual PPO, the on-policy reference: a Gaussian residual on every action of a frozen policy.

Proximal policy optimisation (PPO, Schulman et al. 2017) as in ResiP (Ankile et al. 2024, "From Imitation to Refinement"). With
``f = (s, a_b)`` the condition and the base's action, executed is ``clip(a_b + residual_scale tanh(u))``,
``u ~ N(m(f), exp(log_std)^2)``; m starts at zero, and deployed is the mean, ``residual_scale tanh(m(f))``. After every
``rollout_steps`` control steps, with d the discount, l = ``gae_lambda`` and V the value network before the update:

- errors: ``e_t = r_t + d (1 - terminated_t) V(f_{t+1}) - V(f_t)``
- advantages (Schulman et al. 2016, eq. 16): ``A_t = e_t + d l (1 - ended_t) A_{t+1}``. The last step of an episode that was cut
  has no known successor: it is left out, and the step before it bootstraps from its state.
- ratio: ``p_t = exp(log N(u_t; m(f_t), std) - log N(u_t; m_old(f_t), std))``
- actor (Schulman et al. 2017, eq. 7): ``-mean(min(p_t A_t, clip(p_t, 1 - clip, 1 + clip) A_t))``, A normalised
- value: ``mean((V(f_t) - (A_t + V_old(f_t)))^2)``

for ``epochs`` passes, or until ``mean(p_t - 1 - log p_t)``, an estimate of the Kullback-Leibler divergence from the policy that
acted, exceeds ``target_kl``.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import Array, Observation
from robolearn.data.replay_buffer import CONDITION, PLAN
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import CriticConfig, follow, make_critics
from robolearn.policies import corrected
from robolearn.refine.base import Behaviour, descend, module_tensors, restore_modules, wrap
from robolearn.train.lanes import Outcome
from robolearn.train.refiner import Phase

DRAWN = "drawn"
"""Field: u, what the Gaussian drew."""
_INPUTS = CONDITION, PLAN
"""What actor and critic read: the condition and the base's action, normalised."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of residual PPO; ResiP's where not said otherwise."""

    residual_scale: float = 0.1
    """Bound of the residual, in normalised action units."""
    actor: ActorConfig = field(default_factory=lambda: ActorConfig(layers=2))
    """The network m."""
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(members=1, layers=2, subset=1, octaves=0))
    """The value network, of one member."""
    log_std: float = -1.5
    """Logarithm of the Gaussian's standard deviation, the same everywhere and always."""
    rollout_steps: int = 8_000
    """Control steps of all environments between updates; ResiP's 1,024 environments make 716,800."""
    epochs: int = 50
    """Passes over a rollout, at most."""
    minibatches: int = 1
    """Parts into which each pass cuts the rollout."""
    actor_learning_rate: float = 3.0e-4
    """Adam's, of m."""
    critic_learning_rate: float = 5.0e-3
    """Adam's, of the value network."""
    discount: float = 0.999
    """Per control step."""
    gae_lambda: float = 0.95
    """l; 0 trusts the values, 1 the returns."""
    clip: float = 0.2
    """How far a ratio may move the loss."""
    target_kl: float = 0.1
    """Divergence at which the passes end."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    uses_demonstrations: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min(self.rollout_steps, self.epochs, self.minibatches) < 1 or self.critic.members != 1:
            raise RefusedError(f"rollout_steps, epochs and minibatches must be >= 1 and critic.members 1; got {self}.")
        if not 0 < self.discount < 1 or not 0 <= self.gae_lambda <= 1 or not 0 < self.clip < 1 or not self.target_kl > 0:
            raise RefusedError("discount and clip must lie in (0, 1), gae_lambda in [0, 1], and target_kl be positive.")


def advantages(
    reward: Tensor, terminated: Tensor, truncated: Tensor, value: Tensor, *, discount: float, gae_lambda: float
) -> Tensor:
    """Return A (t, lanes), see the module; 0 at the last step of a cut episode.

    Args:
        reward: (t, lanes).
        terminated: (t, lanes) bool.
        truncated: (t, lanes) bool.
        value: (t + 1, lanes) of the states before each step and behind the last.
        discount: per step.
        gae_lambda: in [0, 1].
    """
    error = reward + discount * torch.where(terminated, 0.0, value[1:]) - value[:-1]
    keep = torch.where(terminated | truncated, 0.0, discount * gae_lambda)
    result = torch.zeros_like(value)
    for t in range(len(reward) - 1, -1, -1):
        result[t] = torch.where(truncated[t], 0.0, error[t] + keep[t] * result[t + 1])
    return result[:-1]


def clipped_loss(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """Return ``-mean(min(p A, clip(p, 1 - clip, 1 + clip) A))``, p = exp(log_ratio), for (b,) each."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1.0 - clip, 1.0 + clip) * advantage).mean()


class GaussianBehaviour(Behaviour):
    """Draws the residual around the refined policy's and notes what was drawn; in the warm-up the base acts alone."""

    def __init__(self, policy: corrected.Policy, config: Config) -> None:
        super().__init__(policy)
        self._std = math.exp(config.log_std)

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """Return the action plus a drawn residual."""
        policy = self._policy
        noise = torch.as_tensor(standard_normal(rng, action.shape), device=self.device)
        condition = self.note(observation)
        with torch.inference_mode():
            base = torch.as_tensor(action, dtype=torch.float32, device=self.device)
            mean = policy.actor(condition, policy.normalize_action(base)).float()
            drawn = torch.zeros_like(noise) if self.warmup else mean + self._std * noise
            residual = policy.reach * policy.config.residual_scale * torch.tanh(drawn)
        self.noted[DRAWN] = drawn.clone()
        return (base + residual * policy.action_half_range).cpu().numpy()


class Refiner:
    """Learns the residual of a :class:`robolearn.policies.corrected.Policy`."""

    plan_steps, latent_size, ramps = 1, 0, True

    def __init__(self, policy: corrected.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self._actor = copy.deepcopy(policy.actor).requires_grad_(True)
        policy.actor.requires_grad_(False)
        self._critic = make_critics(policy.encoder, policy.spaces.action_dim, config.critic).to(policy.device)
        self._modules: dict[str, torch.nn.Module] = {"actor": self._actor, "critic": self._critic}
        self._optimizers = {
            "actor": torch.optim.Adam(self._actor.parameters(), config.actor_learning_rate, fused=True),
            "critic": torch.optim.Adam(self._critic.parameters(), config.critic_learning_rate, fused=True),
        }
        self._rollout: list[dict[str, Tensor]] = []
        self._acting = False
        """Whether the rollout is the actor's, not the warm-up's."""

    def behaviour(self) -> GaussianBehaviour:
        """Return the exploring policy."""
        return GaussianBehaviour(self._policy, self._config)

    def policy(self) -> corrected.Policy:
        """Return the refined policy; its actor is the trained one, not an average: what acted is what learns."""
        return self._policy

    def observe(self, outcome: Outcome, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Extend the rollout; learn when it is long enough, and begin a new one. In the warm-up only the values learn."""
        if phase.actor != self._acting:
            self._rollout.clear()
        self._acting = phase.actor
        self._rollout.append({name: outcome.fields[name] for name in (*_INPUTS, DRAWN)} | outcome.results())
        if (len(self._rollout) - 1) * len(outcome.fields[PLAN]) < self._config.rollout_steps:
            return {}
        steps = {name: torch.stack([step[name] for step in self._rollout]) for name in self._rollout[0]}
        self._rollout.clear()
        return self._learn(steps, rng)

    def _learn(self, steps: dict[str, Tensor], rng: torch.Generator) -> dict[str, Tensor]:
        """Learn from t + 1 steps (t + 1, lanes, ...); of the last one only the state is used."""
        config = self._config
        with torch.no_grad():
            value = self._value({k: steps[k].flatten(0, 1) for k in _INPUTS}).unflatten(0, steps["reward"].shape)
            mean = self._mean({k: steps[k][:-1] for k in _INPUTS})
        results = {name: steps[name][:-1] for name in ("reward", "terminated", "truncated")}
        advantage = advantages(**results, value=value, discount=config.discount, gae_lambda=config.gae_lambda)
        usable = ~results["truncated"]
        data = {name: steps[name][:-1] for name in (*_INPUTS, DRAWN)} | {"mean": mean}
        data |= {"advantage": advantage, "target": advantage + value[:-1]}
        data = {name: tensor[usable] for name, tensor in data.items()}
        epochs = 0
        while epochs < config.epochs:
            epochs += 1
            order = torch.randperm(len(data["target"]), generator=rng, device=usable.device)
            passes = [self._step({k: v[part] for k, v in data.items()}) for part in order.chunk(config.minibatches)]
            if float(passes[-1]["kl"]) > config.target_kl:
                break
        metrics = {name: torch.stack([step[name] for step in passes]).mean() for name in passes[0]}
        residual = config.residual_scale * torch.tanh(mean)
        follow(self._policy.actor, self._actor, 1.0)
        return metrics | {"epochs": torch.tensor(float(epochs)), "residual_rms": residual.square().mean().sqrt()}

    def _value(self, part: Mapping[str, Tensor]) -> Tensor:
        """Return V (b,)."""
        return self._critic(*(part[name] for name in _INPUTS)).float()[0]

    def _mean(self, part: Mapping[str, Tensor]) -> Tensor:
        """Return the mean (..., a) of the Gaussian from which residuals are drawn, before the bound."""
        return self._actor(*(part[name] for name in _INPUTS)).float()

    def _step(self, part: dict[str, Tensor]) -> dict[str, Tensor]:
        config = self._config
        value_loss = (self._value(part) - part["target"]).square().mean()
        descend(value_loss, self._critic, self._optimizers["critic"], config.max_gradient_norm)
        zero = torch.zeros_like(value_loss)
        if not self._acting:
            return {"loss": value_loss.detach(), "value_loss": value_loss.detach(), "kl": zero, "clipped": zero}
        std = math.exp(config.log_std)
        before, now = part["mean"], self._mean(part)
        squared = (part[DRAWN] - before).square() - (part[DRAWN] - now).square()
        log_ratio = squared.sum(dim=-1) / (2.0 * std**2)
        advantage = part["advantage"]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        loss = clipped_loss(log_ratio, advantage, config.clip)
        descend(loss, self._actor, self._optimizers["actor"], config.max_gradient_norm)
        with torch.no_grad():
            ratio = log_ratio.exp()
            kl, clipped = (ratio - 1.0 - log_ratio).mean(), ((ratio - 1.0).abs() > config.clip).float().mean()
        return {"loss": loss.detach(), "value_loss": value_loss.detach(), "kl": kl, "clipped": clipped}

    def tensors(self) -> dict[str, Tensor]:
        """Return networks, optimisers and the rollout so far."""
        rollout = {f"rollout/{k}": torch.stack([s[k] for s in self._rollout]) for k in (self._rollout or [{}])[0]}
        return module_tensors(self._modules, self._optimizers) | rollout | {"acting": torch.tensor(self._acting)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, self._modules, self._optimizers)
        rollout = {k.removeprefix("rollout/"): v.to(self._policy.device) for k, v in tensors.items() if k.startswith("rollout/")}
        length = len(next(iter(rollout.values()), ()))
        self._rollout = [{name: value[i] for name, value in rollout.items()} for i in range(length)]
        self._acting = bool(tensors["acting"])


def refined_policy(base: torch.nn.Module, config: Config) -> corrected.Policy:
    """Return the corrected policy around a loaded ``base``; it equals the base exactly until it has learned."""
    return wrap(base, "corrected", corrected.Config(actor=config.actor, residual_scale=config.residual_scale))
