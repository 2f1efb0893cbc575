"""What a command gate is told to watch, the states it can be in, and what it returns; the gate itself is in ``gate.py``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.core.types import Array

JOINT_STATES = "joint_states"
"""The stream that :meth:`CommandGate.on_measured` feeds."""


class GateState(StrEnum):
    """See the diagram in ``gate.py``."""

    LATCHED = "latched"
    READY = "ready"
    RUNNING = "running"
    STOPPING = "stopping"
    HOLDING = "holding"


@dataclass(frozen=True)
class GateConfig:
    """What the gate waits for, and for how long."""

    policy_timeout_s: float = 0.25
    """The active source may be silent (neither chunk nor heartbeat) for this long; then ramp down and hold."""
    chunk_timeout_s: float = 1.0
    """The active source may be alive without a new chunk for this long; then ramp down and hold."""
    max_command_age_s: float = 0.5
    """A chunk whose observation is older than this is refused."""
    stream_timeouts_s: Mapping[str, float] = field(default_factory=lambda: {JOINT_STATES: 0.1})
    """Stream -> how old its newest observation may be; every stream named here is watched."""
    estop_timeout_s: float | None = 0.5
    """The e-stop's publisher may be silent for this long; None where there is no such publisher."""
    resume_window_s: float = 1.0
    """How long a hold after a soft fault waits for a fresh chunk before it latches."""
    start_tolerance: float = 0.2
    """Largest distance between the first target of a run and the present command [rad]; positions only."""
    max_tracking_error: float | None = None
    """Distance of the measured position from the command at which the gate latches [rad].

    None takes the robot's own (:attr:`robolearn.core.robot.RobotSpec.max_tracking_error`) in ``CommandGate.for_robot``.
    """
    max_tick_gap_s: float = 0.1
    """A control loop that was away for longer begins again from rest."""
    future_tolerance_s: float = 0.02
    """How far ahead of the gate's clock a stamp may be."""
    novelty_stop: float = 2.0
    """Novelty (score / threshold) at which the gate stops; between 1 and this it slows down linearly."""
    sources: tuple[str, ...] = ("policy", "teleop")
    """Who may command; a later one takes over from an earlier one, which waits until the later one is silent."""
    weight_ramp_s: float = 3.0
    """Time in which :attr:`Command.weight` goes from 0 to 1 and back."""
    blends: bool = False
    """Whether the driver blends by :attr:`Command.weight` (arm_sdk): then disarming ramps it out before silence, too."""

    def __post_init__(self) -> None:
        numbers = {name: value for name, value in vars(self).items() if type(value) in (float, int)}
        numbers |= {f"stream_timeouts_s[{name}]": value for name, value in self.stream_timeouts_s.items()}
        for name, value in numbers.items():
            if not (np.isfinite(value) and value > 0):
                raise RefusedError(f"{name}={value} must be positive and finite.")
        if self.novelty_stop <= 1 or not self.sources:
            raise RefusedError(f"novelty_stop={self.novelty_stop} must exceed 1, and sources={self.sources} name someone.")

    def for_robot(self, spec: RobotSpec) -> GateConfig:
        """Return it with the robot's own tracking error where none is given.

        Raises:
            RefusedError: the tracking error is so large that it would never be seen.
        """
        error = spec.max_tracking_error if self.max_tracking_error is None else self.max_tracking_error
        if error >= spec.max_relative_target:
            raise RefusedError(
                f"max_tracking_error={error} would never be reached, because commands stay within {spec.max_relative_target} of "
                f"the measured position of {spec.name}."
            )
        return replace(self, max_tracking_error=error)


class RateGuard(Protocol):
    """Keeps a robot that is commanded by rates in its workspace, by what it measures."""

    def on_measured(self, position: Array, *, stamp_s: float) -> None:
        """Take measured joint positions (n,) [rad]."""

    def limit(self, rates: Array) -> tuple[Array, str]:
        """Return rates (a,) that lead no farther out, and why the robot must stop, or ""."""


@dataclass(frozen=True)
class Command:
    """What to send for the present control period."""

    position: Array
    """(a,) joint positions [rad] then grippers [-1, 1], or the rates of a gate for rates; NaN before the first reset."""
    velocity: Array
    """(a,) change per second since the last command; zero for rates."""
    error: Array
    """(a,) command minus measurement while running, else zero: what an output of velocities has to make up for."""
    send: bool
    """Whether to put it on the wire: armed, reset since, and the robot is where the command holds it."""
    state: GateState
    """State after this tick."""
    reason: str
    """Why it latched, stops or holds; empty when running."""
    epoch: int
    """Counts the sequences of commands: each begins at rest at the measured position (or where the last one ended)."""
    weight: float
    """Blend weight of arm_sdk in [0, 1]: ramps in after a reset, out after :meth:`CommandGate.release` (and disarming)."""
