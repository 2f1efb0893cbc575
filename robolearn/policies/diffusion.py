"""Diffusion policy (Chi et al. 2023): a chunk of actions is denoised from noise, given the last observations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.core.observation import check_latent, select_observation
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, ActionChunk, Array, Observation, Spaces, is_image
from robolearn.data.normalizer import Normalizer
from robolearn.diffusion import sampling, schedules
from robolearn.nets.denoisers import DenoiserConfig, make_denoiser
from robolearn.nets.encoders import ObservationEncoder, check_actions, require_streams
from robolearn.nets.images import ImageConfig
from robolearn.nets.losses import chunk_mean


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
    sampler: Literal["ddim", "ddpm"] = "ddim"
    """``ddim`` is deterministic from its start; ``ddpm`` draws fresh noise at each step, all of it part of the latent."""
    sampler_steps: int = 10
    """Network evaluations per decision, at most ``noise_levels``."""
    spacing: Literal["leading", "trailing"] = "leading"
    """Which noise levels the sampler visits."""
    clip: float = 1.0
    """Bound on the clean estimate, in normalised action units; 0 turns it off."""
    mask_padding: bool = False
    """Leave actions that pad the end of an episode out of the loss. Diffusion Policy counts them, which teaches to stay."""

    def __post_init__(self) -> None:
        if self.obs_horizon < 1 or self.pred_horizon < 1:
            raise RefusedError(f"obs_horizon={self.obs_horizon} and pred_horizon={self.pred_horizon} must be >= 1.")
        if self.clip < 0.0:
            raise RefusedError(f"clip={self.clip} must not be negative.")
        if not 1 <= self.sampler_steps <= self.noise_levels:
            raise RefusedError(f"sampler_steps={self.sampler_steps} must lie in [1, noise_levels={self.noise_levels}].")


class Policy(nn.Module):
    """Denoises chunks in normalised action units; inputs and outputs are raw units.

    Attributes:
        config, spaces: what it was made from; ``spaces`` holds only the observation keys that it reads.
        latent_shape: (k, h, a): the start, then each step's fresh noise where the sampler is ``ddpm`` (k = 1 for ``ddim``).
    """

    alpha_bars: Tensor
    levels: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__()
        self.config = config
        self.spaces = select_observation(spaces, config.observation_keys)
        self.obs_horizon, self.pred_horizon = config.obs_horizon, config.pred_horizon
        self.normalizer = require_streams(normalizer, self.spaces)
        self.encoder = ObservationEncoder(self.spaces.observation, config.obs_horizon, image=config.image)
        shape = {"pred_horizon": config.pred_horizon, "action_dim": spaces.action_dim}
        self.denoiser = make_denoiser(config.denoiser, **shape, condition_dim=self.encoder.condition_dim)
        alpha_bars = schedules.alpha_bars(config.schedule, levels=config.noise_levels)
        visited = sampling.step_levels(levels=config.noise_levels, steps=config.sampler_steps, spacing=config.spacing)
        make_steps = sampling.ddim_steps if config.sampler == "ddim" else sampling.ddpm_steps
        self.steps = make_steps(alpha_bars, visited, config.prediction)
        self.latent_shape = (sampling.noise_draws(self.steps), config.pred_horizon, spaces.action_dim)
        self.register_buffer("alpha_bars", alpha_bars.float(), persistent=False)
        self.register_buffer("levels", torch.tensor(visited), persistent=False)

    def card(self) -> dict[str, object]:
        """Return what :func:`robolearn.policies.loading.load_policy` needs besides the weights; JSON-serialisable."""
        what: dict[str, object] = {"policy": "diffusion", "config": asdict(self.config), "spaces": self.spaces.to_json()}
        return what | {"normalizer": self.normalizer.modes}

    def loss(self, batch: Mapping[str, Tensor], rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of the network's output at random noise levels (Ho et al. 2020, eq. 14), and metrics.

        Args:
            batch: raw units; observation keys (b, o, ...), ``action`` (b, h, a), ``action_is_pad`` (b, h) bool.
            rng: draws levels, noise and crops, on the batch's device.

        Raises:
            RefusedError: a key is missing or has another shape.
        """
        self.encoder.check(batch)
        action = check_actions(batch, self.pred_horizon, self.spaces.action_dim)
        clean = self.normalizer.apply(ACTION, action)
        level = torch.randint(self.config.noise_levels, (len(clean),), generator=rng, device=clean.device)
        noise = torch.randn(clean.shape, generator=rng, device=clean.device)
        alpha_bar = self.alpha_bars[level]
        noisy = schedules.add_noise(clean, noise, alpha_bar)
        output = self.denoiser(noisy, level, self.condition(batch, rng))
        target = schedules.training_target(self.config.prediction, clean=clean, noise=noise, alpha_bar=alpha_bar)
        error = nn.functional.mse_loss(output.float(), target, reduction="none")
        loss = chunk_mean(error, batch["action_is_pad"] if self.config.mask_padding else None)
        return loss, {"loss": loss.detach()}

    def decode_tensor(self, observation: Mapping[str, Tensor], latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of tensors key -> (b, o, ...) and (b, *latent_shape); differentiable."""
        return self.decode_condition(self.condition(observation), latent_noise)

    def decode_condition(self, condition: Tensor, latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of conditions (b, c) from :meth:`condition` and (b, *latent_shape)."""
        levels = self.denoiser.embed_levels(self.levels)
        embedded = self.denoiser.embed_condition(condition)

        def denoise(noisy: Tensor, index: int) -> Tensor:
            return self.denoiser.denoise(noisy, levels[index : index + 1], embedded)

        normalized = sampling.sample(denoise, self.steps, latent_noise, clip=self.config.clip or None)
        return self.normalizer.invert(ACTION, normalized)

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a sampled chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        rows = len(observation[self.config.observation_keys[0]])
        noise = torch.randn((rows, *self.latent_shape), generator=rng, device=self.levels.device)
        return self.decode_tensor(observation, noise)

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.LatentPolicy.decode`."""
        tensors = self.encoder.read(observation, self.levels.device)
        check_latent(latent_noise, observation, self.latent_shape)
        with torch.inference_mode():
            noise = torch.as_tensor(latent_noise, dtype=torch.float32, device=self.levels.device)
            return ActionChunk(self.decode_tensor(tensors, noise).float().cpu().numpy())

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = len(next(iter(observation.values()), ()))
        return self.decode(observation, standard_normal(rng, (rows, *self.latent_shape)))

    def condition(self, observation: Mapping[str, Tensor], rng: torch.Generator | None = None) -> Tensor:
        """Return what conditions the chunk, (b, c): encodes an observation key -> (b, o, ...), raw units; ``rng`` draws crops."""
        normalize = self.normalizer.apply
        streams = {k: observation[k] if is_image(k) else normalize(k, observation[k]) for k in self.spaces.observation}
        return self.encoder(streams, rng)
