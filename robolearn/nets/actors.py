"""Small policies on top of a frozen one: multilayer perceptrons from features to bounded outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.nets.encoders import ObservationEncoder
from robolearn.nets.features import ConditionFeatures, condition_features

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
    reads: tuple[str, ...] = ()
    """Patterns such as ``*_to_eef_*`` of the observation elements that are read; none means all."""
    octaves: int = 4
    """Octaves of every element that are read beside it: millimetres decide a grasp, and the input spans the workspace."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.layers < 1 or not 0 <= self.octaves <= 16:
            raise RefusedError(f"Actor: width and layers must be >= 1, octaves in [0, 16]; got {self}.")


class ZeroHeadMlp(nn.Module):
    """Multilayer perceptron whose last layer starts at zero: what it adds to a base policy is nothing until it has learned.

    Args:
        features: module with ``dim``, what becomes of the first input.
        dim_more: elements of the further inputs together.
        dim_out: elements of the output.
        config: sizes.
    """

    def __init__(self, features: ConditionFeatures, dim_more: int, dim_out: int, config: ActorConfig) -> None:
        super().__init__()
        self.features = features
        activation = {"relu": nn.ReLU, "tanh": nn.Tanh, "silu": nn.SiLU}[config.activation]
        layers: list[nn.Module] = []
        for index in range(config.layers):
            layers.append(nn.Linear(config.width if index else features.dim + dim_more, config.width))
            if config.layer_norm:
                layers.append(nn.LayerNorm(config.width))
            layers.append(activation())
        head = nn.Linear(config.width, dim_out)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        self.net = nn.Sequential(*layers, head)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (b, dim_out) of the condition and the further ``inputs`` (b, ...)."""
        return self.net(torch.cat((self.features(inputs[0]), *inputs[1:]), dim=-1))


def make_actor(encoder: ObservationEncoder, dim_more: int, dim_out: int, config: ActorConfig) -> ZeroHeadMlp:
    """Return an actor of the conditions of ``encoder`` and of ``dim_more`` further elements.

    Raises:
        RefusedError: a pattern of ``config.reads`` matches no observation element.
    """
    return ZeroHeadMlp(condition_features(encoder, config.reads, config.octaves), dim_more, dim_out, config)


class TanhGaussian(nn.Module):
    """``w = bound tanh(mean + std n)``, n ~ N(0, I): the actor of soft actor-critic (Haarnoja et al. 2018, appendix C).

    Args:
        net: maps a condition to means and logarithms of standard deviations, (b, 2 dim_out).
        bound: of every element of w.
    """

    def __init__(self, net: ZeroHeadMlp, bound: float) -> None:
        super().__init__()
        self.net, self.bound = net, bound

    def mode(self, condition: Tensor) -> Tensor:
        """Return ``bound tanh(mean)``, (b, dim_out)."""
        return self.bound * torch.tanh(self.net(condition).float().chunk(2, dim=-1)[0])

    def sample(self, condition: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return samples (b, dim_out) for standard normal ``noise`` of that shape, and their log densities (b,).

        ``log p(w) = sum(log N(u; mean, std) - log(bound (1 - tanh(u)^2)))`` with ``w = bound tanh(u)``; the last term is
        computed as ``2 (log 2 - u - softplus(-2 u))``, which stays finite for large u.
        """
        mean, log_std = self._gaussian(condition)
        u = mean + log_std.exp() * noise
        return self.bound * torch.tanh(u), self._log_density(noise, log_std, u)

    def log_density(self, condition: Tensor, value: Tensor) -> Tensor:
        """Return ``log p(value)``, (b,), see :meth:`sample`; values (b, dim_out) count as at most ``0.999 bound``."""
        mean, log_std = self._gaussian(condition)
        u = torch.atanh((value / self.bound).clamp(-_INSIDE, _INSIDE))
        return self._log_density((u - mean) / log_std.exp(), log_std, u)

    def _gaussian(self, condition: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(condition).float().chunk(2, dim=-1)
        return mean, log_std.clamp(*LOG_STD_RANGE)

    def _log_density(self, noise: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
        log_normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        log_slope = 2.0 * (math.log(2.0) - u - nn.functional.softplus(-2.0 * u)) + math.log(self.bound)
        return (log_normal - log_slope).sum(dim=-1)
