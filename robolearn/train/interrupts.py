"""Early ends of training: a signal, or numbers that are not finite. Light to import: the command line maps them to exit codes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

NON_FINITE_EXIT_CODE = 3


class Interrupted(Exception):
    """Ctrl-C or SIGTERM arrived; everything is saved. Exit code 128 + signal, as shells have it: 130 or 143."""

    def __init__(self, signal_number: int, message: str = "") -> None:
        super().__init__(message or f"Stopped by {signal.Signals(signal_number).name}.")
        self.signal_number = signal_number
        self.exit_code = 128 + signal_number


class NonFiniteError(Exception):
    """The loss or the gradient became NaN or infinite; the last good state and the offending batch are saved."""

    exit_code = NON_FINITE_EXIT_CODE


class InterruptGuard:
    """Context in which SIGINT and SIGTERM ask for a clean stop instead of killing the process.

    The first signal only sets :attr:`signal_number`, so that the step under way can finish; a second SIGINT raises
    KeyboardInterrupt at once. Outside the main thread Python delivers no signals, and the guard does nothing.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Context for work that nothing depends on (all is saved): there a signal raises :class:`Interrupted` directly."""
        self.raise_if_asked()
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    def raise_if_asked(self) -> None:
        """Raise :class:`Interrupted` if a signal has arrived."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        if self._at_once:
            raise Interrupted(number)
