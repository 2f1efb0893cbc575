"""Denoiser of Diffusion Policy (Chi et al. 2023, section 3.1): a 1-D UNet over time, modulated by noise level and observation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from robolearn.core.errors import RefusedError
from robolearn.nets.blocks import LevelEmbedding
from robolearn.nets.conv import Conv1d, Upsample1d


@dataclass(frozen=True)
class UnetConfig:
    """Size of the UNet; the defaults are small, Diffusion Policy's are (256, 512, 1024) and level_width 256."""

    down_dims: tuple[int, ...] = (64, 128, 256)
    """Channels per resolution; each but the last halves the time axis."""
    level_width: int = 128
    """Features of the noise level."""
    kernel_size: int = 5
    """Odd length of the convolutions, in time steps."""
    groups: int = 8
    """Groups of each group normalisation; must divide every entry of down_dims."""
    modulate_scale: bool = True
    """Condition scales the features as well as shifting them."""

    def __post_init__(self) -> None:
        if not self.down_dims or min(self.down_dims) < 1 or any(dim % self.groups for dim in self.down_dims):
            raise RefusedError(f"UNet: every entry of down_dims={self.down_dims} must be a multiple of groups={self.groups}.")
        if self.kernel_size % 2 == 0 or self.level_width < 4 or self.level_width % 2:
            raise RefusedError(f"UNet: kernel_size must be odd, level_width even and >= 4; got {self}.")


class UnetDenoiser(nn.Module):
    """Two residual blocks per resolution on the way down and up, two in the middle, skip connections between.

    The modulation of all blocks, ``Linear(Mish([level features, condition]))``, is the sum of a part that depends on the level
    and one that depends on the condition; both are computed for all blocks in one product and outside of the denoising loop.
    """

    def __init__(self, config: UnetConfig, *, pred_horizon: int, action_dim: int, condition_dim: int, flags: int = 0) -> None:
        super().__init__()
        dims, halvings = config.down_dims, len(config.down_dims) - 1
        if pred_horizon % 2**halvings:
            raise RefusedError(
                f"UNet: {pred_horizon=} must be a multiple of {2**halvings}, as down_dims={dims} halves it {halvings}x."
            )
        self.level_embedding = LevelEmbedding(config.level_width, nn.Mish)
        pairs = list(pairwise((action_dim + flags, *dims)))
        self.down = nn.ModuleList(_stage(config, dim_in, dim_out) for dim_in, dim_out in pairs)
        self.middle = _stage(config, dims[-1], dims[-1])
        self.up = nn.ModuleList(_stage(config, 2 * dim_out, dim_in) for dim_in, dim_out in reversed(pairs[1:]))
        self.downsample = nn.ModuleList(Conv1d(dim, dim, 3, stride=2, padding=1) for dim in dims[:-1])
        self.upsample = nn.ModuleList(Upsample1d(dim) for dim in reversed(dims[:-1]))
        self.last = ConvBlock(dims[0], dims[0], config)
        self.out = Conv1d(dims[0], action_dim, 1)
        self.film_sizes = [size for stage in (*self.down, self.middle, *self.up) for block in stage for size in block.film_sizes]
        self.film_level = nn.Linear(config.level_width, sum(self.film_sizes))
        self.film_condition = nn.Linear(condition_dim, sum(self.film_sizes), bias=False)

    def embed_levels(self, level: Tensor) -> Tensor:
        """Map noise levels (n,) to their part of all blocks' modulation (n, ...)."""
        return self.film_level(functional.mish(self.level_embedding(level)))

    def embed_condition(self, condition: Tensor) -> Tensor:
        """Map the condition (b, c) to its part of all blocks' modulation (b, ...)."""
        return self.film_condition(functional.mish(condition))

    def denoise(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), embedded levels (b or 1, ...) and embedded conditions (b, ...)."""
        films = iter((level + condition)[:, :, None, None].split(self.film_sizes, dim=1))
        x = noisy.transpose(1, 2).unsqueeze(2)
        skips = []
        for index, stage in enumerate(self.down):
            x = _run(stage, x, films)
            skips.append(x)
            if index < len(self.downsample):
                x = self.downsample[index](x)
        x = _run(self.middle, x, films)
        for stage, upsample in zip(self.up, self.upsample, strict=True):
            x = upsample(_run(stage, torch.cat((x, skips.pop()), dim=1), films))
        return self.out(self.last(x)).squeeze(2).transpose(1, 2)

    def forward(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), integer levels (b,) and conditions (b, c)."""
        return self.denoise(noisy, self.embed_levels(level), self.embed_condition(condition))


class ConvBlock(nn.Module):
    """Convolution, group normalisation, Mish."""

    def __init__(self, dim_in: int, dim_out: int, config: UnetConfig) -> None:
        super().__init__()
        self.conv = Conv1d(dim_in, dim_out, config.kernel_size, padding=config.kernel_size // 2)
        self.norm = nn.GroupNorm(config.groups, dim_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (b, dim_in, 1, h) to (b, dim_out, 1, h)."""
        return functional.mish(self.norm(self.conv(x)))


class ResidualBlock(nn.Module):
    """Two convolution blocks with feature-wise modulation (Perez et al. 2018) between, around a residual connection."""

    def __init__(self, dim_in: int, dim_out: int, config: UnetConfig) -> None:
        super().__init__()
        self.first = ConvBlock(dim_in, dim_out, config)
        self.second = ConvBlock(dim_out, dim_out, config)
        self.residual = Conv1d(dim_in, dim_out, 1) if dim_in != dim_out else nn.Identity()
        self.scaled = config.modulate_scale
        self.film_sizes = [dim_out, dim_out] if self.scaled else [dim_out]

    def forward(self, x: Tensor, films: Iterator[Tensor]) -> Tensor:
        """Map (b, dim_in, 1, h) to (b, dim_out, 1, h); ``films`` gives modulations (b, dim_out, 1, 1), the scale first."""
        y = self.first(x)
        if self.scaled:
            scale = next(films)
            y = torch.addcmul(next(films), scale, y)
        else:
            y = y + next(films)
        return self.second(y) + self.residual(x)


def _stage(config: UnetConfig, dim_in: int, dim_out: int) -> nn.ModuleList:
    return nn.ModuleList((ResidualBlock(dim_in, dim_out, config), ResidualBlock(dim_out, dim_out, config)))


def _run(stage: nn.Module, x: Tensor, films: Iterator[Tensor]) -> Tensor:
    for block in stage:  # type: ignore[attr-defined]
        x = block(x, films)
    return x
