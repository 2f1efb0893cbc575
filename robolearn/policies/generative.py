"""What policies that denoise chunks share: conditioning, decoding, continuing a plan under way, and being distilled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.core.continuation import soft_weights
from robolearn.core.errors import RefusedError
from robolearn.core.observation import check_latent, select_observation
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ACTION, ActionChunk, Array, Observation, Spaces, is_image
from robolearn.data.normalizer import Normalizer
from robolearn.diffusion.consistency import consistency_error
from robolearn.diffusion.guidance import guided
from robolearn.diffusion.samplers import Denoise, get_sampler
from robolearn.nets.encoders import ObservationEncoder, check_actions, require_streams
from robolearn.nets.losses import chunk_mean

GUIDANCE_BETA = 5.0
"""Black et al. 2025, section 4."""


def check_horizons(config: Any) -> None:
    """Refuse a policy's configuration whose horizons do not fit each other.

    Raises:
        RefusedError: names the field.
    """
    if config.obs_horizon < 1 or config.pred_horizon < 1:
        raise RefusedError(f"obs_horizon={config.obs_horizon} and pred_horizon={config.pred_horizon} must be >= 1.")
    if not 0 <= config.max_delay < config.pred_horizon:
        raise RefusedError(f"max_delay={config.max_delay} must lie in [0, {config.pred_horizon - 1}]: shorter than the chunk.")


def student_config(config: Any) -> Any:
    """Return the configuration of a one-step student of a policy configured by ``config``: the same network, one evaluation.

    A teacher's classifier-free guidance is distilled into the student, which needs none.
    """
    if hasattr(config, "sampler"):
        return replace(config, sampler="one_step")
    return replace(config, edm=replace(config.edm, sampler="one_step"), goal=replace(config.goal, guidance=1.0))


class Teacher:
    """A frozen policy that a student imitates; no part of the student's weights, and never copied."""

    def __init__(self, policy: GenerativePolicy) -> None:
        self.policy = policy.eval().requires_grad_(False)

    def __deepcopy__(self, memo: object) -> Teacher:
        return self


class GenerativePolicy(nn.Module, ABC):
    """Denoises chunks in normalised action units; inputs and outputs are raw units.

    Noise is measured by ``sigma`` (see :mod:`robolearn.diffusion.edm`), whatever process the network was trained on.

    Attributes:
        config, spaces: what it was made from; ``spaces`` holds only the observation keys that it reads.
        latent_shape: (k, h, a): the start, then each step's fresh noise where the sampler draws any.
        sigmas: the noise levels that its sampler visits, then 0.
        teacher: while set, :meth:`loss` distils it.
    """

    latent_shape: tuple[int, ...]
    sigmas: tuple[float, ...]
    sigma_data: float = 1.0

    def __init__(self, config: Any, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__()
        self.config = config
        self.spaces = select_observation(spaces, config.observation_keys)
        self.obs_horizon, self.pred_horizon = config.obs_horizon, config.pred_horizon
        self.normalizer = require_streams(normalizer, self.spaces)
        self.encoder = ObservationEncoder(self.spaces.observation, config.obs_horizon, image=config.image)
        self.teacher: Teacher | None = None

    def learn_from(self, teacher: GenerativePolicy) -> None:
        """Become a student of ``teacher``: start from its weights, and let :meth:`loss` distil its sampler into one step.

        Raises:
            RefusedError: the teacher reads, predicts or visits something else.
        """
        own, other = self.card(), teacher.card()
        changed = sorted(k for k in ("policy", "spaces", "normalizer") if own[k] != other[k])
        if changed or self.sigmas != teacher.sigmas or self.config != student_config(teacher.config):
            raise RefusedError(f"A student must be configured as student_config(teacher.config) says; differing: {changed}.")
        self.load_state_dict(teacher.state_dict())
        self.teacher = Teacher(teacher)

    def _visit(self, sampler: str, sigmas: Sequence[float]) -> None:
        """Choose the sampler and its noise levels."""
        self.sampler = get_sampler(sampler)
        self.sigmas = tuple(sigmas)
        self.latent_shape = (self.sampler.draws(self.sigmas), self.pred_horizon, self.spaces.action_dim)

    @abstractmethod
    def chunk_error(self, clean: Tensor, condition: Tensor, known: Tensor | None, rng: torch.Generator) -> tuple[Tensor, dict]:
        """Return elementwise errors (b, h, a) at random noise levels, and further named losses that are added as they are.

        Args:
            clean: (b, h, a) demonstrations, normalised.
            condition: (b, c).
            known: (b, h) bool, actions that the network is given clean; None if none is.
            rng: draws levels and noise.
        """

    @abstractmethod
    def denoised(self, noisy: Tensor, index: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """Return the clean estimates (b, h, a) of noisy chunks, trainable.

        Args:
            noisy: (b, h, a) = clean + sigma * noise, normalised; clean where ``known``.
            index: (b,) int64 into :attr:`sigmas`.
            condition: (b, c).
            known: (b, h) bool.
        """

    @abstractmethod
    def fast_denoiser(self, condition: Tensor, known: Tensor | None = None) -> Denoise:
        """Return :meth:`denoised` for one observation as a sampler wants it, with what does not change done once."""

    def card(self) -> dict[str, object]:
        """Return what :func:`robolearn.policies.loading.load_policy` needs besides the weights; JSON-serialisable."""
        name = type(self).__module__.rpartition(".")[2]
        what: dict[str, object] = {"policy": name, "config": asdict(self.config), "spaces": self.spaces.to_json()}
        return what | {"normalizer": self.normalizer.modes}

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        return next(self.parameters()).device

    @property
    def trained_delay(self) -> int:
        """How many committed actions it was trained to continue; a student, distilled without any, none."""
        return 0 if self.config == student_config(self.config) else self.config.max_delay

    def loss(self, batch: Mapping[str, Tensor], rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of generating the batch's chunks, or of imitating the teacher, and metrics.

        Args:
            batch: raw units; observation keys (b, o, ...), ``action`` (b, h, a), ``action_is_pad`` (b, h) bool.
            rng: draws levels, noise and crops, on the batch's device.

        Raises:
            RefusedError: a key is missing or has another shape.
        """
        self.encoder.check(batch)
        clean = self.normalizer.apply(ACTION, check_actions(batch, self.pred_horizon, self.spaces.action_dim))
        condition = self.condition(batch, rng)
        pad = batch["action_is_pad"] if self.config.mask_padding else None
        if self.teacher is not None:
            return self._distillation_loss(clean, condition, self.teacher.policy.condition(batch), pad, rng)
        known = self._draw_known(len(clean), rng)
        error, extra = self.chunk_error(clean, condition, known, rng)
        if known is not None:
            pad = known if pad is None else pad | known
        loss = chunk_mean(error, pad)
        metrics = {"loss": loss.detach(), **{name: value.detach() for name, (_, value) in extra.items()}}
        for weight, value in extra.values():
            if weight:
                loss = loss + weight * value
        return loss, metrics

    def _draw_known(self, rows: int, rng: torch.Generator) -> Tensor | None:
        """Draw how many leading actions are given clean: 0 to ``max_delay``, equally likely (2512.05964)."""
        if not self.config.max_delay:
            return None
        delay = torch.randint(self.config.max_delay + 1, (rows, 1), generator=rng, device=rng.device)
        return torch.arange(self.pred_horizon, device=rng.device) < delay

    def _distillation_loss(
        self, clean: Tensor, condition: Tensor, guide: Tensor, pad: Tensor | None, rng: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.teacher is not None
        teacher = self.teacher.policy
        error = consistency_error(
            lambda x, i: self.denoised(x, i, condition), lambda x, i: teacher.denoised(x, i, guide), self.sigmas, clean, rng
        )
        loss = chunk_mean(error, pad)
        return loss, {"loss": loss.detach()}

    def condition(self, observation: Mapping[str, Tensor], rng: torch.Generator | None = None) -> Tensor:
        """Return what conditions the chunk, (b, c): encodes an observation key -> (b, o, ...), raw units; ``rng`` draws crops."""
        normalize = self.normalizer.apply
        streams = {k: observation[k] if is_image(k) else normalize(k, observation[k]) for k in self.spaces.observation}
        return self.encoder(streams, rng)

    def decode_condition(self, condition: Tensor, latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of conditions (b, c) from :meth:`condition` and (b, *latent_shape)."""
        chunk = self.sampler.sample(self.fast_denoiser(condition), self.sigmas, latent_noise)
        return self.normalizer.invert(ACTION, chunk)

    def decode_tensor(self, observation: Mapping[str, Tensor], latent_noise: Tensor) -> Tensor:
        """Return the chunk (b, h, a), raw units, of tensors key -> (b, o, ...) and (b, *latent_shape); differentiable."""
        return self.decode_condition(self.condition(observation), latent_noise)

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a sampled chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        rows = len(observation[self.config.observation_keys[0]])
        noise = torch.randn((rows, *self.latent_shape), generator=rng, device=self.device)
        return self.decode_tensor(observation, noise)

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.LatentPolicy.decode`."""
        tensors = self.encoder.read(observation, self.device)
        check_latent(latent_noise, observation, self.latent_shape)
        with torch.inference_mode():
            noise = torch.as_tensor(latent_noise, dtype=torch.float32, device=self.device)
            return ActionChunk(self.decode_tensor(tensors, noise).float().cpu().numpy())

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = len(next(iter(observation.values()), ()))
        return self.decode(observation, standard_normal(rng, (rows, *self.latent_shape)))

    def continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.ContinuingPolicy.continue_chunk`."""
        rows = len(next(iter(observation.values()), ()))
        noise = standard_normal(rng, (rows, *self.latent_shape))
        return self.continue_latent(observation, noise, committed, delay=delay, method=method)

    def continue_latent(
        self, observation: Observation, latent_noise: Array, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """Return :meth:`continue_chunk`'s chunk for the noise (b, *latent_shape), which it would draw.

        Raises:
            RefusedError: see there.
        """
        tensors = self.encoder.read(observation, self.device)
        check_latent(latent_noise, observation, self.latent_shape)
        rows, (horizon, action_dim) = len(next(iter(tensors.values()))), self.latent_shape[1:]
        if committed.ndim != 3 or committed.shape[::2] != (rows, action_dim) or not 1 <= committed.shape[1] <= horizon:
            raise RefusedError(f"committed must have shape ({rows}, 1 to {horizon}, {action_dim}), got {committed.shape}.")
        planned = committed.shape[1]
        weights = torch.from_numpy(soft_weights(delay, planned, horizon))
        padded = np.concatenate((committed, committed[:, -1:].repeat(horizon - planned, axis=1)), axis=1)
        noise = torch.as_tensor(latent_noise, dtype=torch.float32, device=self.device)
        with torch.no_grad():
            plan = self.normalizer.apply(ACTION, torch.as_tensor(padded, dtype=torch.float32, device=self.device))
            condition = self.condition(tensors)
            if method == "trained":
                denoise = self._given(condition, plan, delay)
            elif method == "guided":
                known = None if not self.config.max_delay else torch.zeros(plan.shape[:2], dtype=torch.bool, device=self.device)
                base = self.fast_denoiser(condition, known)
                denoise = guided(base, self.sigmas, plan, weights, beta=GUIDANCE_BETA, sigma_data=self.sigma_data)
            else:
                raise RefusedError(f"Unknown way {method!r} to continue a chunk. Allowed: trained, guided.")
            chunk = self.sampler.sample(denoise, self.sigmas, noise)
            return ActionChunk(self.normalizer.invert(ACTION, chunk).float().cpu().numpy())

    def _given(self, condition: Tensor, plan: Tensor, delay: int) -> Denoise:
        """Return a denoiser to which the first ``delay`` actions of ``plan`` are known."""
        if delay > self.trained_delay:
            if self.config.max_delay > self.trained_delay:
                raise RefusedError(
                    "A one-step student was not trained to continue a chunk; its teacher was. Take guided or blend."
                )
            raise RefusedError(f"A delay of {delay} steps exceeds max_delay={self.config.max_delay}, which was trained for.")
        known = (torch.arange(self.pred_horizon, device=plan.device) < delay).expand(len(plan), -1)
        denoise = self.fast_denoiser(condition, known)

        def clamped(noisy: Tensor, index: int) -> Tensor:
            return torch.where(known[..., None], plan, denoise(torch.where(known[..., None], plan, noisy), index))

        return clamped
