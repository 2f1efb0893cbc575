"""The forward process of DDPM: how much of the action and how much noise there is at each noise level.

``noisy = sqrt(alpha_bar) * clean + sqrt(1 - alpha_bar) * noise`` (Ho et al. 2020, eq. 4); the network's output stands for the
noise, the clean chunk or the velocity, and each of these gives the other two.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError

type ScheduleName = Literal["squaredcos_cap_v2", "linear", "scaled_linear"]
type Prediction = Literal["epsilon", "sample", "v_prediction"]


def alpha_bars(schedule: str, *, levels: int) -> Tensor:
    """Return (levels,) float64 products of ``1 - beta``, largest (least noise) first, as diffusers' DDPMScheduler builds them.

    ``squaredcos_cap_v2`` is Nichol and Dhariwal 2021, eq. 17, with betas capped at 0.999; the linear ones run from 1e-4 to 2e-2.

    Raises:
        RefusedError: fewer than two levels.
    """
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # costs seconds at import

    if levels < 2:
        raise RefusedError(f"A noise schedule needs at least 2 levels, got {levels}.")
    scheduler = DDPMScheduler(num_train_timesteps=levels, beta_schedule=schedule)
    return torch.cumprod(1.0 - scheduler.betas.double(), dim=0)


def add_noise(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return the noisy chunks (b, h, a) of ``clean`` (b, h, a) at noise levels ``alpha_bar`` (b,)."""
    alpha_bar = alpha_bar[:, None, None]
    return alpha_bar.sqrt() * clean + (1.0 - alpha_bar).sqrt() * noise


def training_target(prediction: Prediction, *, clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return what the network has to output: the noise, the clean chunk, or ``v = sqrt(abar) noise - sqrt(1 - abar) clean``.

    The velocity is Salimans and Ho 2022, section 4. Shapes as in :func:`add_noise`.
    """
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    alpha_bar = alpha_bar[:, None, None]
    return alpha_bar.sqrt() * noise - (1.0 - alpha_bar).sqrt() * clean
