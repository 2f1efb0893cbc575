"""Which key does what, for every keyboard: a window's and the page's."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from robolearn.core.types import Array

MOTION = {
    "w": (0, 1.0),
    "s": (0, -1.0),
    "a": (1, 1.0),
    "d": (1, -1.0),
    "r": (2, 1.0),
    "f": (2, -1.0),
    "j": (3, -1.0),
    "l": (3, 1.0),
    "i": (4, 1.0),
    "k": (4, -1.0),
    "q": (5, 1.0),
    "e": (5, -1.0),
}
"""Key -> element of the twist and its sign: away, back, left, right, up, down; roll, pitch, yaw."""
COMMANDS = {
    "space": "gripper",
    "return": "start",
    "1": "success",
    "0": "failure",
    "backspace": "discard",
    "z": "undo",
    "p": "pause",
    "x": "stop",
    "t": "takeover",
    "y": "release",
    "tab": "arm",
}
"""Key -> command."""
SLOW = "shift"
"""Key that slows motion down while held."""
SLOW_FACTOR = 0.3
"""Part of the speed while that is held."""


def twist_of(held: Collection[str]) -> Array:
    """Return the twist (6,) of the keys that are held down."""
    twist = np.zeros(6)
    for key in held:
        if key in MOTION:
            element, sign = MOTION[key]
            twist[element] += sign
    return np.clip(twist, -1, 1) * (SLOW_FACTOR if SLOW in held else 1.0)
