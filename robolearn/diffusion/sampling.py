"""Reverse-time samplers as pure functions of (denoiser, steps, latent noise).

DDIM and DDPM are one affine rule with different numbers, so a sampler is a table of them; ``output`` is the network's::

    denoised = clip(denoised_from_noisy * noisy + denoised_from_output * output)
    next     = next_from_denoised * denoised + next_from_noisy * noisy + next_from_output * output + fresh_noise * noise
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.diffusion.schedules import Prediction

type SamplerName = Literal["ddim", "ddpm"]
type Spacing = Literal["leading", "trailing"]


class SamplerStep(NamedTuple):
    """One reverse step: the noise level that the network is asked about and the numbers of the affine rule above."""

    level: int
    denoised_from_noisy: float
    denoised_from_output: float
    next_from_denoised: float
    next_from_noisy: float
    next_from_output: float
    fresh_noise: float


def step_levels(*, levels: int, steps: int, spacing: Spacing = "leading") -> list[int]:
    """Return the noise levels that ``steps`` reverse steps visit, noisiest first, as diffusers' schedulers choose them.

    ``leading`` counts up from level 0 (diffusers' default; never asks about the very noisiest levels), ``trailing`` counts down
    from the noisiest (Lin et al. 2023, table 2).

    Raises:
        RefusedError: ``steps`` is not in [1, levels].
    """
    if not 1 <= steps <= levels:
        raise RefusedError(f"sampler_steps={steps} must lie in [1, {levels}], the number of noise levels.")
    if spacing == "leading":
        return [int(n) for n in np.arange(steps)[::-1] * (levels // steps)]
    return [int(n) - 1 for n in np.round(np.arange(levels, 0, -levels / steps))]


def ddim_steps(alpha_bars: Tensor, visited: Sequence[int], prediction: Prediction) -> tuple[SamplerStep, ...]:
    """Return the deterministic DDIM steps (Song et al. 2021, eq. 12 with eta = 0).

    ``next = sqrt(abar') denoised + sqrt(1 - abar') noise_estimate``; as in diffusers, clipping leaves the noise estimate as it is
    and after the last level ``abar' = 1``.

    Args:
        alpha_bars: (levels,) from :func:`robolearn.diffusion.schedules.alpha_bars`.
        visited: noise levels, noisiest first.
        prediction: what the network outputs.
    """
    rows = []
    for level, alpha_bar, alpha_bar_next in _visits(alpha_bars, visited):
        denoised, noise = _estimates(alpha_bar, prediction)
        direction = (1.0 - alpha_bar_next) ** 0.5
        rows.append(SamplerStep(level, *denoised, alpha_bar_next**0.5, direction * noise[0], direction * noise[1], 0.0))
    return tuple(rows)


def ddpm_steps(alpha_bars: Tensor, visited: Sequence[int], prediction: Prediction) -> tuple[SamplerStep, ...]:
    """Return the ancestral steps (Ho et al. 2020, eq. 7) with the smaller of the two fixed variances.

    ``next = (sqrt(abar') (1 - alpha) denoised + sqrt(alpha) (1 - abar') noisy) / (1 - abar) + s noise``,
    ``alpha = abar / abar'``, ``s^2 = (1 - abar') / (1 - abar) (1 - alpha)``. Arguments as in :func:`ddim_steps`.
    """
    rows = []
    for level, alpha_bar, alpha_bar_next in _visits(alpha_bars, visited):
        denoised, _ = _estimates(alpha_bar, prediction)
        alpha = alpha_bar / alpha_bar_next
        from_denoised = alpha_bar_next**0.5 * (1.0 - alpha) / (1.0 - alpha_bar)
        from_noisy = alpha**0.5 * (1.0 - alpha_bar_next) / (1.0 - alpha_bar)
        fresh = ((1.0 - alpha_bar_next) / (1.0 - alpha_bar) * (1.0 - alpha)) ** 0.5
        rows.append(SamplerStep(level, *denoised, from_denoised, from_noisy, 0.0, fresh))
    return tuple(rows)


def sample(
    denoise: Callable[[Tensor, int], Tensor], steps: Sequence[SamplerStep], latent_noise: Tensor, *, clip: float | None
) -> Tensor:
    """Run the reverse steps; differentiable with respect to ``latent_noise`` and free of device synchronisation.

    Args:
        denoise: (noisy chunk (b, h, a), index into ``steps``) -> network output (b, h, a).
        steps: from :func:`ddim_steps` or :func:`ddpm_steps`.
        latent_noise: (b, k, h, a): the start, then the fresh noise of every step but the last where the sampler draws any
            (see :func:`noise_draws`); N(0, 1).
        clip: the clean estimate is kept within +-clip; None leaves it.

    Returns:
        The clean chunk, (b, h, a).
    """
    noisy = latent_noise[:, 0]
    for index, step in enumerate(steps):
        output = denoise(noisy, index).to(noisy.dtype)
        denoised = step.denoised_from_noisy * noisy + step.denoised_from_output * output
        if clip is not None:
            denoised = denoised.clamp(-clip, clip)
        following = step.next_from_denoised * denoised
        if step.next_from_noisy:
            following = following + step.next_from_noisy * noisy
        if step.next_from_output:
            following = following + step.next_from_output * output
        if step.fresh_noise:
            following = following + step.fresh_noise * latent_noise[:, index + 1]
        noisy = following
    return noisy


def noise_draws(steps: Sequence[SamplerStep]) -> int:
    """Return how many chunks of noise one sample consumes: 1 for DDIM, the number of steps for DDPM."""
    return 1 + sum(step.fresh_noise > 0 for step in steps)


def _visits(alpha_bars: Tensor, visited: Sequence[int]) -> list[tuple[int, float, float]]:
    """Pair each visited level with its alpha_bar and that of the level after it (1 after the last)."""
    values = [float(alpha_bars[level]) for level in visited]
    return list(zip(visited, values, [*values[1:], 1.0], strict=True))


def _estimates(alpha_bar: float, prediction: Prediction) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (from_noisy, from_output) of the clean estimate and of the noise estimate."""
    signal, noise = alpha_bar**0.5, (1.0 - alpha_bar) ** 0.5
    if prediction == "epsilon":
        return (1.0 / signal, -noise / signal), (0.0, 1.0)
    if prediction == "sample":
        return (0.0, 1.0), (1.0 / noise, -signal / noise)
    return (signal, -noise), (noise, signal)
