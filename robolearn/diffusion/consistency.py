"""Consistency distillation (Song et al. 2023, algorithm 2) on the noise levels that the teacher's own sampler visits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

type DenoiseRows = Callable[[Tensor, Tensor], Tensor]
"""(noisy chunks (b, h, a), (b,) int64 indices into the noise levels) -> clean estimates (b, h, a)."""


def consistency_error(
    student: DenoiseRows, teacher: DenoiseRows, sigmas: Sequence[float], clean: Tensor, rng: torch.Generator
) -> Tensor:
    """Return elementwise squared errors (b, h, a) whose zero makes ``student(x, i)`` the end of the teacher's path through ``x``.

    A noisy demonstration at level i is moved one Euler step by the teacher, to x'; the student has to say at x what it says at x'
    (no gradient through that), and at the last level what the teacher says. On the teacher's own levels the student's answer at
    the start therefore is the chunk that the teacher's sampler ends on, in one evaluation.

    Args:
        student: trained.
        teacher: frozen.
        sigmas: (n + 1) decreasing levels, the last is 0.
        clean: (b, h, a) demonstrations, normalised.
        rng: draws levels and noise.
    """
    levels = len(sigmas) - 1
    table = torch.tensor(sigmas, dtype=clean.dtype, device=clean.device)
    index = torch.randint(levels, (len(clean),), generator=rng, device=clean.device)
    noise = torch.randn(clean.shape, generator=rng, device=clean.device)
    sigma, following = table[index][:, None, None], table[index + 1][:, None, None]
    noisy = clean + sigma * noise
    with torch.no_grad():
        denoised = teacher(noisy, index)
        moved = denoised + following / sigma * (noisy - denoised)
        answer = student(moved, (index + 1).clamp(max=levels - 1))
        target = torch.where((index + 1 < levels)[:, None, None], answer, denoised)
    return (student(noisy, index) - target).square()
