"""Held-out loss and action error of the acting weights: the same windows and the same noise every time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from robolearn.core.seeding import generator
from robolearn.core.types import ACTION
from robolearn.data.dataset import PAD_SUFFIX, Batch
from robolearn.train.config import TrainConfig
from robolearn.train.device import to_device
from robolearn.train.interfaces import WindowSource


class Validation:
    """A fixed sample of held-out windows, and how a policy is measured on it."""

    def __init__(self, windows: WindowSource, config: TrainConfig, device: torch.device) -> None:
        rng = generator(config.seed, "validation windows")
        self._rows = np.sort(rng.permutation(len(windows))[: config.validation_windows])
        # Every n-th of the sorted rows, so that the windows with generated actions come from all held-out episodes.
        errors = min(config.action_error_windows, len(self._rows))
        chosen = np.linspace(0, len(self._rows) - 1, errors).round().astype(int)
        self._error_rows = self._rows[chosen]
        self._windows = windows
        self._batch_size = config.batch_size
        self._seed = config.seed
        self._device = device

    @torch.no_grad()
    def measure(self, policy: Any) -> dict[str, float]:
        """Return ``validation/loss``, the policy's own metrics, and ``validation/action_error``.

        The action error is the mean absolute difference, in raw action units, between the predicted chunk and the demonstrated
        one, over steps that are not padding.
        """
        training = policy.training
        policy.eval()
        metrics = {f"validation/{name}": value for name, value in self._losses(policy).items()}
        if len(self._error_rows):
            metrics["validation/action_error"] = self._action_error(policy)
        policy.train(training)
        return metrics

    def _losses(self, policy: Any) -> dict[str, float]:
        rng = torch.Generator(self._device)
        rng.manual_seed(self._seed)
        totals: dict[str, torch.Tensor] = {}
        for batch, share in self._batches(self._rows):
            loss, metrics = policy.loss(batch, rng)
            for name, value in ({"loss": loss} | metrics).items():
                totals[name] = totals.get(name, 0) + share * value.detach().double()
        return {name: float(value) for name, value in totals.items()}

    def _action_error(self, policy: Any) -> float:
        rng = generator(self._seed, "validation noise")
        total, count = 0.0, 0
        for batch, _ in self._batches(self._error_rows):
            data = {name: value.cpu().numpy() for name, value in batch.items()}
            observation = {k: v for k, v in data.items() if k.startswith("observation.") and not k.endswith(PAD_SUFFIX)}
            difference = np.abs(policy.predict(observation, rng).actions - data[ACTION])[~data[ACTION + PAD_SUFFIX]]
            total, count = total + float(difference.sum(dtype=np.float64)), count + difference.size
        return total / max(1, count)

    def _batches(self, rows: np.ndarray) -> Iterator[tuple[Batch, float]]:
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            yield to_device(self._windows.batch(torch.from_numpy(part)), self._device), len(part) / len(rows)
