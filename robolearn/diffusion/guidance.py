"""Continuing what is already being executed: a denoiser that is pulled towards committed actions (real-time chunking).

Black et al. 2025 (arXiv 2506.07339) guide flow matching; in terms of ``noisy = clean + sigma noise`` the same correction is

    denoised' = denoised + min(beta s, 1 + s^2) J^T [w (committed - denoised)],    s = sigma / sigma_data, J = d denoised / d
    noisy

which serves every diffusion policy, trained for it or not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.diffusion.samplers import Denoise


def soft_weights(delay: int, planned: int, horizon: int) -> Tensor:
    """Return (horizon,) how strongly each step is held to the committed one.

    1 for the ``delay`` steps that will have been executed, then decaying as ``c (e^c - 1) / (e - 1)``,
    ``c = (planned - i) / (planned - delay + 1)``, to 0 at ``planned``, behind which nothing is committed (eq. 5 of the paper).

    Raises:
        RefusedError: not 0 <= delay <= planned <= horizon.
    """
    if not 0 <= delay <= planned <= horizon:
        raise RefusedError(f"A delay of {delay} steps must lie in [0, {planned}], the planned steps, of a chunk of {horizon}.")
    step = torch.arange(horizon, dtype=torch.float32)
    part = ((planned - step) / (planned - delay + 1)).clamp(0.0, 1.0)
    decaying = part * torch.expm1(part) / (math.e - 1.0)
    return torch.where(step < delay, 1.0, decaying)


def guided(
    denoise: Denoise, sigmas: Sequence[float], committed: Tensor, weights: Tensor, *, beta: float, sigma_data: float
) -> Denoise:
    """Return a denoiser whose chunks continue ``committed`` (b, h, a); see the module.

    Args:
        denoise: differentiable.
        sigmas: the sampler's noise levels.
        committed: normalised, padded behind what is planned.
        weights: (h,) of :func:`soft_weights`.
        beta: bound of the correction's growth with the noise level; 5 in the paper.
        sigma_data: standard deviation of the data.
    """
    weights = weights.to(committed.device)[None, :, None]

    def corrected(noisy: Tensor, index: int) -> Tensor:
        ratio = sigmas[index] / sigma_data
        with torch.enable_grad():
            leaf = noisy.detach().requires_grad_()
            denoised = denoise(leaf, index)
            (pull,) = torch.autograd.grad(denoised, leaf, weights * (committed - denoised.detach()))
        return denoised.detach() + min(beta * ratio, 1.0 + ratio**2) * pull

    return corrected
