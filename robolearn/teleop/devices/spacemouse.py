"""A SpaceMouse through pyspacemouse; the left button opens and closes the gripper, the right one takes over or lets go."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.teleop.device import Wish

_DEADBAND = 0.08
_READS = 64
"""Reports read at once: the newest counts, and old ones must not queue up."""


class SpaceMouse:
    """The cap is the clutch: it comes back to its centre by itself, where nothing is wished."""

    name = "spacemouse"

    def __init__(self, device: Any = None) -> None:
        """Open the first SpaceMouse.

        Args:
            device: an open one, with pyspacemouse's ``read()``; found by pyspacemouse if None.

        Raises:
            RefusedError: pyspacemouse or its HID library is not installed, or no SpaceMouse is plugged in.
        """
        self._device = _open() if device is None else device
        self._pressed: tuple[bool, ...] = ()
        self._human = False
        self._commands: list[str] = []
        self._lost = False

    def poll(self) -> Wish | None:
        """See :class:`robolearn.teleop.device.Device`."""
        if self._lost:
            return None
        try:
            state, seen = self._device.read(), None
            for _ in range(_READS):
                if state is None or state.t == seen:
                    break
                seen, state = state.t, self._device.read()
        except Exception as error:  # the HID library raises its own kind on every system
            self._lost = True
            raise RefusedError(f"The SpaceMouse is gone: {error}") from error
        if state is None:
            return None
        self._press(tuple(bool(b) for b in state.buttons))
        # pyspacemouse: x right, y away, z up; the operator's frame: x away, y left.
        twist = np.array([state.y, -state.x, state.z, state.roll, state.pitch, -state.yaw], float)
        twist[np.abs(twist) < _DEADBAND] = 0.0
        return Wish(time.monotonic(), twist, engaged=bool(twist.any()))

    def _press(self, buttons: tuple[bool, ...]) -> None:
        before = self._pressed + (False,) * (len(buttons) - len(self._pressed))
        down = [now and not was for now, was in zip(buttons, before, strict=False)]
        self._pressed = buttons
        if down and down[0]:
            self._commands.append("gripper")
        if len(down) > 1 and down[-1]:
            self._human = not self._human
            self._commands.append("takeover" if self._human else "release")

    def commands(self) -> list[str]:
        """See :class:`robolearn.teleop.device.Device`."""
        given, self._commands = self._commands, []
        return given

    def close(self) -> None:
        """Let go of the device."""
        self._device.close()


def _open() -> Any:
    try:
        import pyspacemouse
    except ImportError as error:
        raise RefusedError("This device needs pyspacemouse: pip install -e '.[teleop]'.") from error
    except Exception as error:
        raise RefusedError(f"pyspacemouse found no HID library ({error}): apt install libhidapi-hidraw0.") from error
    try:
        return pyspacemouse.open()
    except Exception as error:
        raise RefusedError(
            f"No SpaceMouse can be opened ({error}); is it plugged in, and may you read it (udev rule)?"
        ) from error
