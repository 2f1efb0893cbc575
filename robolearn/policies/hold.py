"""Baseline: stand still."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.observation import check_observation, select_observation
from robolearn.core.protocols import RandomSource
from robolearn.core.types import ActionChunk, Observation, Spaces, is_image


@dataclass(frozen=True)
class Config:
    """Horizons of the motionless chunk."""

    obs_horizon: int = 1
    """Observation steps asked for; only the newest is read."""
    pred_horizon: int = 8
    """Action steps of one chunk."""


class Policy:
    """Commands no motion: an action element named like a measured one repeats the measurement, any other is 0 (a zero rate).

    Zero keeps robosuite's gripper as it is. An element for which 0 lies outside the action bounds is refused.
    """

    def __init__(self, config: Config, spaces: Spaces, normalizer: object = None) -> None:
        self.config = config
        self.obs_horizon, self.pred_horizon = config.obs_horizon, config.pred_horizon
        self.spaces = select_observation(spaces, [key for key in spaces.observation if not is_image(key)])
        measured = {n: (key, i) for key, f in self.spaces.observation.items() for i, n in enumerate(f.names)}
        names = spaces.action.names or ("",) * spaces.action_dim
        self._sources = [measured.get(name) for name in names]
        for name, source, low, high in zip(names, self._sources, spaces.action_low, spaces.action_high, strict=True):
            if source is None and not low <= 0.0 <= high:
                raise RefusedError(f"hold: 0 is outside the bounds [{low}, {high}] of action {name!r}, which is not measured.")

    def card(self) -> dict[str, object]:
        """Return what rebuilds the policy; JSON-serialisable."""
        return {"policy": "hold", "config": asdict(self.config), "spaces": self.spaces.to_json()}

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`; draws nothing."""
        rows = check_observation(observation, self.spaces.observation, self.obs_horizon)
        action = np.zeros((rows, self.spaces.action_dim), np.float32)
        for column, source in enumerate(self._sources):
            if source is not None:
                action[:, column] = observation[source[0]][:, -1, source[1]]
        return ActionChunk(np.repeat(action[:, None], self.pred_horizon, axis=1))
