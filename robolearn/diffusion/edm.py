"""Noise levels as standard deviations: ``noisy = clean + sigma * noise`` (Karras et al. 2022, "EDM").

Every other forward process is this one on a scaled chunk: DDPM's ``sqrt(abar) clean + sqrt(1 - abar) noise`` is ``sqrt(abar)``
times the chunk of ``sigma = sqrt(1 - abar) / sqrt(abar)``, flow matching's ``t clean + (1 - t) noise`` is ``t`` times that of
``sigma = (1 - t) / t``. Samplers, guidance and distillation are therefore written once, in ``sigma``.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError

type SigmaSchedule = Literal["exponential", "karras", "linear"]


class Scales(NamedTuple):
    """Preconditioning of the network at given noise levels (Karras et al. 2022, table 1); each has the shape of ``sigma``.

    ``denoised = skip * noisy + out * network(input * noisy, noise)``: the network sees and returns numbers of unit size.
    """

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor
    """log(sigma) / 4, what the network is told of the level."""


def scales(sigma: Tensor, sigma_data: float) -> Scales:
    """Return the preconditioning for data of standard deviation ``sigma_data``."""
    total = sigma.square() + sigma_data**2
    return Scales(sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt(), sigma.log() / 4)


def training_sigmas(uniform: Tensor, *, median: float, spread: float, low: float, high: float) -> Tensor:
    """Map U[0, 1) numbers to noise levels: log-logistic around ``median``, cut off at ``low`` and ``high``.

    The inverse distribution function is ``median * (u / (1 - u)) ** spread``; ``u`` is taken from between the bounds' own ``u``.
    """
    first, last = (1.0 / (1.0 + (bound / median) ** (-1.0 / spread)) for bound in (low, high))
    u = first + (last - first) * uniform
    return (median * (u / (1.0 - u)) ** spread).clamp(low, high)


def sigma_steps(schedule: str, steps: int, *, low: float, high: float, rho: float = 7.0) -> tuple[float, ...]:
    """Return the ``steps + 1`` noise levels that a sampler visits, from ``high`` over ``low`` (the last but one) to 0.

    Args:
        schedule: ``exponential`` (equal ratios), ``karras`` (equal steps of ``sigma ** (1 / rho)``, eq. 5) or ``linear``.
        steps: network evaluations of a first-order sampler; a single one starts at ``high``.
        low: smallest level above 0.
        high: level of the start.
        rho: see ``karras``.

    Raises:
        RefusedError: fewer than one step, or levels that are not 0 < low < high.
    """
    if steps < 1:
        raise RefusedError(f"A sampler makes at least one step, got sampler_steps={steps}.")
    if not 0.0 < low < high < math.inf:
        raise RefusedError(f"Noise levels must satisfy 0 < sigma_min < sigma_max, got {low} and {high}.")
    parts = [i / max(1, steps - 1) for i in range(steps)]
    if schedule == "exponential":
        levels = [high * (low / high) ** part for part in parts]
    elif schedule == "karras":
        levels = [(high ** (1 / rho) + part * (low ** (1 / rho) - high ** (1 / rho))) ** rho for part in parts]
    elif schedule == "linear":
        levels = [high + part * (low - high) for part in parts]
    else:
        raise RefusedError(f"Unknown sigma schedule {schedule!r}. Allowed: exponential, karras, linear.")
    return (*levels, 0.0)


def ddpm_sigmas(alpha_bars: Tensor, visited: list[int]) -> tuple[float, ...]:
    """Return the ``sigma`` of DDPM's levels ``visited``, noisiest first, and the final 0."""
    return (*(math.sqrt((1.0 - float(alpha_bars[n])) / float(alpha_bars[n])) for n in visited), 0.0)


def flow_sigmas(steps: int, *, start: float = 1e-3) -> tuple[float, ...]:
    """Return the ``sigma = (1 - t) / t`` of flow matching's times 0, 1/steps, ..., 1.

    Time 0, where sigma is infinite, is replaced by ``start``.

    Raises:
        RefusedError: fewer than one step.
    """
    if steps < 1:
        raise RefusedError(f"A sampler makes at least one step, got sampler_steps={steps}.")
    times = torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64).clamp(min=start).tolist()
    return tuple((1.0 - t) / t for t in times)
