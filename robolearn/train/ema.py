"""Exponential moving average of the weights: the copy of the policy that acts."""

from __future__ import annotations

import copy

import torch
from torch import nn


def decay_at(step: int, *, power: float, max_decay: float) -> float:
    """Return the share of the old average that update ``step`` (0, 1, ...) keeps: min(max_decay, 1 - (1 + step) ** -power).

    Diffusion Policy's schedule (Chi et al. 2023, ``ema_model.py``) with inverse gamma 1: the first average is the weights
    themselves, and the memory grows as training settles.
    """
    return min(max_decay, 1.0 - (1.0 + step) ** -power)


class WeightAverage[P: nn.Module]:
    """A copy of ``policy`` whose parameters follow it slowly.

    Buffers (normalisers) are constants of training and are copied, not averaged, by :meth:`copy_buffers`.
    """

    def __init__(self, policy: P, *, power: float, max_decay: float) -> None:
        self.policy: P = copy.deepcopy(policy).eval().requires_grad_(False)
        self._power = power
        self._max_decay = max_decay
        self._source = policy
        self._averages = [p.detach() for p in self.policy.parameters()]
        self._weights = [p.detach() for p in policy.parameters()]

    @torch.no_grad()
    def update(self, step: int, moved: torch.Tensor | None = None) -> None:
        """Move the average towards the weights that update ``step`` made.

        Args:
            step: number of earlier updates.
            moved: () float, 0 where the update was skipped on the device and the average has to stay; None means it was not.
        """
        share = 1.0 - decay_at(step, power=self._power, max_decay=self._max_decay)
        if moved is None:
            torch._foreach_lerp_(self._averages, self._weights, share)
            return
        # lerp takes no weight that lives on the device; reading `moved` here would make the host wait for every step.
        difference = list(torch._foreach_sub(self._weights, self._averages))
        torch._foreach_mul_(difference, moved * share)
        torch._foreach_add_(self._averages, difference)

    @torch.no_grad()
    def copy_buffers(self) -> None:
        """Make the copy's buffers equal the policy's."""
        for target, source in zip(self.policy.buffers(), self._source.buffers(), strict=True):
            target.copy_(source)
