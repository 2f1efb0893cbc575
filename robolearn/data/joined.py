"""Windows of several tasks as one source of batches in their joined space, every task drawn equally often."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.multitask import TASK, TaskColumns
from robolearn.core.types import ACTION, Spaces, is_image
from robolearn.data.dataset import PAD_SUFFIX, Batch, WindowDataset
from robolearn.data.hindsight import HindsightWindows
from robolearn.data.normalizer import Normalizer, Statistics

type TaskWindows = WindowDataset | HindsightWindows


class JoinedDataset:
    """The windows of several tasks, one task after the other, laid out as :mod:`robolearn.core.multitask` says.

    Attributes:
        window_weights: (windows,) float64, by which windows are drawn in training; None draws each once an epoch.
    """

    def __init__(
        self, tasks: Mapping[str, TaskWindows], joined: Spaces, normalizer: Normalizer, *, balanced: bool = True
    ) -> None:
        """Join.

        Args:
            tasks: task -> the windows of its own streams; all on one device.
            joined: their joined space.
            normalizer: fitted to :func:`joined_statistics`; its centres stand for what a task does not have.
            balanced: draw every task equally often, however many windows it has; else every window.
        """
        self.tasks, self.spaces = dict(tasks), joined
        self._columns = {name: TaskColumns.of(joined, name) for name in tasks}
        self.device = next(iter(tasks.values())).device
        self._ends = np.cumsum([len(windows) for windows in tasks.values()])
        blocks = next(iter(self._columns.values())).blocks
        self._absent = {key: normalizer.centre(key).to(self.device) for key in blocks}
        self.window_weights = self._weigh() if balanced else None

    def __len__(self) -> int:
        """Return the number of windows."""
        return int(self._ends[-1])

    def batch(self, indices: Tensor) -> Batch:
        """Return the windows ``indices`` (b,) int64, in that order."""
        indices = indices.cpu()
        owner = torch.from_numpy(np.searchsorted(self._ends, indices.numpy(), side="right"))
        order, parts = [], []
        first = 0
        for number, (name, windows) in enumerate(self.tasks.items()):
            rows = (owner == number).nonzero()[:, 0]
            if len(rows):
                parts.append(self._placed(name, windows.batch(indices[rows] - first)))
                order.append(rows)
            first = int(self._ends[number])
        if len(parts) == 1:
            return parts[0]
        back = torch.cat(order).argsort().to(self.device)
        return {key: torch.cat([part[key] for part in parts])[back] for key in parts[0]}

    def statistics(self) -> dict[str, Statistics]:
        """Return the statistics of every flat stream of the joined space and of the action."""
        return joined_statistics({name: windows.statistics() for name, windows in self.tasks.items()}, self.spaces)

    def provenance(self) -> dict[str, object]:
        """Return which data this is, for run folders and checkpoints."""
        each = {name: windows.provenance() for name, windows in self.tasks.items()}
        text = " ".join(f"{name}:{made['checksum']}" for name, made in each.items())
        return {"tasks": each, "checksum": hashlib.sha256(text.encode()).hexdigest(), "steps": len(self)}

    def _placed(self, name: str, batch: Batch) -> Batch:
        """Lay a task's batch out in the joined space."""
        columns = self._columns[name]
        rows, steps = batch[next(key for key in self.spaces.observation if key in batch)].shape[:2]
        for key, block in columns.blocks.items():
            full = self._absent[key].expand(rows, steps, -1).clone()
            full[..., block] = batch[key]
            batch[key] = full
        batch[TASK] = torch.from_numpy(columns.one_hot).to(self.device).expand(rows, steps, -1)
        batch[TASK + PAD_SUFFIX] = torch.zeros(rows, steps, dtype=torch.bool, device=self.device)
        return batch

    def _weigh(self) -> Tensor:
        """Return weights by which every task is drawn equally often; within a task its own windows' weights hold."""
        weights = []
        for windows in self.tasks.values():
            own = windows.window_weights
            own = torch.ones(len(windows), dtype=torch.float64) if own is None else own
            weights.append(own / own.sum())
        return torch.cat(weights)


def joined_statistics(tasks: Mapping[str, Mapping[str, Statistics]], joined: Spaces) -> dict[str, Statistics]:
    """Return the statistics of a joined space: blocks side by side, shared streams over the steps of all tasks.

    Raises:
        RefusedError: a task lacks the statistics of a stream.
    """
    columns = {name: TaskColumns.of(joined, name) for name in tasks}
    blocks = next(iter(columns.values())).blocks
    made = {TASK: Statistics((0.0,) * len(tasks), (1.0,) * len(tasks), (0.0,) * len(tasks), (1.0,) * len(tasks), count=1)}
    for key in [*(k for k in joined.observation if k != TASK and not is_image(k)), ACTION]:
        missing = [name for name, each in tasks.items() if key not in each]
        if missing:
            raise RefusedError(f"Tasks {missing} have no statistics of {key!r}.")
        parts = [each[key] for each in tasks.values()]
        made[key] = _beside(parts) if key in blocks else _pooled(parts)
    return made


def _beside(parts: list[Statistics]) -> Statistics:
    """Return the statistics of streams that lie side by side."""
    low, high, mean, std = (
        tuple(x for part in parts for x in getattr(part, name)) for name in ("minimum", "maximum", "mean", "std")
    )
    return Statistics(low, high, mean, std, count=min(part.count for part in parts))


def _pooled(parts: list[Statistics]) -> Statistics:
    """Return the statistics of all steps together: E[x^2] = std^2 + mean^2 adds up, weighted by the steps."""
    count = np.array([part.count for part in parts], np.float64)[:, None]
    means, stds = (np.array([getattr(part, name) for part in parts], np.float64) for name in ("mean", "std"))
    mean = (count * means).sum(0) / count.sum()
    std = np.sqrt(np.maximum((count * (stds**2 + means**2)).sum(0) / count.sum() - mean**2, 0.0))
    low = np.array([part.minimum for part in parts]).min(0)
    high = np.array([part.maximum for part in parts]).max(0)
    least, most, middle, spread = (tuple(part.tolist()) for part in (low, high, mean, std))
    return Statistics(least, most, middle, spread, count=int(count.sum()))
