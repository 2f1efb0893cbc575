"""A frozen generative policy proposes several chunks, critics choose one (best of N; IDQL, Hansen-Estruch et al. 2023)."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.nets.critics import CriticConfig, make_critics
from robolearn.policies import config_class, make_policy
from robolearn.policies.refined import RefinedPolicy, require_latent


@dataclass(frozen=True)
class Config:
    """Who proposes, who chooses, and among how many."""

    base: Any = variant("diffusion", config_class)
    """The frozen policy."""
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(members=5, layers=2))
    """The critics."""
    candidates: int = 16
    """Chunks proposed per decision, at most."""
    valued_steps: int = 4
    """Leading steps of a chunk that the critics see; as many as are executed."""
    pessimism: float = 0.0
    """Standard deviations between the critics that are taken off each candidate's value."""
    tuned: bool = False
    """Proposals come from a copy of the base that is trained on, not from the base itself."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.valued_steps < 1 or self.pessimism < 0:
            raise RefusedError(f"candidates and valued_steps must be >= 1 and pessimism >= 0; got {self}.")


class Policy(RefinedPolicy):
    """Decodes several chunks and returns the one of the highest value.

    Attributes:
        critics: maps a condition and normalised actions (b, valued_steps * a) to values (e, b).
        candidates: () int64, how many are proposed: 1 until critics have learned, so that the policy equals its base exactly.
    """

    candidates: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        require_latent(self.base, config.base.name)
        if config.valued_steps > self.pred_horizon:
            raise RefusedError(
                f"valued_steps={config.valued_steps} must not exceed {self.pred_horizon}, the base's pred_horizon."
            )
        self.critics = make_critics(self.encoder, config.valued_steps * spaces.action_dim, config.critic)
        self.register_buffer("candidates", torch.tensor(1))
        if config.tuned:
            if not hasattr(self.base, "loss"):
                raise RefusedError(f"Policy {config.base.name!r} cannot be trained on: it has no supervised loss.")
            # Its normaliser is its own: tensors that two modules share cannot be saved twice.
            copied: Any = make_policy(config.base.name, config.base.config, spaces, copy.deepcopy(normalizer))
            self.copied = copied.requires_grad_(False)

    @property
    def proposer(self) -> Any:
        """What proposes chunks."""
        return self.copied if self.config.tuned else self.base

    def choose(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Return the best chunk (b, h, a), raw units, of the candidates that ``noise`` (b, n, *latent_shape) proposes."""
        rows, candidates = noise.shape[:2]
        repeated = condition.repeat_interleave(candidates, dim=0)
        chunks = self.proposer.decode_condition(repeated, noise.flatten(0, 1))
        values = self.critics(repeated, self.valued(chunks))
        score = values.mean(dim=0)
        if self.config.pessimism:
            score = score - self.config.pessimism * values.std(dim=0)
        best = score.unflatten(0, (rows, candidates)).argmax(dim=1)
        return chunks.unflatten(0, (rows, candidates))[torch.arange(rows, device=best.device), best]

    def valued(self, chunks: Tensor) -> Tensor:
        """Return what critics see of chunks (b, h, a): (b, valued_steps * a), normalised and inside the bounds."""
        return self.normalize_action(chunks[:, : self.config.valued_steps]).flatten(1)

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a chosen chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        condition = self.condition(observation)
        shape = (len(condition), int(self.candidates), *self.base.latent_shape)
        return self.choose(condition, torch.randn(shape, generator=rng, device=condition.device))

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = len(next(iter(observation.values()), ()))
        # The base's own noise comes first, and alone until critics choose: the same draws, the same chunk.
        first = standard_normal(rng, (rows, *self.base.latent_shape))
        candidates = int(self.candidates)
        if candidates == 1:
            return self.proposer.decode(observation, first)
        more = standard_normal(rng, (rows, candidates - 1, *self.base.latent_shape))
        noise = np.concatenate((first[:, None], more), axis=1)
        with torch.inference_mode():
            condition = self.condition(self.encoder.read(observation, self.device))
            return ActionChunk(self.choose(condition, torch.as_tensor(noise, device=self.device)).float().cpu().numpy())
