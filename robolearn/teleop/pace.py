"""A fixed rate that does not drift, and how well it is kept."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from robolearn.core.errors import RefusedError


class Pace:
    """Waits for the ticks ``begin + k / rate``; a tick that was missed by a whole period is counted and not made up for."""

    def __init__(
        self, rate_hz: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        if not (math.isfinite(rate_hz) and rate_hz > 0):
            raise RefusedError(f"{rate_hz=} must be positive and finite.")
        self._period_s = 1 / rate_hz
        self._clock, self._sleep = clock, sleep
        self._due_s: float | None = None
        self.missed = 0
        """Ticks that were never given because the one before took too long."""
        self.lateness_s: deque[float] = deque(maxlen=1200)
        """How late the last ticks were given [s]."""

    def wait(self) -> float:
        """Return at the next tick, with how late that is [s]."""
        now = self._clock()
        if self._due_s is None:
            self._due_s = now
        if now < self._due_s:
            self._sleep(self._due_s - now)
            now = self._clock()
        late = now - self._due_s
        skipped = int(late // self._period_s)
        self.missed += skipped
        self._due_s += (skipped + 1) * self._period_s
        self.lateness_s.append(late)
        return late


@dataclass(frozen=True)
class Timing:
    """How regular a series of frames is."""

    rate_hz: float
    """Frames per second that were kept."""
    jitter_p50_ms: float
    """Half of the intervals differ from the period by no more [ms]."""
    jitter_p95_ms: float
    """[ms]"""
    jitter_max_ms: float
    """[ms]"""
    dropped: int
    """Frames that are missing: intervals in whole periods, less one each."""


def timing(stamps_s: Sequence[float], rate_hz: float, *, breaks: Sequence[int] = ()) -> Timing:
    """Return how regular frames are.

    Args:
        stamps_s: (t,) monotonic seconds, one per frame.
        rate_hz: what was wanted.
        breaks: frames before which the recording was paused; the intervals that end there do not count.
    """
    intervals = np.delete(np.diff(np.asarray(stamps_s, float)), [b - 1 for b in breaks if 0 < b < len(stamps_s)])
    if not len(intervals):
        return Timing(0.0, 0.0, 0.0, 0.0, 0)
    jitter = np.abs(intervals - 1 / rate_hz) * 1e3
    p50, p95 = (float(v) for v in np.percentile(jitter, (50, 95)))
    dropped = int(np.maximum(np.rint(intervals * rate_hz) - 1, 0).sum())
    return Timing(float(1 / max(intervals.mean(), 1e-9)), p50, p95, float(jitter.max()), dropped)
