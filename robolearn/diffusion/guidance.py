"""Continuing what is already being executed: a denoiser that is pulled towards committed actions (real-time chunking).

Black et al. 2025 (arXiv 2506.07339) guide flow matching; in terms of ``noisy = clean + sigma noise`` the same correction is

    denoised' = denoised + min(beta s, 1 + s^2) J^T [w (committed - denoised)],    s = sigma / sigma_data, J = d denoised / d
    noisy

which serves every diffusion policy, trained for it or not.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from robolearn.diffusion.samplers import Denoise


def guided(
    denoise: Denoise, sigmas: Sequence[float], committed: Tensor, weights: Tensor, *, beta: float, sigma_data: float
) -> Denoise:
    """Return a denoiser whose chunks continue ``committed`` (b, h, a); see the module.

    Args:
        denoise: differentiable.
        sigmas: the sampler's noise levels.
        committed: normalised, padded behind what is planned.
        weights: (h,) of :func:`robolearn.core.continuation.soft_weights`.
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
