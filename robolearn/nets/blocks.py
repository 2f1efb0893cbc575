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


def unit_norm(x: Tensor) -> Tensor:
    """Return ``x / sqrt(|x|^2 + n eps)`` over the last axis of n: ``1 / sqrt(n)`` times what :class:`torch.nn.RMSNorm` scales.

    For a handful of tokens on a CPU this takes half the time of ``torch.nn.functional.rms_norm``, most of whose dozen small
    operators are spent on starting.
    """
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / (length * length + int(x.shape[-1]) * torch.finfo(x.dtype).eps).sqrt()


def attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``softmax(query key^T / sqrt(d) + bias) value`` (Vaswani et al. 2017, eq. 1).

    On a CPU torch's own kernel takes twice the time of this for the dozen tokens that policies have, at any batch size.

    Args:
        query: (b, heads, t, d).
        key: (b, heads, s, d).
        value: (b, heads, s, d).
        bias: (t, s), 0 or -inf; every row has a 0. None for 0.

    Returns:
        (b, heads, t, d).
    """
    if query.device.type != "cpu":
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    start = query.new_zeros(()) if bias is None else bias
    scores = torch.baddbmm(start, query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), alpha=int(query.shape[-1]) ** -0.5)
    weights = (scores - scores.amax(dim=-1, keepdim=True)).exp()
    found = (weights @ value.flatten(0, 1).to(weights.dtype)) / weights.sum(dim=-1, keepdim=True)
    return found.unflatten(0, query.shape[:2])


class LevelEmbedding(nn.Module):
    """Features of an integer noise level: sinusoid, then a two-layer MLP that is four times as wide inside."""

    def __init__(self, width: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), activation(), nn.Linear(4 * width, width))

    def forward(self, level: Tensor) -> Tensor:
        """Map levels (n,) to features (n, width)."""
        return self.mlp(sinusoid(level, self.width))
