"""What a gate waits for: the streams that it watches and the sources of its commands; time is an argument."""

from __future__ import annotations

from collections import Counter

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.deploy.gate_config import GateConfig


class StreamWatch:
    """How old the newest observation of each watched stream is."""

    def __init__(self, config: GateConfig, counts: Counter[str]) -> None:
        """Watch the streams of ``config``; what is ignored is added to ``counts``."""
        self._config, self._counts = config, counts
        self._seen: dict[str, float] = {}

    def is_news(self, stream: str, *, stamp_s: float, now_s: float) -> bool:
        """Keep a stream's newest stamp; what is older, no number or from the future is counted, ignored, and no news."""
        news = np.isfinite(stamp_s) and self._seen.get(stream, -np.inf) <= stamp_s <= now_s + self._config.future_tolerance_s
        if news:
            self._seen[stream] = stamp_s
        else:
            self._counts[f"stamp_{stream}"] += 1
        return bool(news)

    def stale(self, now_s: float) -> list[str]:
        """Return the watched streams whose newest observation is too old."""
        limits = self._config.stream_timeouts_s
        return [name for name, limit_s in limits.items() if not now_s - self._seen.get(name, -np.inf) <= limit_s]


class SourceWatch:
    """Who commands, and how long it has been silent."""

    def __init__(self, config: GateConfig) -> None:
        """Nobody has asked for anything yet."""
        self._config = config
        self._chunk_s = self._alive_s = self._newest_s = -np.inf
        self.active = ""
        """The source that is followed, or was followed last; empty after a reset."""

    def check(self, source: str, now_s: float, *, commanding: bool) -> None:
        """Note that somebody asks, and refuse strangers and, while one is ``commanding``, whoever is outranked by it.

        Raises:
            RefusedError: the source is unknown or outranked.
        """
        sources = self._config.sources
        if source not in sources:
            raise RefusedError(f"source: {source!r} is none of {list(sources)}.")
        self._newest_s = max(self._newest_s, now_s)
        if commanding and self.active and sources.index(source) < sources.index(self.active):
            raise RefusedError(f"preempted: {self.active} is commanding.")

    def follow(self, source: str, now_s: float) -> None:
        """Note that a chunk of the source is followed from now on."""
        self.active, self._chunk_s = source, now_s

    def on_heartbeat(self, source: str, now_s: float) -> None:
        """Note that a source is alive; of one that is not followed it means nothing."""
        if source == self.active:
            self._alive_s = now_s

    def forget(self) -> None:
        """Nobody is followed any more."""
        self.active = ""

    def is_asking(self, now_s: float) -> bool:
        """Return whether somebody still asks for motion, granted or not."""
        return now_s - self._newest_s <= self._config.policy_timeout_s

    def is_silent(self, now_s: float) -> bool:
        """Return whether the active source has shown no life, or sent no chunk, for too long."""
        config = self._config
        alive_until_s = max(self._chunk_s, self._alive_s) + config.policy_timeout_s
        return bool(now_s > min(alive_until_s, self._chunk_s + config.chunk_timeout_s))
