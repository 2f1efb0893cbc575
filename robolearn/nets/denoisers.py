"""Choice of the network that maps (noisy chunk, noise level, condition) to a chunk-shaped output.

Every denoiser splits its work so that a sampler does what does not change only once per decision: ``embed_levels`` for all noise
levels together, ``embed_condition``; and ``denoise`` at every step::

    forward(noisy (b, h, a), level (b,), condition (b, c)) == denoise(noisy, embed_levels(level), embed_condition(condition))
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from robolearn.core.errors import RefusedError, nearest
from robolearn.nets.mlp import MlpConfig, MlpDenoiser
from robolearn.nets.transformer import TransformerConfig, TransformerDenoiser
from robolearn.nets.unet import UnetConfig, UnetDenoiser

type Denoiser = MlpDenoiser | UnetDenoiser | TransformerDenoiser


@dataclass(frozen=True)
class DenoiserConfig:
    """Which network, and its size; the sizes of the others are ignored."""

    kind: Literal["mlp", "unet", "transformer"] = "mlp"
    """``mlp`` for short chunks of state tasks, ``unet`` (Diffusion Policy's) or ``transformer`` for long ones and images."""
    mlp: MlpConfig = field(default_factory=MlpConfig)
    """Used when kind is mlp."""
    unet: UnetConfig = field(default_factory=UnetConfig)
    """Used when kind is unet."""
    transformer: TransformerConfig = field(default_factory=TransformerConfig)
    """Used when kind is transformer."""

    def __post_init__(self) -> None:
        if self.kind not in ("mlp", "unet", "transformer"):
            raise RefusedError(f"Unknown denoiser kind {self.kind!r}. {nearest(self.kind, ('mlp', 'unet', 'transformer'))}")


def make_denoiser(config: DenoiserConfig, *, pred_horizon: int, action_dim: int, condition_dim: int, flags: int = 0) -> Denoiser:
    """Build the chosen network with fresh weights; ``flags`` more numbers per action step are read with the noisy chunk."""
    sizes = {"pred_horizon": pred_horizon, "action_dim": action_dim, "condition_dim": condition_dim, "flags": flags}
    if config.kind == "unet":
        return UnetDenoiser(config.unet, **sizes)
    if config.kind == "transformer":
        return TransformerDenoiser(config.transformer, **sizes)
    return MlpDenoiser(config.mlp, **sizes)
