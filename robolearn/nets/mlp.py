"""Denoiser for short chunks of low-dimensional actions: a residual MLP on the flattened chunk. The fastest of all on a CPU."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.nets.blocks import LevelEmbedding


@dataclass(frozen=True)
class MlpConfig:
    """Size of the residual MLP."""

    width: int = 512
    """Features inside the trunk."""
    blocks: int = 3
    """Residual blocks, two linear layers each."""
    level_width: int = 64
    """Features of the noise level."""
    dropout: float = 0.0
    """Share of the inner features of each block that is dropped in training."""

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 1 or self.level_width < 4 or self.level_width % 2:
            raise RefusedError(f"MLP denoiser: width and blocks must be >= 1, level_width even and >= 4; got {self}.")


class MlpDenoiser(nn.Module):
    """Residual MLP: the condition enters at the input, the noise level scales and shifts the normalised features of every block.

    ``x <- x + W2 act(W1 ((1 + scale) * norm(x) + shift))`` with (scale, shift) linear in the level's features: the adaptive layer
    norm of Peebles and Xie 2023 without its gate.
    """

    def __init__(self, config: MlpConfig, *, pred_horizon: int, action_dim: int, condition_dim: int, flags: int = 0) -> None:
        super().__init__()
        width = config.width
        self.shape = (pred_horizon, action_dim)
        self.level_embedding = LevelEmbedding(config.level_width, nn.SiLU)
        self.level_film = nn.Linear(config.level_width, 2 * width * config.blocks)
        self.condition_in = nn.Sequential(nn.Linear(condition_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.chunk_in = nn.Linear(pred_horizon * (action_dim + flags), width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(config.blocks))
        self.blocks = nn.ModuleList(_block(width, config.dropout) for _ in range(config.blocks))
        self.chunk_out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, pred_horizon * action_dim))

    def embed_levels(self, level: Tensor) -> Tensor:
        """Map noise levels (n,) to scales and shifts (n, 2 * width * blocks)."""
        return self.level_film(nn.functional.silu(self.level_embedding(level)))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """Map the condition (b, c) to trunk features (b, width)."""
        return self.condition_in(condition)

    def denoise(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), embedded levels (b or 1, ...) and embedded conditions (b, ...)."""
        x = self.chunk_in(noisy.flatten(1)) + condition
        modulation = level.chunk(2 * len(self.blocks), dim=-1)
        for index, (norm, block) in enumerate(zip(self.norms, self.blocks, strict=True)):
            scale, shift = modulation[2 * index], modulation[2 * index + 1]
            x = x + block(norm(x) * (1.0 + scale) + shift)
        return self.chunk_out(x).unflatten(-1, self.shape)

    def forward(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), integer levels (b,) and conditions (b, c)."""
        return self.denoise(noisy, self.embed_levels(level), self.embed_condition(condition))


def _block(width: int, dropout: float) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, width))
