"""Goal-conditioned score-based policy that samples in three steps (BESO, Reuss et al. 2023).

What is BESO's: actions are scaled, the largest noise level is 1 and three steps are made (for whole chunks such a start prefers
small ones, see ``tests/bench/bench_start.py``; ``edm`` takes others); the goal is a
wanted future (trained on play data by relabelling, see ``data.goals``), hidden whole in a tenth of the samples for
classifier-free guidance. Its causal transformer interleaves observations and actions of a window; ours predicts a chunk behind
the observations, as the other policies here do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from robolearn.core.types import ENVIRONMENT_STATE, STATE, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.diffusion.samplers import Denoise
from robolearn.nets.images import ImageConfig
from robolearn.nets.moe import MoeConfig
from robolearn.nets.prefix_transformer import PrefixTransformerConfig
from robolearn.policies.edm_transformer import EdmConfig, EdmTransformer, GoalConfig
from robolearn.policies.generative import GenerativePolicy, check_horizons


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of the score-based policy."""

    obs_horizon: int = 2
    """Observation steps that condition a decision."""
    pred_horizon: int = 16
    """Action steps of one chunk."""
    observation_keys: tuple[str, ...] = (STATE, ENVIRONMENT_STATE)
    """Streams that the policy reads, the goal's among them; each must be offered by the data and by the robot."""
    transformer: PrefixTransformerConfig = field(
        default_factory=lambda: PrefixTransformerConfig(moe=MoeConfig(experts=1, top_k=1))
    )
    """The network; one expert makes it dense."""
    edm: EdmConfig = field(
        default_factory=lambda: EdmConfig(sigma_min=0.05, sigma_max=1.0, schedule="linear", sampler_steps=3, clip=1.0)
    )
    """Noise levels, sampler and number of steps."""
    goal: GoalConfig = field(default_factory=GoalConfig)
    """What the policy is told to do."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How cameras are encoded; ignored where no image key is read."""
    max_delay: int = 0
    """Leading actions, up to this number, that training gives the network clean (real-time chunking). 0 trains without."""
    mask_padding: bool = False
    """Leave actions that pad the end of an episode out of the loss."""

    def __post_init__(self) -> None:
        check_horizons(self)


class Policy(GenerativePolicy):
    """Samples a chunk in few steps from a moderate noise level; see :class:`EdmTransformer`."""

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        self.denoiser = EdmTransformer(
            config.edm,
            config.goal,
            config.transformer,
            encoder=self.encoder,
            shape=(config.pred_horizon, spaces.action_dim),
            known_actions=config.max_delay > 0,
        )
        self.sigma_data = config.edm.sigma_data
        self._visit(config.edm.sampler, self.denoiser.sigmas)

    def chunk_error(self, clean: Tensor, condition: Tensor, known: Tensor | None, rng: torch.Generator) -> tuple[Tensor, dict]:
        """See :meth:`GenerativePolicy.chunk_error`."""
        return self.denoiser.chunk_error(clean, condition, known, rng)

    def denoised(self, noisy: Tensor, index: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """See :meth:`GenerativePolicy.denoised`."""
        return self.denoiser.denoised(noisy, index, condition, known)

    def fast_denoiser(self, condition: Tensor, known: Tensor | None = None) -> Denoise:
        """See :meth:`GenerativePolicy.fast_denoiser`."""
        return self.denoiser.fast_denoiser(condition, known)
