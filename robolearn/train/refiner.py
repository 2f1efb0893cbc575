"""What the online loop asks of a refinement method: how it explores, what it deploys, and from what it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from robolearn.data.replay_buffer import ReplayBatch
from robolearn.train.lanes import Outcome


@dataclass(frozen=True)
class Phase:
    """What is learned at the moment."""

    actor: bool
    """Whether the actor moves; False while only the critics learn."""
    reach: float = 1.0
    """Share of its bound that the actor may use, in [0, 1]."""


class Refiner(Protocol):
    """One refinement method. It is a :class:`ReplayRefiner`, an :class:`ObservingRefiner`, or both."""

    plan_steps: int
    """Steps of the plan that each outcome records."""
    latent_size: int
    """Elements of the latent noise that each outcome records; 0 records none."""
    ramps: bool
    """Whether :attr:`Phase.reach` changes anything: a method without a reach cannot let it grow."""

    def behaviour(self) -> Any:
        """Return the policy that explores: a CorrectingPolicy that leaves what is recorded of every row in ``noted``."""

    def policy(self) -> Any:
        """Return the refined policy that is evaluated, saved and deployed: a torch module.

        Where it has a buffer ``reach``, the loop keeps :attr:`Phase.reach` in it.
        """

    def tensors(self) -> Mapping[str, Tensor]:
        """Return all that resuming needs besides :meth:`policy`."""

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""


@runtime_checkable
class ReplayRefiner(Refiner, Protocol):
    """A method that learns from batches of replay, ``utd_ratio`` updates per control step."""

    window_steps: int
    """Control steps of a window of replay."""
    discount: float
    """Per control step."""

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one update and return metrics, scalars on the device. ``loss`` must be among them."""


@runtime_checkable
class ObservingRefiner(Refiner, Protocol):
    """A method that keeps a memory of its own (searches, on-policy and supervised methods).

    Replay is allocated only for a :class:`ReplayRefiner`. One that is both returns no metrics from :meth:`observe`.
    """

    def observe(self, outcome: Outcome, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Take in one control step of all lanes, in order, and learn when the time has come.

        Returns:
            Metrics, scalars on the device; none where nothing was learned from this step.
        """
