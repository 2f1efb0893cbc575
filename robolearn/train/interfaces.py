"""What the supervised loop asks of a policy and of a dataset; it knows nothing else about either."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from robolearn.core.protocols import RandomSource
from robolearn.core.types import ActionChunk, Observation
from robolearn.data.dataset import Batch


@runtime_checkable
class TrainablePolicy(Protocol):
    """A ``torch.nn.Module`` that can be trained on batches of windows and can act."""

    def loss(self, batch: Batch, rng: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the scalar to minimise and named scalars to log, all on the batch's device, drawing only from ``rng``."""

    def card(self) -> dict[str, object]:
        """Return the JSON-serialisable description from which the policy can be built again, weights aside."""

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return actions for raw observations, as :class:`robolearn.core.protocols.Policy` says."""


@runtime_checkable
class WindowSource(Protocol):
    """Training windows that are addressed by number.

    A source may carry ``window_weights`` (windows,), by which windows are drawn; without it each is drawn once an epoch.
    """

    def __len__(self) -> int:
        """Return the number of windows."""

    def batch(self, indices: torch.Tensor) -> Batch:
        """Return the windows ``indices`` (b,) int64, in that order."""
