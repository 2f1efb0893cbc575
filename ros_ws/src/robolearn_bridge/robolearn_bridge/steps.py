"""Joins the frames of an episode with the actions in force during their control steps, as both come in."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from robolearn.core.types import Array
from robolearn.data.header import ACTION_SENT
from robolearn.deploy.streams import Frame
from robolearn.teleop.recorder import Sample, Stamp

SOURCES = ("policy", "teleop", "sent")
HOLDS = 1 << 62
"""Nanoseconds between the rows of a command of the gate, which holds until the next one."""
GRACE, PATIENCE = 2, 8
"""Looks that a step whose end has come waits for what was sent in it: at least, and where the gate's newest command is no newer
than the step's end. Looks, not seconds: whoever was not running for a while has messages to take first."""


@dataclass(frozen=True)
class _Rows:
    stamp_ns: int
    rows: Array
    """(h, a)"""
    step_ns: int
    offset_ns: int

    def at(self, at_ns: int) -> Array | None:
        """Return the row (a,) for a moment; None where it lies behind the last one."""
        row = max(0, round((at_ns - self.stamp_ns) / self.step_ns))
        return self.rows[row] if row < len(self.rows) else None


@dataclass
class _Open:
    frame: Frame
    offset_ns: int
    until_ns: int | None = None
    looks: int = 0


@dataclass
class StepJoiner:
    """Turns frames and chunks into samples for :class:`robolearn.teleop.recorder.Recorder`.

    ``sent`` is the last command that the gate sent before the step's end, ``action`` what the operator or else the policy wanted
    for it, ``intervention`` whether it was the operator. Steps before the gate's first command are left out.
    """

    period_ns: int
    """Of a control step, for the last frame of all and for chunks of one row."""
    _open: deque[_Open] = field(default_factory=deque)
    _chunks: dict[str, deque[_Rows]] = field(default_factory=lambda: {name: deque() for name in SOURCES})

    def push_frame(self, frame: Frame, *, offset_ns: int) -> None:
        """Take the next frame; ``offset_ns`` is the monotonic clock less the wall clock."""
        if self._open:
            self._open[-1].until_ns = frame.at_ns
        self._open.append(_Open(frame, offset_ns))

    def push_chunk(self, source: str, rows: Array, *, stamp_ns: int, step_ns: int, offset_ns: int) -> None:
        """Take what a source asked for, or what the gate sent: rows (h, a), the first for ``stamp_ns``."""
        self._chunks[source].append(_Rows(stamp_ns, rows, step_ns, offset_ns))

    def look(self) -> Iterator[Sample]:
        """Yield the steps that are complete; called again and again, messages being taken in between."""
        newest = max((chunk.stamp_ns for chunk in self._chunks["sent"]), default=-1)
        for step in self._open:
            step.looks += step.until_ns is not None
        while self._open and (until := self._open[0].until_ns) is not None:
            if self._open[0].looks < (GRACE if newest >= until else PATIENCE):
                return
            yield from self._close(self._open.popleft(), until)

    def flush(self) -> Iterator[Sample]:
        """Yield every step that is still open: nothing more is waited for."""
        while self._open:
            step = self._open.popleft()
            yield from self._close(step, step.until_ns or step.frame.at_ns + self.period_ns)

    def _close(self, step: _Open, until_ns: int) -> Iterator[Sample]:
        begin_ns = step.frame.at_ns
        found = {name: self._newest(name, until_ns) for name in SOURCES}
        sent, policy, teleop = found["sent"], found["policy"], found["teleop"]
        if sent is None:
            return
        if teleop is not None and teleop.stamp_ns < begin_ns - (until_ns - begin_ns):
            teleop = None  # an operator who has let go wants nothing
        by_person = teleop.at(begin_ns) if teleop is not None else None
        by_policy = policy.at(begin_ns) if policy is not None else None
        command = sent.rows[0]
        wanted = next(row for row in (by_person, by_policy, command) if row is not None)
        stamps = {key: _stamp(at_ns, step.offset_ns) for key, at_ns in step.frame.stamps_ns.items()}
        stamps[ACTION_SENT] = _stamp(sent.stamp_ns, sent.offset_ns)
        yield Sample(step.frame.observation, wanted, command, by_person is not None, stamps)

    def _newest(self, source: str, until_ns: int) -> _Rows | None:
        """Return the newest chunk stamped before ``until_ns``, and forget the older ones."""
        chunks = self._chunks[source]
        before = [chunk for chunk in chunks if chunk.stamp_ns < until_ns]
        newest = max(before, key=lambda chunk: chunk.stamp_ns, default=None)
        self._chunks[source] = deque(chunk for chunk in chunks if chunk is newest or chunk.stamp_ns >= until_ns)
        return newest


def _stamp(at_ns: int, offset_ns: int) -> Stamp:
    return Stamp(at_ns / 1e9, (at_ns + offset_ns) / 1e9)
