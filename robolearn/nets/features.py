"""What critics and actors read of a condition: some of its elements, and octaves of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError, nearest
from robolearn.nets.encoders import ObservationEncoder


class ConditionFeatures(nn.Module):
    """Maps conditions (b, c) to (b, dim): the chosen elements x and, of each, ``sin(2^k pi x), cos(2^k pi x)``, k = 0..octaves-1.

    A network reads fine differences of an input only slowly (spectral bias, Rahaman et al. 2019); the octaves present them large
    (Tancik et al. 2020; Yang et al. 2022 for value functions). Elements that do not matter tell one episode from another, and
    critics of few episodes learn those by heart.

    Attributes:
        dim: features per row.
    """

    index: Tensor
    scale: Tensor

    def __init__(self, chosen: Sequence[int], octaves: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(list(chosen)), persistent=False)
        self.register_buffer("scale", math.pi * 2.0 ** torch.arange(octaves), persistent=False)
        self.dim = len(chosen) * (1 + 2 * octaves)

    def forward(self, condition: Tensor) -> Tensor:
        """Return (..., dim) of conditions (..., c)."""
        x = condition[..., self.index]
        angles = (x[..., None] * self.scale).flatten(-2)
        return torch.cat((x, angles.sin(), angles.cos()), dim=-1)


def condition_features(encoder: ObservationEncoder, reads: Sequence[str], octaves: int) -> ConditionFeatures:
    """Return the features of the conditions of ``encoder``.

    Args:
        encoder: tells the elements' names.
        reads: patterns of the elements that are read; none means all.
        octaves: of each.

    Raises:
        RefusedError: a pattern matches no observation element.
    """
    return ConditionFeatures(chosen_elements(encoder.element_names(), reads), octaves)


def chosen_elements(names: Sequence[str], patterns: Sequence[str]) -> list[int]:
    """Return the positions of the ``names`` that match one of ``patterns``, all of them if there are none.

    Raises:
        RefusedError: a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RefusedError(f"No observation element is called {pattern!r}. {nearest(pattern, sorted(set(names)))}")
    return [i for i, name in enumerate(names) if not patterns or any(fnmatchcase(name, p) for p in patterns)]
