"""A frozen policy whose every action is corrected by a small residual network (residual RL; ResFiT, Ankile et al. 2025).

The residual is learned by reinforcement (``robolearn refine``), or from demonstrations (:mod:`robolearn.refine.correction_head`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, CorrectingPolicy, RandomSource
from robolearn.core.types import ActionChunk, Array, Observation, Spaces
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
