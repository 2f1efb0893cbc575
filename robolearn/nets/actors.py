"""Small policies on top of a frozen one: multilayer perceptrons from features to bounded outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError

LOG_STD_RANGE = (-10.0, 2.0)
_INSIDE = 0.999
"""The inverse of tanh is taken at most here: a value on the bound itself has no density."""


@dataclass(frozen=True)
class ActorConfig:
    """Size of an actor."""

    width: int = 256
    """Features of every hidden layer."""
    layers: int = 3
    """Hidden layers."""
    activation: Literal["relu", "tanh", "silu"] = "relu"
    """After the layer norm of every hidden layer."""
    layer_norm: bool = True
    """Normalise before the activation."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1:
            raise RefusedError(f"Actor: width and layers must be >= 1; got {self}.")


class ZeroHeadMlp(nn.Sequential):
    """Multilayer perceptron whose last layer starts at zero: what it adds to a base policy is nothing until it has learned."""

    def __init__(self, dim_in: int, dim_out: int, config: ActorConfig) -> None:
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}[config.activation]
        layers: list[nn.Module] = []
        for index in range(config.layers):
            layers.append(nn.Linear(config.width if index else dim_in, config.width))
            if config.layer_norm:
                layers.append(nn.LayerNorm(config.width))
            layers.append(activation())
        head = nn.Linear(config.width, dim_out)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        super().__init__(*layers, head)


class TanhGaussian(nn.Module):
    """``w = bound tanh(mean + std n)``, n ~ N(0, I): the actor of soft actor-critic (Haarnoja et al. 2018, appendix C)."""

    def __init__(self, dim_in: int, dim_out: int, bound: float, config: ActorConfig) -> None:
        super().__init__()
        self.net = ZeroHeadMlp(dim_in, 2 * dim_out, config)
        self.bound = bound

    def mode(self, features: Tensor) -> Tensor:
        """Return ``bound tanh(mean)``, (b, dim_out)."""
        return self.bound * torch.tanh(self.net(features).float().chunk(2, dim=-1)[0])

    def sample(self, features: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples (b, dim_out) for standard normal ``noise`` of that shape, and their log densities (b,).

        ``log p(w) = sum(log N(u; mean, std) - log(bound (1 - tanh(u)^2)))`` with ``w = bound tanh(u)``; the last term is
        computed as ``2 (log 2 - u - softplus(-2 u))``, which stays finite for large u.
        """
        mean, log_std = self._gaussian(features)
        u = mean + log_std.exp() * noise
        return self.bound * torch.tanh(u), self._log_density(noise, log_std, u)

    def log_density(self, features: Tensor, value: Tensor) -> Tensor:
        """Return ``log p(value)``, (b,), see :meth:`sample`; values (b, dim_out) count as at most ``0.999 bound``."""
        mean, log_std = self._gaussian(features)
        u = torch.atanh((value / self.bound).clamp(-_INSIDE, _INSIDE))
        return self._log_density((u - mean) / log_std.exp(), log_std, u)

    def _gaussian(self, features: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(features).float().chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def _log_density(self, noise: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - u - nn.functional.softplus(-2.0 * u)) + math.log(self.bound)
        return (log_normal - log_slope).sum(dim=-1)
