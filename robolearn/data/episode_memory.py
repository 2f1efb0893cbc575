"""Episodes kept in tensors while a policy acts, and drawn as training windows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from robolearn.core.types import ACTION, Array
from robolearn.data.dataset import PAD_SUFFIX, Batch

_FIRST, _LAST = "first", "last"


class EpisodeMemory:
    """Grows by whole episodes; :meth:`batch` cuts the windows of :class:`robolearn.data.dataset.WindowDataset`."""

    def __init__(self, obs_horizon: int, pred_horizon: int, device: torch.device | str = "cpu") -> None:
        self._obs_offsets = torch.arange(1 - obs_horizon, 1, device=device)
        self._action_offsets = torch.arange(pred_horizon, device=device)
        self._device = device
        self._rows: dict[str, Tensor] = {}
        self._steps = 0
        self.episodes = 0

    def __len__(self) -> int:
        """Return the number of windows, which is the number of steps."""
        return self._steps

    def add(self, episode: Mapping[str, Array]) -> None:
        """Keep an episode: observation keys and ``action`` -> (t, ...)."""
        begin, end = self._steps, self._steps + len(episode[ACTION])
        edges = {_FIRST: torch.full((end - begin,), begin), _LAST: torch.full((end - begin,), end - 1)}
        for name, value in {**{key: torch.as_tensor(value) for key, value in episode.items()}, **edges}.items():
            rows = self._rows.get(name)
            if rows is None or len(rows) < end:
                room = torch.empty((2 * end, *value.shape[1:]), dtype=value.dtype, device=self._device)
                if rows is not None:
                    room[:begin] = rows[:begin]
                self._rows[name] = rows = room
            rows[begin:end] = value
        self._steps, self.episodes = end, self.episodes + 1

    def batch(self, indices: Tensor) -> Batch:
        """Return the windows whose newest observations are the steps ``indices`` (b,), counted through all episodes."""
        first, last = self._rows[_FIRST][indices, None], self._rows[_LAST][indices, None]
        seen, acted = indices[:, None] + self._obs_offsets, indices[:, None] + self._action_offsets
        batch: Batch = {}
        for name, rows in self._rows.items():
            if name == ACTION:
                batch[name], batch[name + PAD_SUFFIX] = rows[acted.minimum(last)], acted > last
            elif name not in (_FIRST, _LAST):
                batch[name], batch[name + PAD_SUFFIX] = rows[seen.maximum(first)], seen < first
        return batch

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that :meth:`restore` reads."""
        rows = {f"rows/{name}": value[: self._steps] for name, value in self._rows.items()}
        return rows | {"episodes": torch.tensor(self.episodes)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Hold the episodes of :meth:`state`."""
        rows = {name.removeprefix("rows/"): value for name, value in state.items() if name.startswith("rows/")}
        self._rows = {name: value.to(self._device) for name, value in rows.items()}
        self._steps = len(rows[_FIRST]) if rows else 0
        self.episodes = int(state["episodes"])
