"""LeRobot's teleoperators: gamepads and keyboards that wish motions, and leader arms whose joints are followed."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.teleop.device import Wish

_DELTAS = ("delta_x", "delta_y", "delta_z")
_JOINT = ".pos"
_GRIPPER_CLOSE, _GRIPPER_OPEN = 0, 2
"""lerobot.teleoperators.gamepad.GripperAction (0.6.1); 1 leaves the gripper as it is."""


class LeRobotTeleoperator:
    """Any connected :class:`lerobot.teleoperators.Teleoperator` whose action is deltas of a hand or positions of joints.

    It is read in the session's thread, so a slow one slows the loop down, and the health line shows it.
    """

    def __init__(self, teleoperator: Any, *, joints: Mapping[str, str] | None = None) -> None:
        """Connect it.

        Args:
            teleoperator: of LeRobot.
            joints: the leader's joint -> the robot's joint that follows it, "" for none; joints of the same name by default.

        Raises:
            RefusedError: it cannot be connected or read. LeRobot's gamepad connects where none is plugged in.
        """
        self._teleoperator, self._joints = teleoperator, dict(joints or {})
        self.name = f"lerobot {teleoperator.name}"
        self._gripper: float | None = None
        try:
            if not teleoperator.is_connected:
                teleoperator.connect()
        except Exception as error:
            raise RefusedError(f"LeRobot's {teleoperator.name} cannot be connected: {error}") from error
        try:
            self._read()
        except RefusedError:
            self.close()
            raise

    def _read(self) -> Mapping[str, Any]:
        try:
            action: Mapping[str, Any] = self._teleoperator.get_action()
        except Exception as error:
            name, why = self._teleoperator.name, f"{type(error).__name__}: {error}"
            raise RefusedError(f"LeRobot's {name} cannot be read ({why}); is it plugged in?") from error
        return action

    def poll(self) -> Wish | None:
        """See :class:`robolearn.teleop.device.Device`.

        Raises:
            RefusedError: it cannot be read, or answers with something that is neither motion nor joints.
        """
        if not self._teleoperator.is_connected:
            return None
        action = self._read()
        now = time.monotonic()
        if all(name in action for name in _DELTAS):
            return self._motion(action, now)
        joints = {k.removesuffix(_JOINT): float(v) for k, v in action.items() if k.endswith(_JOINT)}
        if joints:
            gripper = joints.pop("gripper", None)
            # Leader arms count degrees, and the gripper from 0 (closed) to 100.
            named = {self._joints.get(name, name): math.radians(value) for name, value in joints.items()}
            wanted = {name: value for name, value in named.items() if name}
            closing = None if gripper is None else float(np.clip(1 - gripper / 50, -1, 1))
            return Wish(now, gripper=closing, engaged=True, joints=wanted)
        raise RefusedError(f"LeRobot's {self._teleoperator.name} gives {sorted(action)}; deltas {_DELTAS} or joints are needed.")

    def _motion(self, action: Mapping[str, Any], now: float) -> Wish:
        # LeRobot's deltas are in the robot's axes: x away, y left, z up seen from behind it.
        twist = np.array([*(float(action[name]) for name in _DELTAS), 0.0, 0.0, 0.0])
        gripper = action.get("gripper")
        if gripper == _GRIPPER_CLOSE:
            self._gripper = 1.0
        elif gripper == _GRIPPER_OPEN:
            self._gripper = -1.0
        return Wish(now, twist, self._gripper, engaged=bool(twist.any()))

    def commands(self) -> list[str]:
        """See :class:`robolearn.teleop.device.Device`."""
        return []

    def close(self) -> None:
        """Disconnect it."""
        if self._teleoperator.is_connected:
            self._teleoperator.disconnect()


def make_teleoperator(kind: str, settings: Mapping[str, Any]) -> Any:
    """Return LeRobot's teleoperator of a kind, not connected.

    Args:
        kind: as LeRobot calls it: ``gamepad``, ``keyboard_ee``, ``so101_leader``, ...
        settings: fields of its configuration, such as ``port``.

    Raises:
        RefusedError: LeRobot knows no such kind, or the settings do not fit.
    """
    try:
        from lerobot.teleoperators import TeleoperatorConfig, make_teleoperator_from_config
    except ImportError as error:
        raise RefusedError(f"LeRobot's teleoperators cannot be imported: {error}") from error
    import importlib
    import pkgutil

    import lerobot.teleoperators as package

    # A configuration registers its name when its package is imported; those whose drivers are missing are not offered.
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            try:
                importlib.import_module(f"lerobot.teleoperators.{module.name}")
            except ImportError:
                continue
    try:
        config = TeleoperatorConfig.get_choice_class(kind)(**dict(settings))
        return make_teleoperator_from_config(config)
    except KeyError as error:
        known = ", ".join(sorted(TeleoperatorConfig.get_known_choices()))
        raise RefusedError(f"LeRobot knows no teleoperator {kind!r} here. Allowed: {known}.") from error
    except Exception as error:
        raise RefusedError(f"LeRobot's teleoperator {kind!r} cannot be made with {dict(settings)}: {error}") from error
