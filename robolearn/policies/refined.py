"""What the refined policies share: a frozen policy inside, its observation encoder, its description and the scale of actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import LatentPolicy
from robolearn.core.types import Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.policies import make_policy


class RefinedPolicy(nn.Module):
    """A module around a frozen base policy.

    Attributes:
        base: the frozen policy; acting with it alone is the fallback.
        encoder: the base's observation encoder.
    """

    base: Any
    spaces: Spaces
    obs_horizon: int
    pred_horizon: int
    action_centre: Tensor
    action_half_range: Tensor

    def __init__(self, config: Any, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__()
        base: Any = make_policy(config.base.name, config.base.config, spaces, normalizer)
        if not isinstance(base, nn.Module) or not hasattr(base, "condition"):
            raise RefusedError(f"Policy {config.base.name!r} cannot be refined: it encodes no observation.")
        self.config, self.base = config, base.requires_grad_(False)
        self.spaces = base.spaces  # type: ignore[assignment]
        self.obs_horizon, self.pred_horizon = int(base.obs_horizon), int(base.pred_horizon)  # type: ignore[arg-type]
        centre, half_range = spaces.action_scaling()
        self.register_buffer("action_centre", torch.from_numpy(centre), persistent=False)
        self.register_buffer("action_half_range", torch.from_numpy(half_range), persistent=False)

    def card(self) -> dict[str, object]:
        """Return what :func:`robolearn.policies.loading.load_policy` needs besides the weights; JSON-serialisable."""
        base = self.base.card()
        config = asdict(self.config) | {"base": {"name": base["policy"], **base["config"]}}
        name = type(self).__module__.rpartition(".")[2]
        return {"policy": name, "config": config, "spaces": base["spaces"], "normalizer": base["normalizer"]}

    @property
    def encoder(self) -> Any:
        """The base's observation encoder."""
        return self.base.encoder

    @property
    def device(self) -> torch.device:
        """Where the policy lives."""
        return self.action_centre.device

    def condition(self, observation: Mapping[str, Tensor], rng: torch.Generator | None = None) -> Tensor:
        """Return the base's condition (b, c) of an observation key -> (b, o, ...)."""
        return self.base.condition(observation, rng)

    def normalize_action(self, action: Tensor) -> Tensor:
        """Map raw actions (..., a) to [-1, 1] between the action's bounds; what lies outside is clipped."""
        return ((action - self.action_centre) / self.action_half_range).clamp(-1.0, 1.0)


def require_latent(base: Any, name: str) -> None:
    """Refuse a base that decodes no latent noise.

    Raises:
        RefusedError: names the policy.
    """
    if not isinstance(base, LatentPolicy):
        raise RefusedError(
            f"Policy {name!r} cannot be steered, nor proposes it several chunks: it has no latent noise to decode. "
            f"Steer first, then correct."
        )
