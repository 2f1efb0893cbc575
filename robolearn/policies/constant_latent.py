"""A frozen generative policy that decodes every decision from one constant latent noise ("golden ticket")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robolearn.core.config import variant
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Array, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.policies import config_class
from robolearn.policies.refined import RefinedPolicy, require_latent


@dataclass(frozen=True)
class Config:
    """What is decoded."""

    base: Any = variant("diffusion", config_class)
    """The frozen policy."""


class Policy(RefinedPolicy):
    """Decodes :attr:`latent` for every decision once :attr:`found` is set, and N(0, I), like its base, until then.

    Attributes:
        latent: (*latent_shape) the constant.
        found: () bool; while it is not set the policy equals its base exactly.
    """

    latent: Tensor
    found: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        require_latent(self.base, config.base.name)
        self.register_buffer("latent", torch.zeros(self.base.latent_shape))
        self.register_buffer("found", torch.tensor(False))
        if hasattr(self.base, "continue_latent"):
            self.continue_chunk = self._continue_chunk

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        if not bool(self.found):
            return self.base.predict_tensor(observation, rng)
        condition = self.condition(observation)
        return self.base.decode_condition(condition, self.latent.expand(len(condition), *self.latent.shape))

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`; draws nothing once the latent is found."""
        return self.base.decode(observation, self._noise(observation, rng))

    def _continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """See :class:`robolearn.core.protocols.ContinuingPolicy`: the base's, from the constant."""
        noise = self._noise(observation, rng)
        return self.base.continue_latent(observation, noise, committed, delay=delay, method=method)

    def _noise(self, observation: Observation, rng: RandomSource) -> Array:
        shape = (len(next(iter(observation.values()), ())), *self.latent.shape)
        return self.latent.expand(shape).cpu().numpy() if bool(self.found) else standard_normal(rng, shape)
