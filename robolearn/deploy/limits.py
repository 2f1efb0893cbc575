"""What a robot's commands must never exceed, in SI units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.core.types import Array, Spaces

type Bound = tuple[float | None, ...] | None
"""One value per command dimension; None, as a whole or for a dimension, means that no bound was asked for."""


@dataclass(frozen=True)
class SafetyLimits:
    """Bounds on the commands of one robot; positions are in command units (rad, m, ...), each optional per dimension."""

    dim: int
    """Command dimensions."""
    control_rate_hz: float
    """Commands per second; one call of the filter is one control period."""
    position_low: Bound = None
    """Lowest command."""
    position_high: Bound = None
    """Highest command."""
    position_margin: float = 0.0
    """Distance kept from both position bounds."""
    max_velocity: Bound = None
    """Per second."""
    max_acceleration: Bound = None
    """Per second squared."""
    max_jerk: Bound = None
    """Per second cubed."""
    max_relative_target: Bound = None
    """Largest distance of the target from the measured position; needs ``measured`` in every call.

    It bounds what is steered for: if the measurement jumps, the way there still obeys velocity, acceleration and jerk.
    """
    max_command_age_s: float | None = None
    """A command older than this, or from as far in the future, is not followed."""
    max_observation_age_s: float | None = None
    """As above, for the observation that the command was computed from."""
    rest_command: Bound = None
    """What replaces a refused command: 0 where commands are velocities or pose deltas; None holds the last safe command."""

    def __post_init__(self) -> None:
        if self.dim < 1 or not (np.isfinite(self.control_rate_hz) and self.control_rate_hz > 0):
            raise RefusedError(f"dim={self.dim} and control_rate_hz={self.control_rate_hz} must be positive.")
        for name in (
            "position_low",
            "position_high",
            "max_velocity",
            "max_acceleration",
            "max_jerk",
            "max_relative_target",
            "rest_command",
        ):
            self._check_bound(name)
        for name in ("max_command_age_s", "max_observation_age_s"):
            value = getattr(self, name)
            if value is not None and not (np.isfinite(value) and value > 0):
                raise RefusedError(f"{name}={value} must be positive.")
        if not (np.isfinite(self.position_margin) and self.position_margin >= 0):
            raise RefusedError(f"position_margin={self.position_margin} must be finite and not negative.")
        low, high = self.inner_bounds()
        if (low >= high).any():
            raise RefusedError(f"No position is left in dimensions {np.flatnonzero(low >= high).tolist()}: [{low}, {high}].")
        for index, value in enumerate(self.rest_command or ()):
            if value is not None and not low[index] <= value <= high[index]:
                raise RefusedError(f"rest_command[{index}]={value} must lie in [{low[index]}, {high[index]}].")

    @classmethod
    def from_spaces(cls, spaces: Spaces) -> SafetyLimits:
        """Return the limits of a simulated robot: finite commands inside the action bounds, no dynamics.

        An action element named like a measured one is a position, which is held; any other is a rate, which rests at 0.
        """
        measured = {name for feature in spaces.observation.values() for name in feature.names}
        names = spaces.action.names or ("",) * spaces.action_dim
        return cls(
            dim=spaces.action_dim,
            control_rate_hz=spaces.control_rate_hz,
            position_low=spaces.action_low,
            position_high=spaces.action_high,
            rest_command=tuple(None if name in measured else 0.0 for name in names),
        )

    @classmethod
    def from_robot(cls, spec: RobotSpec) -> SafetyLimits:
        """Return the limits of joint position commands [rad], followed by one dimension per gripper (-1 open, 1 closed).

        Velocity, acceleration and jerk are the maker's times :attr:`RobotSpec.speed_scale`.
        """
        extra = len(spec.grippers)
        speed = tuple(2 * g.max_velocity / abs(g.closed - g.open) for g in spec.grippers)
        margin, none = spec.position_margin, (None,) * extra

        def scaled(values: tuple[float, ...]) -> tuple[float | None, ...]:
            return tuple(spec.speed_scale * value for value in values)

        return cls(
            dim=spec.dim + extra,
            control_rate_hz=spec.control_rate_hz,
            position_low=tuple(low + margin for low in spec.position_low) + (-1.0,) * extra,
            position_high=tuple(high - margin for high in spec.position_high) + (1.0,) * extra,
            max_velocity=scaled(spec.max_velocity) + speed,
            max_acceleration=scaled(spec.max_acceleration) + none,
            max_jerk=scaled(spec.max_jerk) + none,
            max_relative_target=(spec.max_relative_target,) * spec.dim + none,
        )

    def inner_bounds(self) -> tuple[Array, Array]:
        """Return the position bounds (a,), (a,) with the margin taken off; infinite where there is none."""
        low = filled(self.position_low, self.dim, -np.inf) + self.position_margin
        high = filled(self.position_high, self.dim, np.inf) - self.position_margin
        return low, high

    def _check_bound(self, name: str) -> None:
        bound = getattr(self, name)
        if bound is None:
            return
        if len(bound) != self.dim:
            raise RefusedError(f"{name} must have {self.dim} entries, got {len(bound)}.")
        positive = name.startswith("max_")
        for index, value in enumerate(bound):
            if value is not None and (np.isnan(value) or (positive and value <= 0)):
                raise RefusedError(f"{name}[{index}]={value} must be {'positive' if positive else 'a number'} or None.")


def filled(bound: Bound, dim: int, missing: float) -> Array:
    """Return a bound as floats (a,), with ``missing`` where none was asked for."""
    return np.array([missing if value is None else value for value in (bound or (None,) * dim)], float)
