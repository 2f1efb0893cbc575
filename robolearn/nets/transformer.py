"""Denoiser for long chunks: a transformer over action steps whose layers are modulated by noise level and observation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from robolearn.core.errors import RefusedError
from robolearn.nets.blocks import LevelEmbedding


@dataclass(frozen=True)
class TransformerConfig:
    """Size of the transformer."""

    width: int = 256
    """Features per action step."""
    layers: int = 4
    """Layers of attention and MLP."""
    heads: int = 4
    """Attention heads; must divide ``width``."""
    level_width: int = 128
    """Features of the noise level."""
    causal: bool = False
    """An action step sees only the earlier ones."""
    dropout: float = 0.0
    """Share of features dropped from each layer's updates in training."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or self.layers < 1:
            raise RefusedError(f"Transformer: heads must divide width and layers be >= 1; got {self}.")
        if self.level_width < 4 or self.level_width % 2:
            raise RefusedError(f"Transformer: level_width={self.level_width} must be even and >= 4.")


class TransformerDenoiser(nn.Module):
    """One token per action step; every layer is a DiT block with zero-initialised gates (Peebles and Xie 2023, section 3.2).

    Shifts, scales and gates of all layers are a sum of a linear map of the level's features and one of the condition's, computed
    outside of the denoising loop.
    """

    def __init__(
        self, config: TransformerConfig, *, pred_horizon: int, action_dim: int, condition_dim: int, flags: int = 0
    ) -> None:
        super().__init__()
        width = config.width
        self.level_embedding = LevelEmbedding(config.level_width, nn.SiLU)
        self.condition_in = nn.Sequential(nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.modulations = 6 * config.layers + 2
        self.film_level = nn.Linear(config.level_width, self.modulations * width)
        self.film_condition = nn.Linear(width, self.modulations * width, bias=False)
        self.action_in = nn.Linear(action_dim + flags, width)
        self.position = nn.Parameter(0.02 * torch.randn(pred_horizon, width))
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.out = nn.Linear(width, action_dim)
        for linear in (self.film_level, self.film_condition):
            nn.init.zeros_(linear.weight)
        nn.init.zeros_(self.film_level.bias)

    def embed_levels(self, level: Tensor) -> Tensor:
        """Map noise levels (n,) to their part of all layers' modulation (n, ...)."""
        return self.film_level(functional.silu(self.level_embedding(level)))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """Map the condition (b, c) to its part of all layers' modulation (b, ...)."""
        return self.film_condition(self.condition_in(condition))

    def denoise(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), embedded levels (b or 1, ...) and embedded conditions (b, ...)."""
        films = (level + condition).unsqueeze(1).chunk(self.modulations, dim=-1)
        x = self.action_in(noisy) + self.position
        for index, layer in enumerate(self.layers):
            x = layer(x, films[6 * index : 6 * index + 6])
        return self.out(_modulate(self.norm(x), films[-2], films[-1]))

    def forward(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), integer levels (b,) and conditions (b, c)."""
        return self.denoise(noisy, self.embed_levels(level), self.embed_condition(condition))


class Layer(nn.Module):
    """Self-attention and a four times wider MLP, each shifted, scaled and gated."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.causal = config.heads, config.causal
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(config.dropout))
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width), nn.Dropout(config.dropout)
        )

    def forward(self, x: Tensor, films: tuple[Tensor, ...]) -> Tensor:
        """Map (b, h, width) to its own shape; ``films`` (b, 1, width) are shift, scale, gate of attention, then of the MLP."""
        x = x + films[2] * self._attend(_modulate(self.norm(x), films[0], films[1]))
        return x + films[5] * self.mlp(_modulate(self.norm(x), films[3], films[4]))

    def _attend(self, x: Tensor) -> Tensor:
        split = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=self.causal)
        return self.attention_out(attended.transpose(1, 2).flatten(2))


def _modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift, x, 1.0 + scale)
