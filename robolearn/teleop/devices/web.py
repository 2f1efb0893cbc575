"""The web page as a device: what the page last wished, and how long it took until the session had it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from robolearn.core.errors import RefusedError
from robolearn.teleop.device import Wish, check_command


class WebDevice:
    """Filled by the server's thread, polled by the session's; one page at a time is in control."""

    name = "web page"

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wish: Wish | None = None
        self._facts: dict[str, float] = {}
        self._commands: list[str] = []
        self._fresh = False
        self._waiting_since = 0.0
        self.owner: int | None = None
        """The connection that is in control."""
        self.latency_ms: deque[float] = deque(maxlen=400)
        """Input to command of the last wishes [ms]: half of the page's round trip and the wait for the control step."""
        self.input_ms: deque[tuple[float, float]] = deque(maxlen=2000)
        """(input, received) to command [ms] of the last wishes, by the page's own clock: true where both run on one machine."""

    def take(self, message: Mapping[str, Any], *, owner: int) -> None:
        """Accept a wish from a page.

        Args:
            message: ``twist`` (6 numbers), ``engaged``, and perhaps ``rtt`` [ms] and ``at`` (the input's time, ms since 1970).
            owner: the connection it came by.

        Raises:
            RefusedError: the wish is malformed, or another page is in control.
        """
        if owner != self.owner:
            raise RefusedError("Another page is in control; press 'Take control' first.")
        received = time.monotonic()
        twist, engaged = message.get("twist"), message.get("engaged")
        if not isinstance(twist, list) or not all(isinstance(v, int | float) for v in twist) or not isinstance(engaged, bool):
            raise RefusedError(f"A wish needs twist (6 numbers) and engaged (true or false), got {str(message)[:200]}.")
        wish = Wish(received, twist, engaged=engaged)  # type: ignore[arg-type]
        facts = {key: float(message[key]) for key in ("rtt", "at") if isinstance(message.get(key), int | float)}
        with self._lock:
            if not self._fresh:
                self._waiting_since = received
            elif "at" in self._facts:
                facts["at"] = self._facts["at"]  # repeated before the session looked: the input is still as old as it is
            self._wish, self._facts, self._fresh = wish, facts, True

    def ask(self, command: str) -> None:
        """Accept a command.

        Raises:
            RefusedError: there is no such command.
        """
        with self._lock:
            self._commands.append(check_command(command))

    def let_go(self) -> None:
        """Stop wishing at once: the page is gone."""
        with self._lock:
            self._wish = None

    def poll(self) -> Wish | None:
        """See :class:`robolearn.teleop.device.Device`."""
        with self._lock:
            wish, fresh, facts, since = self._wish, self._fresh, self._facts, self._waiting_since
            self._fresh = False
        if wish is not None and fresh and wish.engaged:
            waited_ms = (time.monotonic() - since) * 1e3
            self.latency_ms.append(facts.get("rtt", 0.0) / 2 + waited_ms)
            if "at" in facts:
                self.input_ms.append((time.time() * 1e3 - facts["at"], waited_ms))
        return wish

    def commands(self) -> list[str]:
        """See :class:`robolearn.teleop.device.Device`."""
        with self._lock:
            given, self._commands = self._commands, []
        return given

    def close(self) -> None:
        """Let go."""
        self.let_go()
