"""Flow matching policy (Lipman et al. 2023): the network gives the velocity of a straight path from noise to the chunk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.types import ENVIRONMENT_STATE, STATE, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.diffusion.edm import flow_sigmas
from robolearn.diffusion.known_actions import clipped, flagged, with_known
from robolearn.diffusion.samplers import Denoise
from robolearn.nets.denoisers import DenoiserConfig, make_denoiser
from robolearn.nets.images import ImageConfig
from robolearn.policies.generative import GenerativePolicy, check_horizons

TIME_SCALE = 100.0
"""Time 0 to 1 times this is the noise level that the networks are given."""


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of the flow matching policy."""

    obs_horizon: int = 2
    """Observation steps that condition a decision."""
    pred_horizon: int = 16
    """Action steps of one chunk."""
    observation_keys: tuple[str, ...] = (STATE, ENVIRONMENT_STATE)
    """Streams that the policy reads; each must be offered by the data and by the robot."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    """The network: the diffusion policy's."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How cameras are encoded; ignored where no image key is read."""
    sampler: Literal["euler", "euler_ancestral", "heun", "dpmpp_2m", "one_step"] = "euler"
    """How the flow is integrated; ``one_step`` is for distilled students."""
    sampler_steps: int = 5
    """Times that the sampler visits."""
    time_power: float = 1.0
    """Training times are ``1 - u ** time_power`` for uniform u: 1 is uniform, more than 1 favours clean, less noisy chunks."""
    clip: float = 1.0
    """Bound on the clean estimate, in normalised action units; 0 turns it off."""
    max_delay: int = 0
    """Leading actions, up to this number, that training gives the network clean (real-time chunking). 0 trains without."""
    mask_padding: bool = False
    """Leave actions that pad the end of an episode out of the loss."""

    def __post_init__(self) -> None:
        check_horizons(self)
        flow_sigmas(self.sampler_steps)
        if self.time_power <= 0 or self.clip < 0:
            raise RefusedError(f"time_power={self.time_power} must be positive and clip={self.clip} not negative.")


class Policy(GenerativePolicy):
    """Regresses ``clean - noise`` at ``t clean + (1 - t) noise``; see :class:`GenerativePolicy`."""

    times: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        shape = {"pred_horizon": config.pred_horizon, "action_dim": spaces.action_dim}
        sizes = {"condition_dim": self.encoder.condition_dim, "flags": int(config.max_delay > 0)}
        self.denoiser = make_denoiser(config.denoiser, **shape, **sizes)
        self._visit(config.sampler, flow_sigmas(config.sampler_steps))
        self.register_buffer("times", 1.0 / (1.0 + torch.tensor(self.sigmas[:-1])), persistent=False)

    def chunk_error(self, clean: Tensor, condition: Tensor, known: Tensor | None, rng: torch.Generator) -> tuple[Tensor, dict]:
        """Return squared errors (b, h, a) of the velocity at random times."""
        uniform = torch.rand(len(clean), generator=rng, device=clean.device)
        time = 1.0 - uniform**self.config.time_power
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        noisy = torch.lerp(noise, clean, time[:, None, None])
        velocity = self.denoiser(self._read(with_known(noisy, clean, known), known), TIME_SCALE * time, condition)
        return (velocity.float() - (clean - noise)).square(), {}

    def denoised(self, noisy: Tensor, index: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """See :meth:`GenerativePolicy.denoised`: ``clean = x + (1 - t) velocity`` with ``x = t noisy``."""
        time = self.times[index][:, None, None]
        x = with_known(time * noisy, noisy, known)
        velocity = self.denoiser(self._read(x, known), TIME_SCALE * self.times[index], condition)
        return clipped(x + (1.0 - time) * velocity.float(), self.config.clip)

    def fast_denoiser(self, condition: Tensor, known: Tensor | None = None) -> Denoise:
        """See :meth:`GenerativePolicy.fast_denoiser`."""
        levels = self.denoiser.embed_levels(TIME_SCALE * self.times)
        embedded = self.denoiser.embed_condition(condition)
        times = [1.0 / (1.0 + sigma) for sigma in self.sigmas]

        def denoise(noisy: Tensor, index: int) -> Tensor:
            x = with_known(times[index] * noisy, noisy, known)
            velocity = self.denoiser.denoise(self._read(x, known), levels[index : index + 1], embedded).to(noisy.dtype)
            return clipped(x + (1.0 - times[index]) * velocity, self.config.clip)

        return denoise

    def _read(self, x: Tensor, known: Tensor | None) -> Tensor:
        """Return what the network reads; one that was trained with known actions is told which they are."""
        return flagged(x, known) if self.config.max_delay else x
