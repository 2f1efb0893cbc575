"""Live pictures: drawn by the control loop while somebody looks, and taken from it by other threads."""

from __future__ import annotations

import time
from collections.abc import Callable

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array

_SMALL = 2.5
"""A view that is shown small is drawn so many times less often, at half the size."""
_WATCHED_S = 1.0
"""Nobody looks at a view that was not asked for in this time [s]."""


class LiveViews:
    """The newest picture of each camera; pictures are replaced as a whole and never changed."""

    def __init__(
        self, cameras: tuple[str, ...], size: tuple[int, int], rate_hz: float, draw: Callable[[str, int, int], Array]
    ) -> None:
        """Show nothing yet.

        Args:
            cameras: what can be looked at; the first is shown large.
            size: (height, width) of the large picture [pixels].
            rate_hz: large pictures per second.
            draw: (camera, height, width) -> (height, width, 3) uint8, called in the thread of :meth:`refresh`.
        """
        self.cameras = cameras
        self._size, self._rate_hz, self._draw = size, rate_hz, draw
        self._large = cameras[0] if cameras else ""
        self._pictures: dict[str, tuple[int, Array]] = {}
        self._watched: dict[str, float] = {}
        self._drawn_s: dict[str, float] = {}

    def watch(self, camera: str) -> tuple[int, Array] | None:
        """Return the newest picture of a camera and its number, counted from 1; it is drawn while somebody asks."""
        self._watched[camera] = time.monotonic()
        return self._pictures.get(camera)

    def look(self, view: object) -> None:
        """Choose which view is shown large, by its place in the list.

        Raises:
            RefusedError: there is no such view.
        """
        if isinstance(view, bool) or not isinstance(view, int) or not 0 <= view < len(self.cameras):
            raise RefusedError(f"There is no view {str(view)[:20]!r}; the views are 0 to {len(self.cameras) - 1}.")
        self._large = self.cameras[view]

    def refresh(self) -> None:
        """Draw the first view that is due: one a call, so that a control step is never late by more than one picture."""
        now = time.monotonic()
        for camera in self.cameras:
            large = camera == self._large
            waited = now - self._drawn_s.get(camera, -1e9)
            if now - self._watched.get(camera, -1e9) < _WATCHED_S and waited >= (1 if large else _SMALL) / self._rate_hz:
                height, width = self._size if large else (self._size[0] // 2, self._size[1] // 2)
                number = self._pictures[camera][0] + 1 if camera in self._pictures else 1
                self._pictures[camera] = number, self._draw(camera, height, width)
                self._drawn_s[camera] = now
                return
