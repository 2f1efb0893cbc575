"""A frozen generative policy whose latent noise is chosen by a small actor (DSRL, Wagenmaker et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import LatentPolicy, RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Array, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.nets.actors import ActorConfig, TanhGaussian, ZeroHeadMlp
from robolearn.policies import config_class, make_policy


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
    steps: int = 0
    """Leading steps of the chunk whose noise is chosen; the rest keeps its own. 0 means all."""

    def __post_init__(self) -> None:
        if not self.bound > 0.0:
            raise RefusedError(f"bound={self.bound} must be positive: with a bound of 0 there is nothing to steer.")
        if self.steps < 0:
            raise RefusedError(f"steps={self.steps} must not be negative.")


class Policy(nn.Module):
    """Decodes the base policy from chosen latent noise.

    Attributes:
        base: the frozen policy; acting with it alone is the fallback.
        latent_dim: elements that the actor chooses.
        steered: () bool; until it is set the latent noise is the base's own, so that the policy equals its base exactly.
        reach: () share of the bound that an anchored shift may use; grows while the actor learns.
    """

    steered: Tensor
    reach: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__()
        base = make_policy(config.base.name, config.base.config, spaces, normalizer)
        if not isinstance(base, LatentPolicy) or not isinstance(base, nn.Module):
            raise RefusedError(
                f"Policy {config.base.name!r} cannot be steered: it has no latent noise. Steer first, then correct."
            )
        self.config, self.base = config, base.requires_grad_(False)
        self.spaces, self.obs_horizon, self.pred_horizon = base.spaces, base.obs_horizon, base.pred_horizon
        self.latent_shape = base.latent_shape
        draws, horizon, action_dim = base.latent_shape
        if config.steps > horizon:
            raise RefusedError(f"steps={config.steps} must not exceed {horizon}, the base's pred_horizon.")
        self._chosen = (1 if config.repeat else draws, 1 if config.repeat else (config.steps or horizon), action_dim)
        self.latent_dim = self._chosen[0] * self._chosen[1] * action_dim
        encoder: Any = base.encoder
        if config.form == "anchored":
            self.actor: nn.Module = ZeroHeadMlp(encoder.condition_dim, self.latent_dim, config.actor)
        else:
            self.actor = TanhGaussian(encoder.condition_dim, self.latent_dim, config.bound, config.actor)
        self.register_buffer("steered", torch.tensor(False))
        self.register_buffer("reach", torch.tensor(1.0))

    def card(self) -> dict[str, object]:
        """Return what :func:`robolearn.policies.loading.load_policy` needs besides the weights; JSON-serialisable."""
        base = self.base.card()  # type: ignore[operator]
        config = asdict(self.config) | {"base": {"name": base["policy"], **base["config"]}}
        return {"policy": "steered", "config": config, "spaces": base["spaces"], "normalizer": base["normalizer"]}

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
        if self.config.repeat:
            shaped = shaped.expand(-1, *self.latent_shape)
        steps = shaped.shape[2]
        if self.config.form == "anchored":
            return noise + nn.functional.pad(shaped, (0, 0, 0, noise.shape[2] - steps))
        return torch.cat((shaped, noise[:, :, steps:]), dim=2)

    def latent(self, condition: Tensor, noise: Tensor) -> Tensor:
        """Return the latent noise (b, *latent_shape) that is decoded where the base would decode ``noise``."""
        chosen = self.shift(condition) if self.config.form == "anchored" else self.actor.mode(condition)  # type: ignore[operator]
        return torch.where(self.steered, self.place(chosen, noise), noise)

    def condition(self, observation: Mapping[str, Tensor], rng: torch.Generator | None = None) -> Tensor:
        """Return the base's condition (b, c) of an observation key -> (b, o, ...)."""
        return self.base.condition(observation, rng)  # type: ignore[operator]

    def decode_condition(self, condition: Tensor, latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, where the base would decode ``latent_noise`` (b, *latent_shape)."""
        return self.base.decode_condition(condition, self.latent(condition, latent_noise))  # type: ignore[operator]

    def decode_tensor(self, observation: Mapping[str, Tensor], latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of tensors key -> (b, o, ...) and (b, *latent_shape); differentiable."""
        return self.decode_condition(self.condition(observation), latent_noise)

    @property
    def encoder(self) -> Any:
        """The base's observation encoder."""
        return self.base.encoder

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.LatentPolicy.decode`."""
        device = self.steered.device
        tensors = self.encoder.read(observation, device)
        rows = len(next(iter(tensors.values())))
        if tuple(latent_noise.shape) != (rows, *self.latent_shape):
            raise RefusedError(f"latent_noise must have shape {(rows, *self.latent_shape)}, got {latent_noise.shape}.")
        with torch.inference_mode():
            noise = torch.as_tensor(latent_noise, dtype=torch.float32, device=device)
            return ActionChunk(self.decode_condition(self.condition(tensors), noise).float().cpu().numpy())

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = len(next(iter(observation.values()), ()))
        return self.decode(observation, standard_normal(rng, (rows, *self.latent_shape)))
