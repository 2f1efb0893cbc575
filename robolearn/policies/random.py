"""Baseline: uniformly random actions within the bounds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.observation import check_observation, select_observation
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import uniform
from robolearn.core.types import ActionChunk, Observation, Spaces, is_image


@dataclass(frozen=True)
class Config:
    """Horizons of the random chunk."""

    obs_horizon: int = 1
    """Observation steps asked for; none is read."""
    pred_horizon: int = 8
    """Action steps of one chunk."""


class Policy:
    """Draws every action element independently and uniformly between its bounds."""

    def __init__(self, config: Config, spaces: Spaces, normalizer: object = None) -> None:
        self.config = config
        self.obs_horizon, self.pred_horizon = config.obs_horizon, config.pred_horizon
        self.spaces = select_observation(spaces, [key for key in spaces.observation if not is_image(key)])
        self._low, self._high = np.asarray(spaces.action_low, np.float32), np.asarray(spaces.action_high, np.float32)
        if not np.isfinite([self._low, self._high]).all():
            raise RefusedError(f"random: the action bounds must be finite, got {spaces.action_low} to {spaces.action_high}.")

    def card(self) -> dict[str, object]:
        """Return what rebuilds the policy; JSON-serialisable."""
        return {"policy": "random", "config": asdict(self.config), "spaces": self.spaces.to_json()}

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = check_observation(observation, self.spaces.observation, self.obs_horizon)
        share = uniform(rng, (rows, self.pred_horizon, self.spaces.action_dim))
        return ActionChunk(self._low + share * (self._high - self._low))
