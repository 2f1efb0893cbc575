"""The keyboard of this computer, through a small window of pygame's (a terminal does not tell when a key is let go)."""

from __future__ import annotations

import os
import time
import warnings
from types import ModuleType

from robolearn.core.errors import RefusedError
from robolearn.teleop.device import Wish
from robolearn.teleop.devices import keys

_HELP = (
    "W S A D  move    R F  up, down    Q E  turn    J L I K  tilt",
    "space  gripper    shift  slow    return  start    1 success  0 failure",
    "backspace  discard    Z  undo    P  pause    X  stop    T  take over    Y  let the policy drive",
)


def load_pygame() -> ModuleType:
    """Import pygame quietly.

    Raises:
        RefusedError: it is not installed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        with warnings.catch_warnings(action="ignore"):  # pygame's own, of how it finds its files
            import pygame
    except ImportError as error:
        raise RefusedError("This device needs pygame: pip install -e '.[teleop]'.") from error
    return pygame


class Keyboard:
    """Keys of a focused window; losing the focus lets go of everything."""

    name = "keyboard"

    def __init__(self) -> None:
        """Open the window.

        Raises:
            RefusedError: there is no pygame or no display.
        """
        self._pygame = pygame = load_pygame()
        try:
            pygame.display.init()
            pygame.font.init()
            screen = pygame.display.set_mode((760, 120))
        except pygame.error as error:
            raise RefusedError(f"No window can be opened here ({error}); use --device web, which needs none.") from error
        pygame.display.set_caption("robolearn teleop: keep this window focused")
        screen.fill((24, 28, 34))
        font = pygame.font.Font(None, 26)
        for row, line in enumerate(_HELP):
            screen.blit(font.render(line, True, (220, 226, 232)), (16, 16 + 32 * row))
        pygame.display.flip()
        self._held: set[str] = set()
        self._commands: list[str] = []

    def poll(self) -> Wish | None:
        """See :class:`robolearn.teleop.device.Device`."""
        pygame = self._pygame
        for event in pygame.event.get():
            if event.type == pygame.KEYDOWN:
                self._press(_key_name(pygame, event.key))
            elif event.type == pygame.KEYUP:
                self._held.discard(_key_name(pygame, event.key))
            elif event.type == pygame.WINDOWFOCUSLOST:
                self._held.clear()
            elif event.type == pygame.QUIT:
                self._commands.append("quit")
        twist = keys.twist_of(self._held)
        return Wish(time.monotonic(), twist, engaged=bool(twist.any()))

    def _press(self, key: str) -> None:
        if key in keys.COMMANDS:
            self._commands.append(keys.COMMANDS[key])
        else:
            self._held.add(key)

    def commands(self) -> list[str]:
        """See :class:`robolearn.teleop.device.Device`."""
        given, self._commands = self._commands, []
        return given

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()


def _key_name(pygame: ModuleType, key: int) -> str:
    name: str = pygame.key.name(key)
    return "shift" if name in ("left shift", "right shift") else name
