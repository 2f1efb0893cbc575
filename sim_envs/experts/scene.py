"""What a phase of a scripted expert is given and what it returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from robolearn.core.types import Array

OPEN, CLOSED = -1.0, 1.0
"""Gripper action that opens and that closes it."""
MISJUDGEMENTS = 6
"""Attempts of an episode that are misjudged independently; later ones repeat the last."""


@dataclass(frozen=True)
class Scene:
    """What ``n`` environments that are in the same phase see and remember; two-armed robots have a second axis of arms."""

    eef_pos: Array
    """(n, 3) or (n, arms, 3) grip site [m], world frame."""
    eef_rot: Array
    """(n, 3, 3) or (n, arms, 3, 3); column 0 is the axis along which the fingers open, column 2 points out of the hand."""
    joint_position: Array
    """(n, 7 arms) [rad]."""
    object_pos: Array
    """(n, objects, 3) world positions [m] of the task's objects, in the order of ``observation.environment_state``."""
    object_rot: Array
    """(n, objects, 3, 3) world orientations."""
    scalars: Array
    """(n, scalars) numbers that follow the objects."""
    anchor: Array
    """Grip site at the moment this phase began; shaped as ``eef_pos``."""
    timer: Array
    """(n,) control steps since this phase began."""
    memory: np.ndarray
    """(n,) records: the style of each episode."""
    flaw: float
    """1 - quality, in [0, 1]."""

    def misjudge(self, which: int) -> Array:
        """Return (n, 3) normal misjudgement, standard deviation ``flaw``, of this attempt: 0 of picking, 1 of placing."""
        attempt = np.minimum(self.memory["attempt"], MISJUDGEMENTS - 1)
        return self.flaw * self.memory["misjudge"][np.arange(len(attempt)), attempt, which]

    def gives_up(self) -> Array:
        """(n,) bool: this demonstrator does not try again after a failed attempt."""
        return self.memory["attempt"] >= self.memory["patience"]


class Command(NamedTuple):
    """What a phase asks for in one control step."""

    position: Array
    """Where the grip site should go, world frame [m]; shaped as ``Scene.eef_pos``."""
    rotation: Array
    """How the hand should be turned; shaped as ``Scene.eef_rot``."""
    gripper: float
    next: Array
    """(n,) phase of the next control step; going back to phase 0 starts a new attempt."""
    contact: bool | Array = False
    """Whether, or (n,) where, precision matters: the deliberate noise is three times smaller."""
    speed: float | Array = 1.0
    """Fraction of the episode's own speed limit, or (n,) fractions."""


type Phase = Callable[[Scene], Command]
