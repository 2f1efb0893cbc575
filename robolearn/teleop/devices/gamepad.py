"""A gamepad through pygame: left stick moves in the plane, right stick up and about the vertical, bumpers are the clutch."""

from __future__ import annotations

import os
import time

import numpy as np

from robolearn.teleop.device import Wish
from robolearn.teleop.devices.keyboard import load_pygame

_DEADBAND = 0.12
"""Deflection that counts as none: sticks do not come back to zero exactly."""
_BUTTONS = {0: "gripper", 1: "failure", 2: "undo", 3: "success", 6: "discard", 7: "start", 8: "takeover", 9: "release"}
"""Button of the Xbox layout -> command: A, B, X, Y, back, start, left and right stick."""
_CLUTCH = (4, 5)
"""Bumpers; either has to be held for motion."""
_HAT = {0: 3, 1: 4}
"""Axis of the cross -> element of the twist: roll and pitch."""


class Gamepad:
    """The first gamepad that is plugged in, by its events; a gamepad that is pulled out wishes nothing any more."""

    name = "gamepad"

    def __init__(self) -> None:
        """Start listening; a gamepad may be plugged in later.

        Raises:
            RefusedError: there is no pygame.
        """
        os.environ.setdefault("SDL_JOYSTICK_ALLOW_BACKGROUND_EVENTS", "1")
        if "DISPLAY" not in os.environ and "WAYLAND_DISPLAY" not in os.environ and os.name == "posix":
            os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # events need a video system, a gamepad needs no window
        self._pygame = pygame = load_pygame()
        pygame.display.init()
        pygame.joystick.init()
        self._sticks = {s.get_instance_id(): s for s in map(pygame.joystick.Joystick, range(pygame.joystick.get_count()))}
        self._active = next(iter(self._sticks), None)
        self._axes: dict[int, float] = {}
        self._hat: tuple[float, ...] = (0.0, 0.0)
        self._held: set[int] = set()
        self._commands: list[str] = []

    def poll(self) -> Wish | None:
        """See :class:`robolearn.teleop.device.Device`."""
        pygame = self._pygame
        for event in pygame.event.get((pygame.JOYDEVICEADDED, pygame.JOYDEVICEREMOVED)):
            if event.type == pygame.JOYDEVICEADDED:
                stick = pygame.joystick.Joystick(event.device_index)
                self._sticks[stick.get_instance_id()] = stick
                self._active = stick.get_instance_id() if self._active is None else self._active
            else:
                self._sticks.pop(event.instance_id, None)
                if event.instance_id == self._active:
                    self._active = next(iter(self._sticks), None)
                    self._let_go()
        kinds = (pygame.JOYAXISMOTION, pygame.JOYHATMOTION, pygame.JOYBUTTONDOWN, pygame.JOYBUTTONUP)
        for event in pygame.event.get(kinds):
            if self._active is None:
                self._active = event.instance_id
            if event.instance_id == self._active:
                self._take(event)
        if self._active is None:
            return None
        sticks = [self._axes.get(n, 0.0) for n in range(4)]
        # pygame: right and down are positive. The operator's frame: away, left and up are.
        planar, yaw, up = (-sticks[1], -sticks[0]), -sticks[2], -sticks[3]
        twist = np.array([*planar, up, self._hat[0], self._hat[1], yaw])
        twist[np.abs(twist) < _DEADBAND] = 0.0
        return Wish(time.monotonic(), twist, engaged=bool(self._held & set(_CLUTCH)))

    def _take(self, event: object) -> None:
        pygame, kind = self._pygame, event.type  # type: ignore[attr-defined]
        if kind == pygame.JOYAXISMOTION:
            # Axes 2 and 5 are the triggers on Linux; what remains is left x, left y, right x, right y.
            place = {0: 0, 1: 1, 3: 2, 4: 3}.get(event.axis)  # type: ignore[attr-defined]
            if place is not None:
                self._axes[place] = float(event.value)  # type: ignore[attr-defined]
        elif kind == pygame.JOYHATMOTION:
            self._hat = tuple(float(v) for v in event.value)  # type: ignore[attr-defined]
        elif kind == pygame.JOYBUTTONDOWN:
            self._press(int(event.button))  # type: ignore[attr-defined]
        else:
            self._held.discard(int(event.button))  # type: ignore[attr-defined]

    def _press(self, button: int) -> None:
        self._held.add(button)
        if button in _BUTTONS:
            self._commands.append(_BUTTONS[button])

    def _let_go(self) -> None:
        self._axes.clear()
        self._held.clear()
        self._hat = (0.0, 0.0)

    def commands(self) -> list[str]:
        """See :class:`robolearn.teleop.device.Device`."""
        given, self._commands = self._commands, []
        return given

    def close(self) -> None:
        """Stop listening."""
        self._pygame.joystick.quit()
