"""The recorder of episodes that a person makes or watches over, in simulation and on robots.

    idle --start--> recording <--pause/resume--> paused
                       | stop                      |
                       v                           v
                    stopped --save--> idle      (save and discard work from all three)
                       | discard ^
                       v         | undo
                    discarded --start--> recording (only now the frames are deleted)

Every frame goes to the store's journal (:mod:`robolearn.data.journal`), so whatever ends the process loses at most what a loss of
power takes from the last second. What cannot go well is found before data is lost: a disk that would be too full to store the
episode stops the recording while there is still room, and a stream that has fallen silent pauses it.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, Array, Episode, Observation
from robolearn.data.header import ACTION_SENT, INTERVENTION, STAMPS_MONOTONIC, STAMPS_WALL, live_extra
from robolearn.data.recording import Annotate, Recording
from robolearn.data.store import EpisodeStore
from robolearn.teleop.pace import Timing, timing

MIB = 1 << 20


class State(StrEnum):
    """What the recorder is doing."""

    IDLE = "idle"
    RECORDING = "recording"
    PAUSED = "paused"
    STOPPED = "stopped"
    """The episode is over and waits for its label."""
    DISCARDED = "discarded"
    """The episode is thrown away with the next start; until then it can be taken back."""


class DiskLowError(RefusedError):
    """There is only just room enough to store what was recorded."""


class StreamLostError(RefusedError):
    """A camera or sensor has fallen silent."""


@dataclass(frozen=True)
class RecorderConfig:
    """How episodes are recorded."""

    operator: str = ""
    """Who is at the controls; kept with every episode."""
    flush_interval_s: float = 0.5
    """How long a frame may wait before its sync to the disk begins [s]."""
    min_free_mib: float = 256.0
    """Space that recording leaves on the disk, beyond what storing the episode takes [MiB]."""
    max_stream_age_s: float = 0.5
    """A sample older than this belongs to a stream that is lost [s]."""

    def __post_init__(self) -> None:
        for name in ("flush_interval_s", "min_free_mib", "max_stream_age_s"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise RefusedError(f"{name}={getattr(self, name)} must be positive and finite.")
        if self.flush_interval_s > 1:
            raise RefusedError(f"flush_interval_s={self.flush_interval_s} would leave frames at risk for more than 1 s.")


@dataclass(frozen=True)
class Stamp:
    """One instant on two clocks."""

    wall_s: float
    """Unix time [s]."""
    monotonic_s: float
    """[s]"""

    @classmethod
    def now(cls) -> Stamp:
        """Return this instant."""
        return cls(time.time(), time.monotonic())


@dataclass(frozen=True)
class Sample:
    """One control step: what was seen, and what was done from then on."""

    observation: Observation
    """Stream -> array, without a batch axis."""
    action: Array
    """(a,) what was wanted."""
    sent: Array
    """(a,) what was sent, after limits."""
    intervention: bool
    """Whether a person was in control."""
    stamps: Mapping[str, Stamp]
    """When each observation was taken, and when ``action.sent`` was sent; the newest is the time of the step."""


@dataclass
class Saved:
    """An episode that was handed over to the store."""

    future: Future[int]
    success: bool
    length: int
    number: int
    """Counted from 1 in this session."""


class Recorder:
    """Records into a store made with :func:`robolearn.data.header.live_extra`; not thread-safe."""

    def __init__(
        self,
        store: EpisodeStore,
        config: RecorderConfig | None = None,
        *,
        annotate: Annotate | None = None,
        free_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Wrap a store that is open for appending.

        Args:
            store: where episodes go.
            config: defaults if None.
            annotate: asked in the background for further facts about every saved episode.
            free_bytes: space left on the store's disk; asks the file system by default.

        Raises:
            RefusedError: the store keeps other streams.
        """
        if dict(store.header.extra) != live_extra(store.header.spaces):
            raise RefusedError(
                f"{store.path} keeps the extra streams {sorted(store.header.extra)}; recording needs "
                f"{sorted(live_extra(store.header.spaces))}. Record into a new store and merge what both hold."
            )
        self._store, self._config, self._annotate = store, config or RecorderConfig(), annotate
        self._free_bytes = free_bytes or self._ask_free_bytes
        self._frame_bytes = sum(
            int(np.prod(f.shape, dtype=np.int64)) * np.dtype(f.dtype).itemsize for f in store.header.streams.values()
        )
        self._recording: Recording | None = None
        self._stamps_s: list[float] = []
        self._breaks: list[int] = []
        self._lost: list[dict[str, Any]] = []
        self._interventions = 0
        self._space_checked_s = -math.inf
        self._saved: list[Saved] = []
        self._last: Saved | None = None
        self.state = State.IDLE
        self.blocking_ms: deque[float] = deque(maxlen=1000)
        """How long the last calls of :meth:`save` took [ms]."""

    @property
    def frames(self) -> int:
        """Steps of the episode under way or waiting for its label."""
        return self._recording.frames if self._recording is not None else 0

    @property
    def durable_frames(self) -> int:
        """Those of them that would survive a loss of power now."""
        return self._recording.durable_frames if self._recording is not None else 0

    @property
    def interventions(self) -> int:
        """Those of them in which a person was in control."""
        return self._interventions

    @property
    def pending(self) -> int:
        """Saved episodes that are still being compressed; their frames are safe."""
        return len(self._saved)

    def start(self, *, seed: int | None = None, metadata: Mapping[str, Any] | None = None) -> None:
        """Begin an episode; one that was discarded before is deleted now.

        Raises:
            RefusedError: an episode is under way or unlabelled, or the disk has no room for one.
        """
        if self.state not in (State.IDLE, State.DISCARDED):
            raise RefusedError(f"An episode is {self.state}; save or discard it first.")
        self._require_space(0)
        if self._recording is not None:
            self._recording.discard()
            self._recording = None
        facts = {"operator": self._config.operator, **(metadata or {})}
        self._recording = self._store.record(facts, seed=seed, flush_interval_s=self._config.flush_interval_s)
        self._stamps_s, self._breaks, self._lost, self._interventions = [], [], [], 0
        self._space_checked_s = -math.inf
        self.state = State.RECORDING

    def add(self, sample: Sample) -> bool:
        """Record one step; return whether it was recorded, which it is not while nothing is being recorded.

        Raises:
            StreamLostError: a stream is too old. The recording is paused; the frames so far are safe.
            DiskLowError: there is only just room to store the episode. The recording is stopped and can be saved.
            RefusedError: the sample does not fit the store, or writing failed.
        """
        if self.state is not State.RECORDING or self._recording is None:
            return False
        now_s = max(stamp.monotonic_s for stamp in sample.stamps.values())
        self._require_fresh(sample, now_s)
        if now_s - self._space_checked_s >= 1:
            try:
                self._require_space(self._recording.frames + round(2 * self._store.header.spaces.control_rate_hz))
            except DiskLowError:
                self.stop()
                raise
            self._space_checked_s = now_s
        streams = [*self._store.header.spaces.observation, ACTION_SENT]
        frame: dict[str, Any] = {**sample.observation}
        frame[ACTION] = np.asarray(sample.action, self._store.header.spaces.action.dtype)
        frame[ACTION_SENT] = np.asarray(sample.sent, self._store.header.spaces.action.dtype)
        frame[INTERVENTION] = np.full(1, sample.intervention, np.float32)
        frame[STAMPS_WALL] = np.array([sample.stamps[key].wall_s for key in streams])
        frame[STAMPS_MONOTONIC] = np.array([sample.stamps[key].monotonic_s for key in streams])
        try:
            self._recording.add_frame(frame, t_wall=min(frame[STAMPS_WALL][:-1]))
        except RefusedError:
            self.stop()
            raise
        self._stamps_s.append(now_s)
        self._interventions += sample.intervention
        return True

    def pause(self) -> None:
        """Record nothing until :meth:`resume`; the frames before and after become neighbours, and the episode says where."""
        self._require(State.RECORDING, doing="pause")
        self.state = State.PAUSED
        self._breaks.append(self.frames)

    def lose(self, stream: str, age_s: float) -> None:
        """Pause because a stream has fallen silent; the episode says which, and where.

        Raises:
            StreamLostError: always.
        """
        self.pause()
        self._lost.append({"stream": stream, "before_step": self.frames, "age_s": round(age_s, 3)})
        raise StreamLostError(
            f"{stream} is {age_s:.2f} s old (allowed {self._config.max_stream_age_s:g} s): the recording is paused after "
            f"{self.frames} steps, which are safe. Resume it once the stream is back."
        )

    def resume(self) -> None:
        """Go on after a pause."""
        self._require(State.PAUSED, doing="resume")
        self.state = State.RECORDING

    def stop(self) -> None:
        """End the episode without a label yet."""
        self._require(State.RECORDING, State.PAUSED, doing="stop")
        self.state = State.STOPPED

    def save(self, *, success: bool, outcome: str | None = None, notes: str = "") -> Saved:
        """Hand the episode over to the store and return at once.

        Raises:
            RefusedError: nothing was recorded, or the last record could not be written; the frames are kept.
        """
        self._require(State.RECORDING, State.PAUSED, State.STOPPED, doing="save")
        assert self._recording is not None  # the states say so
        begun = time.perf_counter()
        facts: dict[str, Any] = {"timing": asdict(self.timing()), "intervention_steps": self._interventions}
        facts |= {"notes": notes} if notes else {}
        facts |= {"paused_before_steps": self._breaks} if self._breaks else {}
        facts |= {"lost_streams": self._lost} if self._lost else {}
        length = self._recording.frames
        future = self._recording.hand_over(success=success, outcome=outcome, metadata=facts, annotate=self._noted)
        number = 1 if self._last is None else self._last.number + 1
        self._last = Saved(future, success, length, number)
        self._saved.append(self._last)
        self._recording, self.state = None, State.IDLE
        self.blocking_ms.append((time.perf_counter() - begun) * 1e3)
        return self._last

    def discard(self) -> None:
        """Throw the episode away; :meth:`undo` takes that back until the next :meth:`start`."""
        self._require(State.RECORDING, State.PAUSED, State.STOPPED, doing="discard")
        self.state = State.DISCARDED

    def undo(self) -> str:
        """Take the last discard or save back; return what was done, in words.

        Raises:
            RefusedError: there is nothing to take back, or the last episode is still being stored.
        """
        if self.state is State.DISCARDED:
            self.state = State.STOPPED
            return f"the discarded episode of {self.frames} steps is back and waits for its label"
        self._require(State.IDLE, doing="undo")
        if self._last is None:
            raise RefusedError("There is nothing to undo in this session.")
        if not self._last.future.done():
            raise RefusedError("The last episode is still being stored; undo it in a moment.")
        place = self._store.withdraw(self._last.future.result(), reason="undone by the operator")
        self._last = None
        return f"the last episode was taken out of the store and lies in {place}"

    def finished(self) -> list[Saved]:
        """Return the saves that have ended since the last call; a failed one has its error in its future."""
        done = [saved for saved in self._saved if saved.future.done()]
        self._saved = [saved for saved in self._saved if saved not in done]
        return done

    def timing(self) -> Timing:
        """Return how regular the frames of the episode are."""
        return timing(self._stamps_s, self._store.header.spaces.control_rate_hz, breaks=self._breaks)

    def close(self) -> None:
        """End the session: an unlabelled episode is kept as interrupted, a discarded one deleted. The store stays open."""
        if self.state is State.DISCARDED and self._recording is not None:
            self._recording.discard()
        elif self._recording is not None and self.frames:
            self.save(success=False, outcome="interrupted")
        elif self._recording is not None:
            self._recording.discard()
        self._recording, self.state = None, State.IDLE

    def _noted(self, episode: Episode) -> Mapping[str, Any]:
        """Ask ``annotate``; what goes wrong there is noted and never keeps an episode from being stored."""
        if self._annotate is None:
            return {}
        try:
            return self._annotate(episode)
        except Exception as error:
            return {"annotation_error": f"{type(error).__name__}: {error}"}

    def _require(self, *states: State, doing: str) -> None:
        if self.state not in states:
            raise RefusedError(f"Cannot {doing}: the recorder is {self.state}, not {' or '.join(states)}.")

    def _require_fresh(self, sample: Sample, now_s: float) -> None:
        for key in self._store.header.spaces.observation:
            age = now_s - sample.stamps[key].monotonic_s
            if age > self._config.max_stream_age_s:
                self.lose(key, age)

    def _require_space(self, frames: int) -> None:
        """Refuse where a journal's frames, once more in a file of their own, would not leave the reserve."""
        free = self._free_bytes()
        needed = frames * self._frame_bytes + self._config.min_free_mib * MIB
        if free < needed:
            raise DiskLowError(
                f"The disk of {self._store.path} has {free / MIB:.0f} MiB left and {needed / MIB:.0f} MiB are kept free: "
                f"{'nothing more is recorded; ' if frames else ''}make room, then go on. Everything recorded is safe."
            )

    def _ask_free_bytes(self) -> int:
        found = os.statvfs(self._store.path)
        return found.f_bavail * found.f_frsize
