"""Keeping success from falling below the base's while an actor learns: its reach shrinks when its episodes go worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scipy import stats


class DipGuard:
    """Compares the newest episodes with the base's own, of the warm-up, and says how much of its reach the actor may use.

    After every ``window`` episodes: where they are worse than the base's (Fisher's exact test, one-sided, p below ``LEVEL``),
    the share is halved; where their rate is at least the base's, it is doubled, up to 1; in between it stays. Episodes that were
    under way when the share changed are of neither and are left out.

    Attributes:
        share: in (0, 1], of the reach that the schedule allows.
    """

    LEVEL = 0.1

    def __init__(self, window: int, lanes: int) -> None:
        """Begin with the whole reach.

        Args:
            window: episodes per comparison; 0 never compares.
            lanes: environments, whose episodes under way are left out after a change.
        """
        self._window, self._lanes = window, lanes
        self._base = [0, 0]  # successes, failures
        self._recent = [0, 0]
        self._skip = lanes  # episodes that the base began
        self.share = 1.0

    def count(self, *, success: bool, warmup: bool) -> None:
        """Take in the end of an episode; ``warmup`` says that the base acted."""
        if warmup:
            self._base[not success] += 1
            return
        if self._skip:
            self._skip -= 1
            return
        self._recent[not success] += 1
        if self._window and sum(self._recent) == self._window and sum(self._base):
            self._decide()

    def _decide(self) -> None:
        worse = stats.fisher_exact([self._recent, self._base], alternative="less").pvalue < self.LEVEL
        not_worse = self._recent[0] * sum(self._base) >= self._base[0] * self._window
        before, self._recent = self.share, [0, 0]
        self.share = self.share / 2 if worse else min(1.0, self.share * 2) if not_worse else self.share
        self._skip = self._lanes if self.share != before else 0

    def state(self) -> dict[str, object]:
        """Return what :meth:`restore` reads, JSON-serialisable."""
        return {"base": self._base, "recent": self._recent, "skip": self._skip, "share": self.share}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self._base, self._recent = list(state["base"]), list(state["recent"])
        self._skip, self.share = int(state["skip"]), float(state["share"])
