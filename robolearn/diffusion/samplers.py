"""Samplers as pure functions of (denoiser, sigmas, latent noise), for ``noisy = clean + sigma * noise``.

All integrate the probability flow ``dx / dsigma = (x - denoised(x, sigma)) / sigma`` from ``sigmas[0]`` down to 0 (Karras et
al. 2022, eq. 1), or add noise back on the way. A denoiser maps (noisy chunk (b, h, a), index into ``sigmas``) to the clean
estimate (b, h, a). It is asked about ``sigmas[:-1]`` only: the last level is 0, where the chunk is clean. Samplers are
differentiable and do not wait for a device. DDIM (Song et al. 2021) is Euler's method in ``sigma``, so it is not written twice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from robolearn.core.errors import RefusedError, nearest

type Denoise = Callable[[Tensor, int], Tensor]


def euler(denoise: Denoise, sigmas: Sequence[float], latent_noise: Tensor) -> Tensor:
    """First order: ``x' = denoised + (sigma' / sigma) (x - denoised)``; this is DDIM with eta = 0.

    Args:
        denoise: see the module.
        sigmas: (n + 1) decreasing, the last is 0.
        latent_noise: (b, 1, h, a), N(0, 1).

    Returns:
        The clean chunk, (b, h, a).
    """
    x = sigmas[0] * latent_noise[:, 0]
    for index, (sigma, following) in enumerate(_pairs(sigmas)):
        denoised = denoise(x, index)
        x = denoised + (following / sigma) * (x - denoised) if following else denoised
    return x


def euler_ancestral(denoise: Denoise, sigmas: Sequence[float], latent_noise: Tensor) -> Tensor:
    """Euler to a lower level than asked for, then fresh noise up to it: ``down^2 + up^2 = sigma'^2``.

    ``up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2`` (DDIM with eta = 1). ``latent_noise`` is (b, n, h, a): the start, then
    the fresh noise of each step but the last; else as :func:`euler`.
    """
    x = sigmas[0] * latent_noise[:, 0]
    for index, (sigma, following) in enumerate(_pairs(sigmas)):
        denoised = denoise(x, index)
        if not following:
            return denoised
        up = following * math.sqrt(1.0 - (following / sigma) ** 2)
        down = following**2 / sigma
        x = denoised + (down / sigma) * (x - denoised) + up * latent_noise[:, index + 1]
    return x


def heun(denoise: Denoise, sigmas: Sequence[float], latent_noise: Tensor) -> Tensor:
    """Second order: Euler's step, then again with the mean of the slopes at both ends (Karras et al. 2022, algorithm 1).

    Two evaluations per step, one in the last, whose end has no slope. Arguments as :func:`euler`.
    """
    x = sigmas[0] * latent_noise[:, 0]
    for index, (sigma, following) in enumerate(_pairs(sigmas)):
        slope = (x - denoise(x, index)) / sigma
        guess = x + (following - sigma) * slope
        if following:
            slope = (slope + (guess - denoise(guess, index + 1)) / following) / 2
            guess = x + (following - sigma) * slope
        x = guess
    return x


def dpmpp_2m(denoise: Denoise, sigmas: Sequence[float], latent_noise: Tensor) -> Tensor:
    """Second order with one evaluation per step: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2).

    With ``h = log(sigma / sigma')`` and the last step's ``h_old``, the clean estimate is extrapolated by half a step,
    ``d = denoised + h / (2 h_old) (denoised - denoised_old)``, and ``x' = (sigma' / sigma) x - expm1(-h) d``; the first and
    the last step take ``denoised`` itself. Arguments as :func:`euler`.
    """
    x = sigmas[0] * latent_noise[:, 0]
    old: Tensor | None = None
    h_old = 0.0
    for index, (sigma, following) in enumerate(_pairs(sigmas)):
        denoised = denoise(x, index)
        if not following:
            return denoised
        h = math.log(sigma / following)
        estimate = denoised if old is None else denoised + h / (2 * h_old) * (denoised - old)
        x = (following / sigma) * x - math.expm1(-h) * estimate
        old, h_old = denoised, h
    return x


def one_step(denoise: Denoise, sigmas: Sequence[float], latent_noise: Tensor) -> Tensor:
    """Return the clean estimate at the start itself: the sampler of distilled students. Arguments as :func:`euler`."""
    return denoise(sigmas[0] * latent_noise[:, 0], 0)


class Sampler(NamedTuple):
    """One entry of :data:`SAMPLERS`."""

    sample: Callable[[Denoise, Sequence[float], Tensor], Tensor]
    draws_every_step: bool = False
    """Whether the latent holds fresh noise for each step."""

    def draws(self, sigmas: Sequence[float]) -> int:
        """Return how many chunks of noise one sample consumes."""
        return len(sigmas) - 1 if self.draws_every_step else 1


SAMPLERS = {
    "ddim": Sampler(euler),
    "euler": Sampler(euler),
    "euler_ancestral": Sampler(euler_ancestral, draws_every_step=True),
    "heun": Sampler(heun),
    "dpmpp_2m": Sampler(dpmpp_2m),
    "one_step": Sampler(one_step),
}


def get_sampler(name: str) -> Sampler:
    """Return the sampler called ``name``.

    Raises:
        RefusedError: there is none; the nearest is named.
    """
    if name not in SAMPLERS:
        raise RefusedError(f"Unknown sampler {name!r}. {nearest(name, SAMPLERS)}")
    return SAMPLERS[name]


def _pairs(sigmas: Sequence[float]) -> list[tuple[float, float]]:
    if len(sigmas) < 2 or sigmas[-1] != 0.0 or any(b >= a for a, b in itertools.pairwise(sigmas)):
        raise RefusedError(f"A sampler needs decreasing noise levels that end in 0, at least one step; got {tuple(sigmas)}.")
    return list(itertools.pairwise(sigmas))
