"""A small actor that has taken a frozen policy's place; the base stays inside as the fallback."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import CorrectingPolicy, RandomSource
from robolearn.core.types import ActionChunk, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.nets.actors import ActorConfig, TanhGaussian, make_actor
from robolearn.policies import config_class
from robolearn.policies.refined import RefinedPolicy


@dataclass(frozen=True)
class Config:
    """What is replaced, and by what."""

    base: Any = variant("diffusion", config_class)
    """The frozen policy."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """The network that acts instead, a tanh-Gaussian."""
    chunk_steps: int = 4
    """Actions that it decides at once. The chunk repeats the last of them up to the base's ``pred_horizon``, so execute no
    more than these."""

    def __post_init__(self) -> None:
        if self.chunk_steps < 1:
            raise RefusedError(f"chunk_steps={self.chunk_steps} must be >= 1.")


class Policy(RefinedPolicy):
    """Acts as the actor's mode once :attr:`acting` is set.

    Attributes:
        actor: maps a condition to ``chunk_steps`` actions, (b, k a), normalised to their bounds.
        acting: () bool; while it is not set the policy equals its base exactly.
    """

    acting: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        if isinstance(self.base, CorrectingPolicy):
            raise RefusedError(
                f"Policy {config.base.name!r} corrects every action, which an actor in its place would not; refine its base."
            )
        if config.chunk_steps > self.pred_horizon:
            raise RefusedError(f"chunk_steps={config.chunk_steps} must not exceed {self.pred_horizon}, the base's pred_horizon.")
        dim_out = config.chunk_steps * spaces.action_dim
        self.actor = TanhGaussian(make_actor(self.encoder, 0, 2 * dim_out, config.actor), 1.0)
        self.register_buffer("acting", torch.tensor(False))

    def chunk(self, actions: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of the actor's output (b, k a)."""
        decided = actions.unflatten(-1, (self.config.chunk_steps, -1)) * self.action_half_range + self.action_centre
        return torch.cat((decided, decided[:, -1:].expand(-1, self.pred_horizon - decided.shape[1], -1)), dim=1)

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        if not bool(self.acting):
            return self.base.predict_tensor(observation, rng)
        return self.chunk(self.actor.mode(self.condition(observation)))

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`; draws nothing once the actor acts."""
        if not bool(self.acting):
            return self.base.predict(observation, rng)
        with torch.inference_mode():
            condition = self.condition(self.encoder.read(observation, self.device))
            return ActionChunk(self.chunk(self.actor.mode(condition)).float().cpu().numpy())
