"""Keeping success from falling below the base's while an actor learns: its reach grows only as far as its episodes go well."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


class DipGuard:
    """Says how much of its reach an actor may try, and how much of it has been proved and may be deployed.

    The base's success rate p comes from the warm-up. Every later episode adds to a cumulative sum (Page 1954, "Continuous
    inspection schemes") of how much likelier its outcome is at a rate of p / 2 than at p, which never falls below 0. At
    log(10), ten to one, the reach that is tried is halved and at most half of what is left stays deployed. At p = 0.5 that
    takes six failures in a row, about 14 episodes of a policy that solves half as much as its base, and happens by chance
    every 85 episodes of one that solves as much. ``window`` episodes that end without this, of which at least the share p
    succeeded, prove the reach that was tried, and twice as much is tried next. Episodes that were under way when the reach
    changed are left out.

    Attributes:
        tried: in (0, 1], the reach with which episodes are made after the warm-up.
        proved: in [0, tried], the reach that is evaluated and saved. 0 is the base.
    """

    BEGIN = 0.125
    ALARM = math.log(10.0)

    def __init__(self, window: int, lanes: int) -> None:
        """Begin with an eighth of the reach.

        Args:
            window: episodes that prove a reach, at least 1.
            lanes: environments, whose episodes under way are left out after a change.
        """
        self._window, self._lanes = window, lanes
        self._base = [0, 0]  # successes, failures
        self._recent = [0, 0]
        self._evidence = 0.0
        self._skip = lanes  # episodes that the base began
        self.tried, self.proved = self.BEGIN, 0.0

    def count(self, *, success: bool, warmup: bool) -> None:
        """Take in the end of an episode; ``warmup`` says that the base acted."""
        if warmup:
            self._base[not success] += 1
            return
        if self._skip:
            self._skip -= 1
            return
        # Within these bounds each outcome says something, though the base's episodes were all alike.
        rate = min(max(self._base[0] / max(1, sum(self._base)), 0.02), 0.98)
        gain = math.log(0.5) if success else math.log((1.0 - 0.5 * rate) / (1.0 - rate))
        self._evidence = max(0.0, self._evidence + gain)
        self._recent[not success] += 1
        if self._evidence >= self.ALARM:
            self._change(self.tried / 2.0, min(self.proved, self.tried / 4.0))
        elif sum(self._recent) == self._window:
            if self._recent[0] * sum(self._base) >= self._base[0] * self._window:
                self._change(min(1.0, self.tried * 2.0), self.tried)
            self._recent = [0, 0]

    def _change(self, tried: float, proved: float) -> None:
        self._skip = self._lanes if tried != self.tried else 0
        self.tried, self.proved = tried, proved
        self._recent, self._evidence = [0, 0], 0.0

    def state(self) -> dict[str, object]:
        """Return what :meth:`restore` reads, JSON-serialisable."""
        counts = {"base": self._base, "recent": self._recent, "skip": self._skip, "evidence": self._evidence}
        return counts | {"tried": self.tried, "proved": self.proved}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._base, self._recent = list(state["base"]), list(state["recent"])
        self._skip, self._evidence = int(state["skip"]), float(state["evidence"])
        self.tried, self.proved = float(state["tried"]), float(state["proved"])
