"""Small pieces that several networks share."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def sinusoid(position: Tensor, width: int) -> Tensor:
    """Return (n, width) float32 features of ``position`` (n,), sines then cosines (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=position.device) * (-math.log(10000.0) / (half - 1)))
    angle = position.float()[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), dim=-1)


class LevelEmbedding(nn.Module):
    """Features of an integer noise level: sinusoid, then a two-layer MLP that is four times as wide inside."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))

    def forward(self, level: Tensor) -> Tensor:
        """Map levels (n,) to features (n, width)."""
        return self.mlp(sinusoid(level, self.width))
