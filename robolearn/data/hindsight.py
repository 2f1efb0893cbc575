"""Goals for play data, found in hindsight: what an episode reached later was what it was for (BESO, Reuss et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.seeding import generator
from robolearn.core.types import Array, FeatureSpec, Spaces, is_image
from robolearn.data.dataset import PAD_SUFFIX, Batch, WindowDataset
from robolearn.data.normalizer import Statistics

GOAL = "observation.goal"
"""The wanted state: the streams that goals are made of, one after the other, as they shall be."""


def with_goal(spaces: Spaces, keys: Sequence[str]) -> Spaces:
    """Return ``spaces`` with the stream :data:`GOAL` of the streams ``keys``; its elements are called ``goal_<name>``.

    Raises:
        RefusedError: no keys, or one that is not offered or is a camera.
    """
    for key in keys:
        if key not in spaces.observation or is_image(key):
            flat = [k for k in spaces.observation if not is_image(k)]
            raise RefusedError(f"Goals cannot be made of {key!r}; flat streams can. {nearest(key, flat)}")
    if not keys:
        raise RefusedError("Goals need at least one stream that they are made of.")
    parts = [(key, spaces.observation[key]) for key in keys]
    names = [f"goal_{name}" for key, f in parts for name in f.names or [f"{key}.{i}" for i in range(f.shape[0])]]
    return replace(spaces, observation={**spaces.observation, GOAL: FeatureSpec((len(names),), names=tuple(names))})


def goal_of(state: Mapping[str, Array], keys: Sequence[str]) -> Array:
    """Return the goal (..., g) that the streams key -> (..., d) make."""
    return np.concatenate([state[key] for key in keys], axis=-1).astype(np.float32)


class HindsightWindows:
    """Windows with a goal: the state that the episode was in some steps after the newest observation.

    Each window comes ``per_window`` times, each time with a goal of its own. The seed alone decides which, so that a resumed run
    meets the same ones. The steps ahead are drawn evenly up to the end of the episode, or up to ``furthest``; the last step of an
    episode is its own goal.
    """

    def __init__(self, windows: WindowDataset, keys: Sequence[str], *, per_window: int, furthest: int | None, seed: int) -> None:
        """Draw the goals; ``windows`` must serve the streams ``keys``.

        Raises:
            RefusedError: ``per_window`` or ``furthest`` is below 1, or see :func:`with_goal`.
        """
        if per_window < 1 or (furthest is not None and furthest < 1):
            raise RefusedError(f"{per_window=} and {furthest=} must be at least 1.")
        self.spaces, self.device, self._windows, self._keys = with_goal(windows.spaces, keys), windows.device, windows, list(keys)
        ends = np.repeat(np.cumsum(windows.lengths), windows.lengths)
        left = ends - 1 - np.arange(len(windows))
        reach = left if furthest is None else np.minimum(left, furthest)
        ahead = 1 + np.floor(generator(seed, "hindsight goals").random((per_window, len(windows))) * reach).astype(np.int64)
        self._goal_rows = torch.from_numpy(np.arange(len(windows)) + np.minimum(ahead, left)).to(self.device)
        states = goal_of({key: windows.states(key) for key in keys}, keys)
        self._statistics = Statistics.of(states)
        self._states = torch.from_numpy(states).to(self.device)
        weights = windows.window_weights
        self.window_weights = None if weights is None else weights.repeat(per_window)
        self._made_of = {"keys": self._keys, "per_window": per_window, "furthest": furthest}

    def __len__(self) -> int:
        """Return the number of windows, each counted once per goal."""
        return self._goal_rows.numel()

    def batch(self, indices: Tensor) -> Batch:
        """Return the windows ``indices`` (b,) int64 with their goals, the same at every observation step."""
        indices = indices.to(self.device)
        batch = self._windows.batch(indices % len(self._windows))
        goal = self._states[self._goal_rows.view(-1)[indices]]
        steps = self._windows.config.obs_horizon
        batch[GOAL] = goal[:, None].expand(-1, steps, -1)
        batch[GOAL + PAD_SUFFIX] = torch.zeros(len(goal), steps, dtype=torch.bool, device=self.device)
        return batch

    def statistics(self) -> dict[str, Statistics]:
        """Return the statistics of every state stream, of the goal and of ``action``."""
        return self._windows.statistics() | {GOAL: self._statistics}

    def provenance(self) -> dict[str, object]:
        """Return which data this is, for run folders and checkpoints."""
        return self._windows.provenance() | {"goals": self._made_of}
