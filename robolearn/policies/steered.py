"""A frozen generative policy whose latent noise is chosen by a small actor (DSRL, Wagenmaker et al. 2025)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.observation import check_latent
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Array, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.nets.actors import ActorConfig, TanhGaussian, make_actor
from robolearn.policies import config_class
from robolearn.policies.refined import RefinedPolicy, require_latent


@dataclass(frozen=True)
class Config:
    """What is steered, and how."""

    base: Any = variant("diffusion", config_class)
    """The frozen policy."""
    actor: ActorConfig = field(default_factory=ActorConfig)
    """The network that chooses the latent noise."""
    form: Literal["anchored", "absolute"] = "anchored"
    """``anchored``: noise plus a learned, bounded shift (starts exactly at the base); ``absolute``: the actor sets the noise."""
    bound: float = 1.5
    """Largest magnitude of an element of the shift, or of the latent noise where ``absolute``."""
    repeat: bool = False
    """Use one latent vector for all steps of the chunk instead of one per step."""

    def __post_init__(self) -> None:
        if not self.bound > 0.0:
            raise RefusedError(f"bound={self.bound} must be positive: with a bound of 0 there is nothing to steer.")


class Policy(RefinedPolicy):
    """Decodes the base policy from chosen latent noise.

    Attributes:
        latent_dim: elements that the actor chooses.
        steered: () bool; until it is set the latent noise is the base's own, so that the policy equals its base exactly.
        reach: () share of the bound that an anchored shift may use, and grows as the actor learns; the absolute form has none.
    """

    steered: Tensor
    reach: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        require_latent(self.base, config.base.name)
        self.latent_shape: tuple[int, ...] = self.base.latent_shape
        draws, horizon, action_dim = self.latent_shape
        self._chosen = (1, 1, action_dim) if config.repeat else (draws, horizon, action_dim)
        self.latent_dim = math.prod(self._chosen)
        if config.form == "anchored":
            self.actor: nn.Module = make_actor(self.encoder, 0, self.latent_dim, config.actor)
        else:
            self.actor = TanhGaussian(make_actor(self.encoder, 0, 2 * self.latent_dim, config.actor), config.bound)
        self.register_buffer("steered", torch.tensor(False))
        if config.form == "anchored":
            self.register_buffer("reach", torch.tensor(1.0))
        if hasattr(self.base, "continue_latent"):
            self.continue_chunk = self._continue_chunk

    def shift(self, condition: Tensor, actor: nn.Module | None = None) -> Tensor:
        """Return the anchored form's shift, (b, latent_dim), within +-bound: ``reach bound tanh(net(condition))``.

        Args:
            condition: (b, c), see :meth:`condition`.
            actor: the network to ask, the policy's own by default; a learner asks the one that it trains.
        """
        return self.reach * self.config.bound * torch.tanh((actor or self.actor)(condition).float())

    def place(self, chosen: Tensor, noise: Tensor) -> Tensor:
        """Return latent noise (b, *latent_shape): ``chosen`` (b, latent_dim) added to ``noise`` if anchored, else set."""
        shaped = chosen.unflatten(-1, self._chosen)
        return noise + shaped if self.config.form == "anchored" else shaped.expand_as(noise)

    def latent(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Return the latent noise (b, *latent_shape) that is decoded where the base would decode ``noise``."""
        chosen = self.shift(condition) if self.config.form == "anchored" else self.actor.mode(condition)  # type: ignore[operator]
        return torch.where(self.steered, self.place(chosen, noise), noise)

    def decode_condition(self, condition: Tensor, latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, where the base would decode ``latent_noise`` (b, *latent_shape)."""
        return self.base.decode_condition(condition, self.latent(condition, latent_noise))

    def decode_tensor(self, observation: Mapping[str, Tensor], latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of tensors key -> (b, o, ...) and (b, *latent_shape); differentiable."""
        return self.decode_condition(self.condition(observation), latent_noise)

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.LatentPolicy.decode`."""
        check_latent(latent_noise, observation, self.latent_shape)
        with torch.inference_mode():
            condition = self.condition(self.encoder.read(observation, self.device))
            noise = torch.as_tensor(latent_noise, dtype=torch.float32, device=self.device)
            return self.base.decode(observation, self.latent(condition, noise).cpu().numpy())

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = len(next(iter(observation.values()), ()))
        return self.decode(observation, standard_normal(rng, (rows, *self.latent_shape)))

    def _continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """See :class:`robolearn.core.protocols.ContinuingPolicy`: the base's, from the latent noise that is chosen."""
        rows = len(next(iter(observation.values()), ()))
        drawn = standard_normal(rng, (rows, *self.latent_shape))
        with torch.inference_mode():
            condition = self.condition(self.encoder.read(observation, self.device))
            latent = self.latent(condition, torch.as_tensor(drawn, device=self.device)).cpu().numpy()
        return self.base.continue_latent(observation, latent, committed, delay=delay, method=method)
