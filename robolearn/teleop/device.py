"""What an input device gives: a wish for motion, and commands to the session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array

COMMANDS = (
    "start",
    "success",
    "failure",
    "stop",
    "discard",
    "rerecord",
    "undo",
    "pause",
    "takeover",
    "release",
    "gripper",
    "arm",
    "quit",
)
"""What can be asked of a session.

``gripper`` opens or closes it, ``arm`` chooses the next arm, ``rerecord`` discards and starts from the same initial state.
"""


@dataclass(frozen=True)
class Wish:
    """Where a person wants the hand to go, in the operator's frame: x away from the operator, y left, z up.

    Raises:
        RefusedError: a number is not finite or a shape is wrong.
    """

    stamp_s: float
    """When the device said so, on the monotonic clock [s]."""
    twist: Array = field(default_factory=lambda: np.zeros(6))
    """(6,) linear and angular velocity as parts of full speed, in [-1, 1]."""
    gripper: float | None = None
    """-1 open, 1 closed; None leaves it as it is."""
    engaged: bool = False
    """Whether the clutch is held: nothing moves without it."""
    joints: Mapping[str, float] | None = None
    """A leader arm's joint positions [rad] by name; they are followed relative to where the clutch was closed."""

    def __post_init__(self) -> None:
        twist = np.asarray(self.twist, float)
        if twist.shape != (6,) or not np.isfinite(twist).all():
            raise RefusedError(f"A wish needs 6 finite numbers for its twist, got {np.asarray(self.twist).tolist()}.")
        if self.gripper is not None and not -1 <= self.gripper <= 1:
            raise RefusedError(f"A wish's gripper must lie in [-1, 1], got {self.gripper}.")
        if self.joints is not None and not np.isfinite(list(self.joints.values())).all():
            raise RefusedError(f"A wish's joints must be finite, got {dict(self.joints)}.")
        object.__setattr__(self, "twist", np.clip(twist, -1.0, 1.0))


class Device(Protocol):
    """One input device. It is polled at the control rate from the session's thread and must not block."""

    name: str

    def poll(self) -> Wish | None:
        """Return the newest wish, or None where the device has been silent or is gone."""

    def commands(self) -> list[str]:
        """Return the commands given since the last call; entries of :data:`COMMANDS`."""

    def close(self) -> None:
        """Let go of the device."""


def check_command(command: str) -> str:
    """Return a command that exists.

    Raises:
        RefusedError: it does not.
    """
    if command not in COMMANDS:
        raise RefusedError(f"Command {command!r} is unknown. {nearest(command, COMMANDS)}")
    return command
