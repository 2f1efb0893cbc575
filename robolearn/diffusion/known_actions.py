"""Actions of a chunk that are given clean, and the bound on clean estimates: what every process does alike."""

from __future__ import annotations

import torch
from torch import Tensor


def with_known(noisy: Tensor, clean: Tensor, known: Tensor | None) -> Tensor:
    """Return ``noisy`` (b, h, a) with the actions of ``clean`` where ``known`` (b, h) bool; None knows nothing."""
    return noisy if known is None else torch.where(known[..., None], clean, noisy)


def flagged(noisy: Tensor, known: Tensor | None) -> Tensor:
    """Return chunks (b, h, a + 1) whose last number tells a network which actions it is given clean."""
    flag = torch.zeros_like(noisy[..., :1]) if known is None else known[..., None].to(noisy.dtype)
    return torch.cat((noisy, flag), dim=-1)


def clipped(denoised: Tensor, bound: float) -> Tensor:
    """Return a clean estimate within +-``bound``; 0 leaves it."""
    return denoised.clamp(-bound, bound) if bound else denoised
