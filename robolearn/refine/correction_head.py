"""A head that corrects each action of a late chunk when its turn comes (A2C2, arXiv 2509.23224), learned from demonstrations.

A chunk is old when its later actions are due, the more so the longer a decision takes; the head sees what is new. It is the
residual network of :mod:`robolearn.policies.corrected`, trained by the supervised loop instead of by reinforcement.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION
from robolearn.data.dataset import PAD_SUFFIX
from robolearn.policies import corrected
from robolearn.refine.base import wrap


class CorrectionHead(corrected.Policy):
    """A ``corrected`` policy with a supervised loss; it is saved and loaded as the policy without."""

    @classmethod
    def around(cls, base: Any, *, residual_scale: float) -> CorrectionHead:
        """Return an untrained head around a loaded generative policy, whose weights it copies.

        Args:
            base: the policy; it stays as it is.
            residual_scale: largest correction, in half ranges of the action.

        Raises:
            RefusedError: the scale is out of range, or the policy corrects its actions already.
        """
        made = wrap(base, "corrected", corrected.Config(residual_scale=residual_scale))
        head = cls(made.config, made.spaces, copy.deepcopy(base.normalizer))
        head.load_state_dict(made.state_dict())
        return head.to(made.device).train()

    def card(self) -> dict[str, object]:
        """Return the description of the policy that acts, which needs no loss."""
        return super().card() | {"policy": "corrected"}

    def train(self, mode: bool = True) -> CorrectionHead:
        """Switch the residual network between training and acting; the base always acts."""
        super().train(mode)
        self.base.eval()
        return self

    def loss(self, batch: Mapping[str, Tensor], rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the mean squared error of corrected actions of old chunks against the demonstrated ones.

        For each window an age of 0 to n steps is drawn, at most as far back as its episode reaches. The base decides on what was
        seen that long ago, its action for the newest step is corrected from what is seen there, and compared with what was done.
        A2C2's head is also told the age; ours is not, as an action is corrected wherever it comes from.

        Args:
            batch: raw units; observation keys (b, o + n, ...) with ``<key>_is_pad`` (b, o + n), ``action`` (b, h, a).
            rng: draws ages and the base's noise.

        Raises:
            RefusedError: the windows reach no step further back than the policy, or further than its chunks.
        """
        keys, rows = list(self.spaces.observation), len(batch[ACTION])
        seen, past = batch[keys[0]].shape[1], batch[keys[0]].shape[1] - self.obs_horizon
        if not 1 <= past < self.pred_horizon:
            raise RefusedError(
                f"Windows of {seen} observation steps leave ages up to {past} to an obs_horizon of {self.obs_horizon}; they must "
                f"lie in [1, {self.pred_horizon - 1}]."
            )
        reaches = (~batch[keys[0] + PAD_SUFFIX]).sum(dim=1).clamp(max=past + 1)
        age = (torch.rand(rows, generator=rng, device=rng.device) * reaches).long()
        step = (past - age)[:, None] + torch.arange(self.obs_horizon, device=age.device)
        row = torch.arange(rows, device=age.device)
        with torch.no_grad():
            old = {key: batch[key][row[:, None], step] for key in keys}
            base = self.normalize_action(self.base.predict_tensor(old, rng)[row, age].float())
            condition = self.condition({key: batch[key][:, past:] for key in keys})
        error = base - self.normalize_action(batch[ACTION][:, 0])
        corrected = error + self.residual(condition, base)
        loss = corrected.square().mean()
        return loss, {"loss": loss.detach(), "base_loss": error.square().mean()}
