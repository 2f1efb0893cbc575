"""Latent-noise steering: reinforcement learning chooses the noise from which a frozen generative policy decodes its chunk.

DSRL (Wagenmaker et al. 2025, "Steering Your Diffusion Policy with Latent Space Reinforcement Learning"), with critics of chunks
of k control steps and returns over n. ``D(s, w)`` is the frozen decoder, ``d`` the discount per control step:

- critics: ``(Q_i(s, a) - y)^2``, ``y = sum_j d^j reward_j + d^n (min_subset Q'(s_n, D(s_n, w')) - soft alpha log p(w' | s_n))``,
  mixed with the episode's outcome where that is known
- noise critics (``gradient: distilled``, DSRL-NA): ``(V_i(s, w) - Q_i(s, D(s, w)))^2``, w from N(0, I) and from the actor
- actor, ``form: absolute``: ``E[alpha log p(w | s) - min_i V_i(s, w)]``, w = bound tanh(u), u Gaussian (SAC)
- actor, ``form: anchored``: ``-E[mean_i A_i - pessimism std_i A_i] / mean|V| + lambda |shift|^2`` with the advantage over
  the base's own noise ``A_i = V_i(s, e + shift(s)) - V_i(s, e)``, e from N(0, I), and lambda raised while
  ``E |shift|^2 > trust`` (dual ascent). It starts exactly at its base, leaves it only where the critics agree that it pays,
  and only as far as the trust region allows.

``gradient: through_decoder`` puts ``Q_i(s, D(s, w))`` itself in place of V: for a small decoder that costs no more than a
distillation and removes its error. ``gradient: latent`` (DSRL-SAC) learns V alone, by the critics' equation on the latent noise
that was executed: no update decodes anything, and no demonstration can be used.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Observation
from robolearn.data.replay_buffer import LATENT, ReplayBatch
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import follow, make_critics, subset_minimum
from robolearn.policies import steered
from robolearn.refine.base import (
    Behaviour,
    Critics,
    LearnerConfig,
    adam,
    bootstrapped_rows,
    cautious_gain,
    descend,
    fit,
    frozen_decoder,
    module_tensors,
    restore_modules,
    wrap,
)
from robolearn.refine.recorded import recorded
from robolearn.train.online import Phase


@dataclass(frozen=True)
class Config(LearnerConfig):
    """Hyper-parameters of latent-noise steering."""

    chunk_steps: int = 4
    """k, control steps of the chunk that is valued; equal to ``evaluate.exec_horizon``."""
    form: Literal["anchored", "absolute"] = "anchored"
    """How the actor sets the noise; see :class:`robolearn.policies.steered.Config`."""
    gradient: Literal["through_decoder", "distilled", "latent"] = "through_decoder"
    """Where the actor's gradient comes from; ``distilled`` needs forward access to the decoder only, ``latent`` none."""
    bound: float = 1.5
    """Largest magnitude of a shift (anchored) or of the noise (absolute); really applied, unlike in the released code."""
    repeat: bool = False
    """One latent vector for all steps of the chunk."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """The network that chooses the noise."""
    actor_learning_rate: float = 2.0e-4
    """Adam's, of the actor."""
    actor_every: int = 4
    """Critic updates per actor update."""
    actor_average: float = 0.01
    """Share of the actor in the deployed actor, per actor update: what is deployed is an average over the last hundred or so."""
    distill_every: int = 2
    """Critic updates per update of the noise critics."""
    trust: float = 3.0
    """Anchored: expected squared norm of the shift that is free (delta of LP-DS); grows to this over ``online.ramp_steps``. The
    noise itself has one per element. Along a single direction the largest of 16 draws lies 1.77 out on average: 3 is as far as
    the best of 16 proposals goes."""
    anchor_weight: float = 0.01
    """Anchored: lambda at first."""
    weight_learning_rate: float = 1.0e-2
    """Adam's, of the logarithm of the weight that holds the actor back (lambda or the temperature)."""
    pessimism: float = 0.5
    """Anchored: standard deviations between the critics that are taken off the advantage; critics that disagree move nothing."""
    temperature: float = 0.15
    """Absolute: weight of the entropy, or its start where it is learned."""
    learn_temperature: bool = False
    """Absolute: move the temperature towards ``target_entropy``."""
    target_entropy: float = 0.0
    """Absolute: entropy that a learned temperature seeks, nats."""
    temperature_cap: float = 0.3
    """Absolute: a learned temperature stays below; large ones flood the values with entropy."""
    soft_backup: bool = False
    """Absolute: count the entropy in the target (SAC) or not."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.bound > 0:
            raise RefusedError(f"bound={self.bound} must be positive: with a bound of 0 there is nothing to steer.")
        if not 1 <= self.chunk_steps <= self.window_steps:
            raise RefusedError(f"chunk_steps={self.chunk_steps} must lie in [1, window_steps={self.window_steps}].")
        if min(self.actor_every, self.distill_every) < 1:
            raise RefusedError("actor_every and distill_every must be >= 1.")
        if not 0 < self.actor_average <= 1:
            raise RefusedError(f"actor_average={self.actor_average} must lie in (0, 1]; 1 deploys the newest actor.")
        if min(self.temperature, self.trust, self.anchor_weight) <= 0:
            raise RefusedError(f"temperature, trust and anchor_weight must be positive; got {self}.")
        if self.soft_backup and self.value_range is not None:
            raise RefusedError("soft_backup adds entropy to the values, so no value_range is known; set value_range=null.")


class LatentBehaviour(Behaviour):
    """Explores with the noise of the form itself: the base's own, or the actor's Gaussian."""

    def __init__(self, policy: steered.Policy, actor: torch.nn.Module) -> None:
        super().__init__(policy)
        self._actor = actor

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return a chunk decoded from explored noise, and that noise."""
        policy = self._policy
        rows = len(next(iter(observation.values())))
        noise = torch.as_tensor(standard_normal(rng, (rows, *policy.latent_shape)), device=self.device)
        extra = torch.as_tensor(standard_normal(rng, (rows, policy.latent_dim)), device=self.device)
        with torch.inference_mode():
            condition = policy.condition(policy.encoder.read(observation, self.device))
            if not self.warmup:
                noise, _, _ = latent_sample(policy, self._actor, condition, noise, extra)
            actions = policy.base.decode_condition(condition, noise).float().cpu().numpy()
            return ActionChunk(actions, latent_noise=noise.float().cpu().numpy())


def latent_sample(
    policy: steered.Policy, actor: torch.nn.Module, condition: Tensor, noise: Tensor, extra: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return latent noise (b, *latent_shape), what the actor chose (b, latent_dim) and its log density (b,), 0 if anchored.

    Args:
        policy: the steered policy.
        actor: the network to ask.
        condition: (b, c).
        noise: (b, *latent_shape) N(0, 1), the base's own.
        extra: (b, latent_dim) N(0, 1), the actor's own where ``absolute``.
    """
    if policy.config.form == "anchored":
        chosen = policy.shift(condition, actor)
        return policy.place(chosen, noise), chosen, torch.zeros_like(chosen[:, 0])
    chosen, log_density = actor.sample(condition, extra)  # type: ignore[operator]
    return policy.place(chosen, noise), chosen, log_density


class Refiner:
    """Learns the actor of a :class:`robolearn.policies.steered.Policy`."""

    def __init__(self, policy: steered.Policy, config: Config) -> None:
        if config.chunk_steps > policy.pred_horizon:
            raise RefusedError(
                f"chunk_steps={config.chunk_steps} must not exceed {policy.pred_horizon}, the base's pred_horizon."
            )
        self._policy, self._config = policy, config
        self.window_steps, self.discount, self.plan_steps = config.window_steps, config.discount, config.chunk_steps
        latent_size = math.prod(policy.latent_shape)
        self.latent_size = latent_size if config.gradient == "latent" else 0
        self.ramps = config.form == "anchored"
        device = policy.device
        self._actor = copy.deepcopy(policy.actor).requires_grad_(True)
        policy.actor.requires_grad_(False)
        valued = self.latent_size or config.chunk_steps * policy.spaces.action_dim
        self._critics = Critics(make_critics(policy.encoder, valued, config.critic).to(device), config)
        weight = config.anchor_weight if config.form == "anchored" else config.temperature
        self._log_weight = torch.nn.ParameterList([torch.tensor(math.log(weight), device=device)])
        self._optimizers = {
            "actor": adam(self._actor.parameters(), config.actor_learning_rate),
            "critics": self._critics.optimizer,
            "weight": adam(self._log_weight.parameters(), config.weight_learning_rate),
        }
        self._modules: dict[str, torch.nn.Module] = {
            "actor": self._actor,
            "critics": self._critics.online,
            "target_critics": self._critics.slow,
            "weight": self._log_weight,
        }
        if config.gradient == "distilled":
            noise_critics = make_critics(policy.encoder, latent_size, config.critic).to(device)
            self._modules["noise_critics"] = self._noise_critics = noise_critics
            self._optimizers["noise_critics"] = adam(noise_critics.parameters(), config.critic_learning_rate)
        self._decoder: Any = None if self.latent_size else frozen_decoder(policy.base, config.in_bf16(device))
        self._updates = 0
        self._learn_critics = recorded(self._update_critics, device, config.cuda_graph)
        self._learn_noise_critics = recorded(self._distill, device, config.cuda_graph)
        self._learn_actor = recorded(self._update_actor, device, config.cuda_graph)

    def behaviour(self) -> LatentBehaviour:
        """Return the exploring policy."""
        return LatentBehaviour(self._policy, self._actor)

    def policy(self) -> steered.Policy:
        """Return the refined policy."""
        return self._policy

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one critic update and, when due, one distillation and one actor update."""
        config = self._config
        self._updates += 1
        metrics = self._learn_critics(batch, rng)
        if config.gradient == "distilled" and self._updates % config.distill_every == 0:
            metrics = metrics | self._learn_noise_critics(batch, rng)
        if phase.actor and self._updates % config.actor_every == 0:
            metrics = metrics | self._learn_actor(batch, rng)
        return metrics

    def decode(self, condition: Tensor, latent: Tensor) -> Tensor:
        """Return the first k actions of the decoded chunk, flattened (b, k a), normalised and inside the bounds."""
        chunk = self._decoder.decode_condition(condition, latent)[:, : self.plan_steps]
        return self._policy.normalize_action(chunk).flatten(1)

    def _valued(self, condition: Tensor, latent: Tensor) -> Tensor:
        """Return what the critics see of latent noise: itself, or what is decoded from it."""
        return latent.flatten(1) if self._config.gradient == "latent" else self.decode(condition, latent)

    def _values(self, condition: Tensor, latent: Tensor) -> Tensor:
        """Return V (e, b) of latent noise: the noise critics' where there are any."""
        if self._config.gradient == "distilled":
            return self._noise_critics(condition, latent.flatten(1)).float()
        return self._critics.online(condition, self._valued(condition, latent)).float()

    def _noise(self, condition: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        shape, device = self._policy.latent_shape, condition.device
        noise = torch.randn((len(condition), *shape), generator=rng, device=device)
        return noise, torch.randn((len(condition), self._policy.latent_dim), generator=rng, device=device)

    def _sample(self, condition: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        return latent_sample(self._policy, self._actor, condition, *self._noise(condition, rng))

    def _update_critics(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        config = self._config
        value = torch.zeros_like(batch.returns)
        rows = bootstrapped_rows(batch, config.outcome_weight)
        with torch.no_grad(), config.autocast(value.device):
            condition = batch.following["condition"][rows]
            latent, _, log_density = self._sample(condition, rng)
            following = self._critics.slow(condition, self._valued(condition, latent)).float()
            value[rows] = subset_minimum(following, config.critic.subset, rng)
            if config.soft_backup:
                value[rows] -= self._log_weight[0].exp() * log_density
        executed = batch.fields[LATENT] if self.latent_size else batch.actions[:, : self.plan_steps].flatten(1)
        return self._critics.learn(batch, executed, value)

    def _distill(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        """Fit V(s, w) to Q(s, D(s, w)): half of the rows on N(0, I), where the base acts, half where the actor does."""
        condition, config = batch.condition, self._config
        with torch.no_grad(), config.autocast(condition.device):
            latent, _, _ = self._sample(condition, rng)
            free = torch.randn(latent.shape, generator=rng, device=latent.device)
            own = (torch.arange(len(latent), device=latent.device) % 2 == 0)[:, None, None, None]
            latent = torch.where(own, latent, free)
            target = self._critics.online(condition, self.decode(condition, latent)).float()
        inputs = condition, latent.flatten(1)
        metrics = fit(self._noise_critics, self._optimizers["noise_critics"], inputs, target, config)
        return {"distill_loss": metrics["loss"] * config.distill_every}

    def _update_actor(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        condition, config = batch.condition, self._config
        weight = self._log_weight[0].exp().detach()
        with config.autocast(condition.device):
            noise, extra = self._noise(condition, rng)
            latent, chosen, log_density = latent_sample(self._policy, self._actor, condition, noise, extra)
            values = self._values(condition, latent)
        if config.form == "anchored":
            with torch.no_grad(), config.autocast(condition.device):
                # Without pessimism the base's own value, which does not depend on the actor, adds nothing to the gradient.
                usual = self._values(condition, noise) if config.pessimism else values
            excess = chosen.square().sum(dim=1).mean()
            gain = cautious_gain(values, usual.detach(), config.pessimism)
            loss = weight * excess - gain / usual.detach().abs().mean().clamp_min(1e-3)
            dual = -self._log_weight[0] * (excess.detach() - self._policy.reach * config.trust)
            moves = True
        else:
            loss = (weight * log_density - values.amin(dim=0)).mean()
            dual = -self._log_weight[0] * (log_density.detach().mean() + config.target_entropy)
            moves = config.learn_temperature
        descend(loss, self._actor, self._optimizers["actor"], config.max_gradient_norm)
        if moves:
            descend(dual, self._log_weight, self._optimizers["weight"], config.max_gradient_norm)
            if config.form == "absolute":
                self._log_weight[0].data.clamp_(max=math.log(config.temperature_cap))
        self._policy.steered.fill_(True)
        follow(self._policy.actor, self._actor, config.actor_average)
        every = config.actor_every  # means are over all updates of a row of metrics
        return {
            "latent_rms": chosen.detach().square().mean().sqrt() * every,
            "actor_loss": loss.detach() * every,
            "entropy": -log_density.detach().mean() * every,
            "weight": weight * every,
            "advantage": (gain.detach() if config.form == "anchored" else values.detach().mean()) * every,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return networks, optimisers and the count of updates."""
        return module_tensors(self._modules, self._optimizers) | {"updates": torch.tensor(self._updates)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, self._modules, self._optimizers)
        self._updates = int(tensors["updates"])


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the steered policy around a loaded ``base``; it equals the base exactly until it has learned."""
    settings = steered.Config(actor=config.actor, form=config.form, bound=config.bound, repeat=config.repeat)
    return wrap(base, "steered", settings)
