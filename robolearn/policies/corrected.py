"""A frozen policy whose every action is corrected by a small residual network (residual RL; ResFiT, Ankile et al. 2025).

The residual is learned by reinforcement (``robolearn refine``), or from demonstrations as a correction head for late decisions
(``robolearn correct``; A2C2, arXiv 2509.23224): a chunk is old when its later actions are due, the head sees what is new.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, CorrectingPolicy, RandomSource
from robolearn.core.types import ACTION, ActionChunk, Array, Observation, Spaces
from robolearn.data.dataset import PAD_SUFFIX
from robolearn.data.normalizer import Normalizer
from robolearn.nets.actors import ActorConfig, make_actor
from robolearn.policies import config_class
from robolearn.policies.refined import RefinedPolicy


@dataclass(frozen=True)
class Config:
    """What is corrected, and how far."""

    base: Any = variant("diffusion", config_class)
    """The frozen policy."""
    actor: ActorConfig = field(default_factory=lambda: ActorConfig(layers=2))
    """The residual network."""
    residual_scale: float = 0.2
    """Largest residual of an action element, in normalised action units (half the range between the action's bounds)."""

    def __post_init__(self) -> None:
        if not 0.0 < self.residual_scale <= 2.0:
            raise RefusedError(
                f"residual_scale={self.residual_scale} must lie in (0, 2]: 0 corrects nothing, 2 spans every action."
            )


class Policy(RefinedPolicy):
    """Plays the base policy's chunks and corrects each action from the newest observation.

    Attributes:
        reach: () share of ``residual_scale`` that may be used; grows while the actor learns.
    """

    reach: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        if isinstance(self.base, CorrectingPolicy):
            raise RefusedError(f"Policy {config.base.name!r} corrects its actions already; a second residual is refused.")
        self.register_buffer("reach", torch.tensor(1.0))
        self.actor = make_actor(self.encoder, spaces.action_dim, spaces.action_dim, config.actor)
        if isinstance(self.base, ContinuingPolicy):
            self.continue_chunk = self._continue_chunk

    def residual(self, condition: Tensor, base_action: Tensor, actor: nn.Module | None = None) -> Tensor:
        """Return the residual (b, a), normalised units, within +-residual_scale, for the base's normalised actions (b, a).

        Args:
            condition: (b, c), see :meth:`condition`.
            base_action: (b, a).
            actor: the network to ask, the policy's own by default; a learner asks the one that it trains.
        """
        return self.reach * self.config.residual_scale * torch.tanh((actor or self.actor)(condition, base_action).float())

    def train(self, mode: bool = True) -> Policy:
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

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return the base's chunk; :meth:`correct` is applied when each of its actions is due."""
        return self.base.predict(observation, rng)

    def _continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """See :class:`ContinuingPolicy`: the base's; what is committed is the base's plan, without corrections."""
        return self.base.continue_chunk(observation, rng, committed, delay=delay, method=method)

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """See :meth:`robolearn.core.protocols.CorrectingPolicy.correct`; draws nothing."""
        with torch.inference_mode():
            condition = self.condition(self.encoder.read(observation, self.device))
            base = torch.as_tensor(action, dtype=torch.float32, device=self.device)
            residual = self.residual(condition, self.normalize_action(base))
            # Raw units and an added difference: a residual of zero leaves the action as it is, to the last bit.
            return (base + residual * self.action_half_range).cpu().numpy()
