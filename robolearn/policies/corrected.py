"""A frozen policy whose every action is corrected by a small residual network (residual RL; ResFiT, Ankile et al. 2025)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import CorrectingPolicy, RandomSource
from robolearn.core.types import ActionChunk, Array, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.nets.actors import ActorConfig, ZeroHeadMlp
from robolearn.policies import config_class, make_policy


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


class Policy(nn.Module):
    """Plays the base policy's chunks and corrects each action from the newest observation.

    Attributes:
        base: the frozen policy; acting with it alone is the fallback.
        reach: () share of ``residual_scale`` that may be used; grows while the actor learns.
    """

    action_centre: Tensor
    action_half_range: Tensor
    reach: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__()
        base = make_policy(config.base.name, config.base.config, spaces, normalizer)
        if not isinstance(base, nn.Module) or not hasattr(base, "condition"):
            raise RefusedError(f"Policy {config.base.name!r} cannot be corrected: it encodes no observation.")
        if isinstance(base, CorrectingPolicy):
            raise RefusedError(f"Policy {config.base.name!r} corrects its actions already; a second residual is refused.")
        self.config, self.base = config, base.requires_grad_(False)
        self.spaces, self.obs_horizon, self.pred_horizon = base.spaces, base.obs_horizon, base.pred_horizon
        low, high = torch.tensor(spaces.action_low), torch.tensor(spaces.action_high)
        self.register_buffer("action_centre", (low + high) / 2, persistent=False)
        self.register_buffer("action_half_range", (high - low) / 2, persistent=False)
        self.register_buffer("reach", torch.tensor(1.0))
        encoder: Any = base.encoder
        self.actor = ZeroHeadMlp(encoder.condition_dim + spaces.action_dim, spaces.action_dim, config.actor)

    def card(self) -> dict[str, object]:
        """Return what :func:`robolearn.policies.loading.load_policy` needs besides the weights; JSON-serialisable."""
        base = self.base.card()  # type: ignore[operator]
        config = asdict(self.config) | {"base": {"name": base["policy"], **base["config"]}}
        return {"policy": "corrected", "config": config, "spaces": base["spaces"], "normalizer": base["normalizer"]}

    @property
    def encoder(self) -> Any:
        """The base's observation encoder."""
        return self.base.encoder

    def condition(self, observation: Mapping[str, Tensor], rng: torch.Generator | None = None) -> Tensor:
        """Return the base's condition (b, c) of an observation key -> (b, o, ...)."""
        return self.base.condition(observation, rng)  # type: ignore[operator]

    def to_normalized(self, action: Tensor) -> Tensor:
        """Map raw actions (..., a) to [-1, 1] between the action's bounds."""
        return (action - self.action_centre) / self.action_half_range

    def to_raw(self, normalized: Tensor) -> Tensor:
        """Invert :meth:`to_normalized`."""
        return normalized * self.action_half_range + self.action_centre

    def residual(self, condition: Tensor, base_action: Tensor, actor: nn.Module | None = None) -> Tensor:
        """Return the residual (b, a), normalised units, within +-residual_scale, for the base's normalised actions (b, a).

        Args:
            condition: (b, c), see :meth:`condition`.
            base_action: (b, a).
            actor: the network to ask, the policy's own by default; a learner asks the one that it trains.
        """
        features = torch.cat((condition, base_action), dim=-1)
        return self.reach * self.config.residual_scale * torch.tanh((actor or self.actor)(features).float())

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return the base's chunk; :meth:`correct` is applied when each of its actions is due."""
        return self.base.predict(observation, rng)  # type: ignore[operator]

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """See :meth:`robolearn.core.protocols.CorrectingPolicy.correct`; draws nothing."""
        device = self.action_centre.device
        with torch.inference_mode():
            condition = self.condition(self.encoder.read(observation, device))
            base = torch.as_tensor(action, dtype=torch.float32, device=device)
            residual = self.residual(condition, self.to_normalized(base).clamp(-1.0, 1.0))
            # Raw units and an added difference: a residual of zero leaves the action as it is, to the last bit.
            return (base + residual * self.action_half_range).cpu().numpy()
