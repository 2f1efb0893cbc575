"""Action-value networks: an ensemble evaluated as one batched matrix product per layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.nets.encoders import ObservationEncoder
from robolearn.nets.features import condition_features


@dataclass(frozen=True)
class CriticConfig:
    """Size of a critic ensemble and how its members are combined."""

    members: int = 2
    """Independent Q-networks."""
    width: int = 256
    """Features of every hidden layer."""
    layers: int = 3
    """Hidden layers."""
    activation: Literal["relu", "tanh", "silu"] = "relu"
    """After the layer norm of every hidden layer."""
    layer_norm: bool = True
    """Normalise before the activation; bounds the values of actions that were never tried (Ball et al. 2023, section 4.2)."""
    reads: tuple[str, ...] = ()
    """Patterns such as ``*_to_eef_*`` of the observation elements that are read; none means all. What does not matter tells one
    episode from another, and few episodes are soon known by heart."""
    octaves: int = 4
    """Octaves of every element that are read beside it: millimetres decide a grasp, and the input spans the workspace."""
    subset: int = 2
    """Members drawn for a pessimistic target: the minimum over them (Chen et al. 2021, REDQ, algorithm 1)."""

    def __post_init__(self) -> None:
        sizes = self.members, self.width, self.layers, self.subset
        if min(sizes) < 1 or self.subset > self.members or not 0 <= self.octaves <= 16:
            raise RefusedError(
                f"Critics: members, width, layers and subset must be >= 1, subset <= members, octaves in [0, 16]; got {self}."
            )


ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "silu": nn.functional.silu}


class CriticEnsemble(nn.Module):
    """Maps inputs (b, d), the same for all members, to values (e, b).

    Args:
        dim_in: features of the inputs together, the first of them as ``features`` returns it.
        config: sizes.
        features: what becomes of the first input; None leaves it.
    """

    def __init__(self, dim_in: int, config: CriticConfig, features: nn.Module | None = None) -> None:
        super().__init__()
        self.features = features or nn.Identity()
        sizes = [dim_in, *[config.width] * config.layers, 1]
        members = config.members
        self.weights = nn.ParameterList(_uniform(members, a, b) for a, b in pairwise(sizes))
        self.biases = nn.ParameterList(torch.zeros(members, 1, b) for b in sizes[1:])
        hidden = sizes[1:-1] if config.layer_norm else []
        self.norm_scales = nn.ParameterList(torch.ones(members, 1, b) for b in hidden)
        self.norm_shifts = nn.ParameterList(torch.zeros(members, 1, b) for b in hidden)
        self.config = config

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return (e, b) values of the concatenated ``inputs`` (b, ...)."""
        x = torch.cat((self.features(inputs[0]), *inputs[1:]), dim=-1).expand(self.config.members, -1, -1)
        activation = ACTIVATIONS[self.config.activation]
        last = len(self.weights) - 1
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.baddbmm(bias, x, weight)
            if index == last:
                break
            if self.config.layer_norm:
                x = nn.functional.layer_norm(x, x.shape[-1:])
                x = torch.addcmul(self.norm_shifts[index], self.norm_scales[index], x)
            x = activation(x)
        return x.squeeze(-1)


def make_critics(encoder: ObservationEncoder, valued_dim: int, config: CriticConfig) -> CriticEnsemble:
    """Return critics of the conditions of ``encoder`` and of ``valued_dim`` elements of what is valued.

    Raises:
        RefusedError: a pattern of ``config.reads`` matches no observation element.
    """
    features = condition_features(encoder, config.reads, config.octaves)
    return CriticEnsemble(features.dim + valued_dim, config, features)


def subset_minimum(values: Tensor, subset: int, rng: torch.Generator) -> Tensor:
    """Return (b,): the minimum over ``subset`` members of ``values`` (e, b), drawn anew for the whole batch.

    The clipped double Q of TD3 (Fujimoto et al. 2018, eq. 10) where ``subset`` is the whole ensemble.
    """
    if subset < len(values):
        chosen = torch.randperm(len(values), generator=rng, device=values.device)[:subset]
        values = values[chosen]
    return values.amin(dim=0)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move ``target`` towards ``source``: ``target <- target + rate (source - target)`` (Polyak averaging)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def _uniform(members: int, dim_in: int, dim_out: int) -> Tensor:
    """Draw weights as ``nn.Linear`` does, U(-1/sqrt(in), 1/sqrt(in)), for each member."""
    bound = dim_in**-0.5
    return torch.empty(members, dim_in, dim_out).uniform_(-bound, bound)
