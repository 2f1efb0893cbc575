"""From a person's wish to actions of robots that are commanded by pose deltas (OSC)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE, Array, Observation, Spaces
from robolearn.teleop.device import Wish

STOP_WITHIN_S = 0.1
"""Motion ends within this time after the device or page has gone."""
_TWIST = ("dx", "dy", "dz", "drx", "dry", "drz")


@dataclass(frozen=True)
class MotionConfig:
    """How wishes become motion."""

    linear_speed_m_s: float = 0.3
    """Full deflection [m/s]."""
    angular_speed_rad_s: float = 1.2
    """Full deflection [rad/s]."""
    view_yaw_deg: float = 180.0
    """Which way the operator looks, about the vertical: 0 along the world's x axis (behind the robot), 180 facing the robot."""
    workspace_low: tuple[float, ...] = ()
    """Lowest x, y, z of the hand in the observation's frame [m]; empty: ``workspace_reach_m`` about where it starts."""
    workspace_high: tuple[float, ...] = ()
    """Highest x, y, z [m]."""
    workspace_reach_m: float = 0.45
    """Half size of the box where none is given [m]."""
    timeout_s: float = 0.0
    """Age at which a wish no longer counts [s]; 0 takes what is left of 0.1 s after one control period."""

    def __post_init__(self) -> None:
        for name in ("linear_speed_m_s", "angular_speed_rad_s", "workspace_reach_m"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise RefusedError(f"{name}={getattr(self, name)} must be positive and finite.")
        # A wish of any age is younger than not-a-number: motion would go on for ever after its device has gone.
        if not (math.isfinite(self.timeout_s) and self.timeout_s >= 0):
            raise RefusedError(f"timeout_s={self.timeout_s} must be finite and not negative.")
        if not math.isfinite(self.view_yaw_deg):
            raise RefusedError(f"view_yaw_deg={self.view_yaw_deg} must be finite.")
        low, high = self.workspace_low, self.workspace_high
        if len(low) != len(high) or len(low) not in (0, 3) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise RefusedError(f"The workspace box needs low < high in x, y and z, got {low} and {high}.")

    def allowed_age_s(self, control_rate_hz: float) -> float:
        """Return how old a wish may be: what it begins lasts one more control period and ends within 0.1 s.

        Raises:
            RefusedError: the rate or the timeout cannot keep that.
        """
        left = STOP_WITHIN_S - 1 / control_rate_hz
        if left <= 0:
            raise RefusedError(f"At {control_rate_hz:g} Hz motion cannot end within {STOP_WITHIN_S} s of the device's last word.")
        if self.timeout_s > left:
            raise RefusedError(
                f"timeout_s={self.timeout_s} is too long: with {control_rate_hz:g} Hz at most {left:.3f} s are left."
            )
        return self.timeout_s or left


@dataclass(frozen=True)
class Command:
    """What a wish amounts to in one control step."""

    action: Array
    """(a,) float32, as the person wants it."""
    sent: Array
    """(a,) float32, inside of the workspace and of the action's bounds."""


class Motion(Protocol):
    """Turns wishes into actions of one kind of robot."""

    arms: tuple[str, ...]
    """Names of the arms that can be moved, one at a time."""

    def reset(self, observation: Observation) -> None:
        """Begin an episode at an observation without a batch axis."""

    def act(self, observation: Observation, wish: Wish | None, arm: int) -> Command:
        """Return the action of one control step; without an engaged wish the robot stays where it is."""

    def toggle_gripper(self, arm: int) -> None:
        """Open what is closed and close what is open."""


def world_twist(wish: Wish, config: MotionConfig) -> Array:
    """Return (6,) the wished velocity [m/s, rad/s] in world axes."""
    yaw = math.radians(config.view_yaw_deg)
    rotation = np.array([[math.cos(yaw), -math.sin(yaw), 0.0], [math.sin(yaw), math.cos(yaw), 0.0], [0.0, 0.0, 1.0]])
    linear = config.linear_speed_m_s * rotation @ wish.twist[:3]
    return np.concatenate([linear, config.angular_speed_rad_s * rotation @ wish.twist[3:]])


def workspace_box(config: MotionConfig, start: Array) -> tuple[Array, Array]:
    """Return the low and high corner (3,) of the box for a hand that starts at ``start`` (3,) [m]."""
    if config.workspace_low:
        return np.array(config.workspace_low), np.array(config.workspace_high)
    return start - config.workspace_reach_m, start + config.workspace_reach_m


class PoseDelta:
    """Actions ``dx dy dz drx dry drz gripper`` per arm: the wish's velocity over one control period, in the action's units."""

    def __init__(self, spaces: Spaces, config: MotionConfig, *, metres: float, radians: float) -> None:
        """Find the arms by the names of the actions and of the hands' positions.

        Args:
            spaces: of a robot that takes pose deltas.
            config: speeds and box.
            metres: how far an action of 1 goes [m].
            radians: how far an action of 1 turns [rad].

        Raises:
            RefusedError: the names are not those of such a robot.
        """
        names = spaces.action.names
        self._prefixes = [name.removesuffix("dx") for name in names if name.endswith("dx")]
        wanted = tuple(f"{p}{part}" for p in self._prefixes for part in (*_TWIST, "gripper"))
        state = spaces.observation[STATE].names if STATE in spaces.observation else ()
        missing = [f"{p}eef_pos_{axis}" for p in self._prefixes for axis in "xyz" if f"{p}eef_pos_{axis}" not in state]
        if not self._prefixes or names != wanted or missing:
            raise RefusedError(f"{spaces.robot!r} takes {names}, not pose deltas {wanted or _TWIST}; its state lacks {missing}.")
        self._config, self._dim = config, len(names)
        self._unit = np.repeat([metres, radians], 3) * spaces.control_rate_hz
        self._low, self._high = np.array(spaces.action_low), np.array(spaces.action_high)
        self._metres = metres
        self._hand = [[state.index(f"{p}eef_pos_{axis}") for axis in "xyz"] for p in self._prefixes]
        self.arms = tuple(p.strip("_") or spaces.robot for p in self._prefixes)
        self._gripper = np.full(len(self.arms), -1.0)
        self._boxes: list[tuple[Array, Array]] = []

    def reset(self, observation: Observation) -> None:
        """See :class:`Motion`."""
        self._gripper[:] = -1.0
        self._boxes = [workspace_box(self._config, observation[STATE][hand].astype(float)) for hand in self._hand]

    def act(self, observation: Observation, wish: Wish | None, arm: int) -> Command:
        """See :class:`Motion`."""
        action = np.zeros((len(self.arms), 7))
        if wish is not None and wish.engaged:
            action[arm, :6] = world_twist(wish, self._config) / self._unit
        if wish is not None and wish.gripper is not None:
            self._gripper[arm] = wish.gripper
        action[:, 6] = self._gripper
        moved = action.copy()
        for row, (hand, (low, high)) in enumerate(zip(self._hand, self._boxes, strict=True)):
            here = observation[STATE][hand].astype(float)
            room = np.clip(here + self._metres * moved[row, :3], np.minimum(low, here), np.maximum(high, here)) - here
            moved[row, :3] = room / self._metres
        sent = np.clip(moved.reshape(self._dim), self._low, self._high)
        return Command(action.reshape(self._dim).astype(np.float32), sent.astype(np.float32))

    def toggle_gripper(self, arm: int) -> None:
        """See :class:`Motion`."""
        self._gripper[arm] = -1.0 if self._gripper[arm] > 0 else 1.0
