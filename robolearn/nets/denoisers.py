"""Choice of the network that maps (noisy chunk, noise level, condition) to a chunk-shaped output.

Every denoiser splits its work so that a sampler does the parts that do not change only once per decision: ``embed_levels`` for all
noise levels at once, ``embed_condition`` once, and ``denoise`` at every step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn

from robolearn.core.errors import RefusedError, nearest
from robolearn.nets.mlp import MlpConfig, MlpDenoiser


class Denoiser(Protocol):
    """What samplers and losses need of a denoising network."""

    def embed_levels(self, level: Tensor) -> Tensor:
        """Map integer noise levels (n,) to features (n, ...)."""

    def embed_condition(self, condition: Tensor) -> Tensor:
        """Map conditions (b, c) to features (b, ...)."""

    def denoise(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), embedded levels (b or 1, ...) and embedded conditions (b, ...)."""

    def __call__(self, noisy: Tensor, level: Tensor, condition: Tensor) -> Tensor:
        """Return (b, h, a) for noisy chunks (b, h, a), integer levels (b,) and conditions (b, c)."""


@dataclass(frozen=True)
class DenoiserConfig:
    """Which network, and its size; the sizes of the others are ignored."""

    kind: Literal["mlp", "unet", "transformer"] = "mlp"
    """``mlp`` for short chunks of state tasks, ``unet`` (Diffusion Policy's) or ``transformer`` for long ones and images."""
    mlp: MlpConfig = MlpConfig()
    """Used when kind is mlp."""

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "unet", "transformer"):
            raise RefusedError(f"Unknown denoiser kind {self.kind!r}. {nearest(self.kind, ('mlp', 'unet', 'transformer'))}")


def make_denoiser(config: DenoiserConfig, *, pred_horizon: int, action_dim: int, condition_dim: int) -> nn.Module:
    """Build the chosen network with fresh weights; it satisfies :class:`Denoiser`."""
    return MlpDenoiser(config.mlp, pred_horizon=pred_horizon, action_dim=action_dim, condition_dim=condition_dim)
