"""Diffusion policy (Chi et al. 2023): a chunk of actions is denoised from noise, given the last observations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.diffusion import sampling, schedules
from robolearn.diffusion.edm import ddpm_sigmas
from robolearn.diffusion.known_actions import clipped, flagged, with_known
from robolearn.diffusion.samplers import Denoise
from robolearn.nets.denoisers import DenoiserConfig, make_denoiser
from robolearn.nets.images import ImageConfig
from robolearn.policies.generative import GenerativePolicy, check_horizons


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of the diffusion policy."""

    obs_horizon: int = 2
    """Observation steps that condition a decision."""
    pred_horizon: int = 16
    """Action steps of one chunk."""
    observation_keys: tuple[str, ...] = (STATE, ENVIRONMENT_STATE)
    """Streams that the policy reads; each must be offered by the data and by the robot."""
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    """The network."""
    image: ImageConfig = field(default_factory=ImageConfig)
    """How cameras are encoded; ignored where no image key is read."""
    noise_levels: int = 100
    """Discrete noise levels of the forward process."""
    schedule: Literal["squaredcos_cap_v2", "linear", "scaled_linear"] = "squaredcos_cap_v2"
    """How the noise grows with the level; diffusers' names."""
    prediction: Literal["epsilon", "sample", "v_prediction"] = "epsilon"
    """What the network outputs: the noise, the clean chunk or the velocity."""
    sampler: Literal["ddim", "ddpm", "euler_ancestral", "heun", "dpmpp_2m", "one_step"] = "ddim"
    """``ddim`` is deterministic from its start; ``ddpm`` draws fresh noise at each step, all of it part of the latent. The others
    are those of :mod:`robolearn.diffusion.samplers`; ``one_step`` is for distilled students."""
    sampler_steps: int = 10
    """Network evaluations per decision, at most ``noise_levels``."""
    spacing: Literal["leading", "trailing"] = "leading"
    """Which noise levels the sampler visits."""
    clip: float = 1.0
    """Bound on the clean estimate, in normalised action units; 0 turns it off."""
    max_delay: int = 0
    """Leading actions, up to this number, that training gives the network clean, so that a chunk can continue what is being
    executed meanwhile (real-time chunking, arXiv 2512.05964). 0 trains without."""
    mask_padding: bool = False
    """Leave actions that pad the end of an episode out of the loss. Diffusion Policy counts them, which teaches to stay."""

    def __post_init__(self) -> None:
        check_horizons(self)
        if self.clip < 0.0:
            raise RefusedError(f"clip={self.clip} must not be negative.")
        if not 1 <= self.sampler_steps <= self.noise_levels:
            raise RefusedError(f"sampler_steps={self.sampler_steps} must lie in [1, noise_levels={self.noise_levels}].")


class Policy(GenerativePolicy):
    """Diffusion Policy on DDPM's discrete noise levels; see :class:`robolearn.policies.generative.GenerativePolicy`.

    With ``ddim`` and ``ddpm`` chunks are sampled in DDPM's own terms, step by step as diffusers does.
    """

    alpha_bars: Tensor
    levels: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        shape = {"pred_horizon": config.pred_horizon, "action_dim": spaces.action_dim}
        sizes = {"condition_dim": self.encoder.condition_dim, "flags": int(config.max_delay > 0)}
        self.denoiser = make_denoiser(config.denoiser, **shape, **sizes)
        alpha_bars = schedules.alpha_bars(config.schedule, levels=config.noise_levels)
        visited = sampling.step_levels(levels=config.noise_levels, steps=config.sampler_steps, spacing=config.spacing)
        make_steps = sampling.ddpm_steps if config.sampler == "ddpm" else sampling.ddim_steps
        self.steps = make_steps(alpha_bars, visited, config.prediction)
        self._visit("ddim" if config.sampler == "ddpm" else config.sampler, ddpm_sigmas(alpha_bars, visited))
        if config.sampler == "ddpm":
            self.latent_shape = (sampling.noise_draws(self.steps), config.pred_horizon, spaces.action_dim)
        self.register_buffer("alpha_bars", alpha_bars.float(), persistent=False)
        self.register_buffer("levels", torch.tensor(visited), persistent=False)

    def chunk_error(self, clean: Tensor, condition: Tensor, known: Tensor | None, rng: torch.Generator) -> tuple[Tensor, dict]:
        """Return squared errors (b, h, a) of the network's output at random noise levels (Ho et al. 2020, eq. 14)."""
        level = torch.randint(self.config.noise_levels, (len(clean),), generator=rng, device=clean.device)
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        alpha_bar = self.alpha_bars[level]
        noisy = schedules.add_noise(clean, noise, alpha_bar)
        output = self.denoiser(self._read(with_known(noisy, clean, known), known), level, condition)
        target = schedules.training_target(self.config.prediction, clean=clean, noise=noise, alpha_bar=alpha_bar)
        return nn.functional.mse_loss(output.float(), target, reduction="none"), {}

    def denoised(self, noisy: Tensor, index: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """See :meth:`GenerativePolicy.denoised`."""
        scaled = with_known(self.alpha_bars[self.levels[index]].sqrt()[:, None, None] * noisy, noisy, known)
        output = self.denoiser(self._read(scaled, known), self.levels[index], condition)
        rows = [(step.denoised_from_noisy, step.denoised_from_output) for step in self.steps]
        table = torch.tensor(rows, dtype=torch.float32, device=noisy.device)[index]
        return clipped(table[:, :1, None] * scaled + table[:, 1:, None] * output.float(), self.config.clip)

    def fast_denoiser(self, condition: Tensor, known: Tensor | None = None) -> Denoise:
        """See :meth:`GenerativePolicy.fast_denoiser`."""
        levels = self.denoiser.embed_levels(self.levels)
        embedded = self.denoiser.embed_condition(condition)
        signal = [float(1.0 / (1.0 + sigma**2) ** 0.5) for sigma in self.sigmas]

        def denoise(noisy: Tensor, index: int) -> Tensor:
            scaled, step = with_known(signal[index] * noisy, noisy, known), self.steps[index]
            output = self.denoiser.denoise(self._read(scaled, known), levels[index : index + 1], embedded)
            estimate = step.denoised_from_noisy * scaled + step.denoised_from_output * output.to(noisy.dtype)
            return clipped(estimate, self.config.clip)

        return denoise

    def decode_condition(self, condition: Tensor, latent_noise: Tensor) -> Tensor:
        """See :meth:`GenerativePolicy.decode_condition`; ``ddim`` and ``ddpm`` start from N(0, 1), as DDPM does."""
        if self.config.sampler not in ("ddim", "ddpm"):
            return super().decode_condition(condition, latent_noise)
        levels = self.denoiser.embed_levels(self.levels)
        embedded = self.denoiser.embed_condition(condition)

        def denoise(noisy: Tensor, index: int) -> Tensor:
            return self.denoiser.denoise(self._read(noisy, None), levels[index : index + 1], embedded)

        normalized = sampling.sample(denoise, self.steps, latent_noise, clip=self.config.clip or None)
        return self.normalizer.invert(ACTION, normalized)

    def _read(self, scaled: Tensor, known: Tensor | None) -> Tensor:
        """Return what the network reads; one that was trained with known actions is told which they are."""
        return flagged(scaled, known) if self.config.max_delay else scaled
