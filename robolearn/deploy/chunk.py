"""A stamped chunk of future commands as it travels from a policy to the gate, its checks, and where it stands at a given time.

Row k is for [stamp + k step, stamp + (k+1) step). A chunk that arrives late is therefore entered at its age: its leading rows,
whose time is over, are skipped, however long the decision and the way took.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array

_ROUNDING = 1e-6
"""Part of a step: sums of periods reach a multiple of the step only up to rounding."""


@dataclass(frozen=True)
class Chunk:
    """What a source of commands asks for; nothing in it is trusted until :func:`read_chunk` has looked at it."""

    names: tuple[str, ...]
    """One name per column of ``values``, in any order."""
    values: Array
    """(h, a); joint positions [rad], or rates such as OSC pose deltas. Row k is for [stamp + k step, stamp + (k+1) step)."""
    stamp_s: float
    """When the newest observation behind it was taken, on the gate's steady clock [s]."""
    step_s: float
    """Time between rows [s]."""
    source: str = "policy"
    """Who asks; see ``GateConfig.sources``."""
    novelty: float | None = None
    """Out-of-distribution score of the observation divided by its threshold; above 1 it is novel. None: not measured."""


def read_chunk(chunk: Chunk, names: tuple[str, ...]) -> Array:
    """Return the values (h, a) in the order of ``names``.

    Raises:
        RefusedError: a name is missing, unknown or repeated; the shape is wrong; a value, stamp or step is not a finite number.
    """
    try:
        values = np.asarray(chunk.values, float)
        timing = np.array([chunk.stamp_s, chunk.step_s, 0.0 if chunk.novelty is None else chunk.novelty], float)
    except (TypeError, ValueError) as error:
        raise RefusedError(f"shape: values, stamp, step and novelty are not all numbers ({error}).") from error
    if values.ndim != 2 or len(values) < 1 or values.shape[1] != len(chunk.names):
        raise RefusedError(f"shape: {len(chunk.names)} names came with values of shape {values.shape}.")
    if len(chunk.names) != len(names) or set(chunk.names) != set(names):
        raise RefusedError(f"name: came {list(chunk.names)}, expected {list(names)}.")
    if not (np.isfinite(timing[:2]).all() and chunk.step_s > 0):
        raise RefusedError(f"non_finite: stamp {chunk.stamp_s} and step {chunk.step_s} must be finite, the step positive.")
    if not np.isfinite(values).all():
        raise RefusedError(f"non_finite: {int((~np.isfinite(values)).sum())} of {values.size} values.")
    return values[:, [chunk.names.index(name) for name in names]]


@dataclass
class Track:
    """An accepted chunk and how far it has been followed."""

    values: Array
    """(h, a) in the gate's order."""
    step_s: float
    """Time between rows [s]."""
    phase_s: float
    """Time on the chunk, from its observation on [s]."""
    anchor: Array | None
    """(a,) where the target is when the chunk is accepted; None for rates, which are held for their step, not interpolated."""

    def __post_init__(self) -> None:
        self._begun_s = self.phase_s

    @property
    def row(self) -> int:
        """The row whose step it is; the last one once all are over."""
        return min(max(int(self.phase_s / self.step_s + _ROUNDING), 0), len(self.values) - 1)

    @property
    def ended(self) -> bool:
        """Whether the last row's time is over."""
        return self.phase_s / self.step_s + _ROUNDING >= len(self.values)

    def target(self) -> Array:
        """Return what the chunk asks for (a,) now: row k is reached linearly at k+1 steps, or held for its step if a rate.

        The way to the first row that is still ahead begins at the anchor, so a new chunk never makes the target jump.
        """
        row = self.row
        if self.anchor is None:
            return self.values[row]
        end_s = (row + 1) * self.step_s
        behind = self._begun_s >= end_s - (1 + _ROUNDING) * self.step_s
        start, start_s = (self.anchor, self._begun_s) if behind else (self.values[row - 1], end_s - self.step_s)
        part = min(max((self.phase_s - start_s) / max(end_s - start_s, 1e-9), 0.0), 1.0)
        return start + part * (self.values[row] - start)


class StepClock:
    """Tells how many control steps lie between the frames that a policy is given, by their stamps.

    Steps are counted on a grid of the control period that begins at the first frame, so that a slow decision, a lost frame, or a
    driver that is faster than the policy leaves the policy's plan in step with the world.
    """

    def __init__(self, period_s: float, *, lockstep: bool = False) -> None:
        """``lockstep``: every frame is the next step, however long the simulator waited for its command."""
        self._period_ns, self._lockstep = round(period_s * 1e9), lockstep
        self.reset()

    def reset(self) -> None:
        """Begin with the next frame."""
        self._begin_ns, self._step = -1, 0

    def advance(self, stamp_ns: int) -> int:
        """Return the number of control steps since the last frame; 0 if this one lies in the same step and is not needed."""
        if self._begin_ns < 0:
            self._begin_ns = stamp_ns
            return 1
        if self._lockstep:
            return 1
        # Half a period of jitter either way is tolerated.
        steps = max((stamp_ns - self._begin_ns + self._period_ns // 2) // self._period_ns - self._step, 0)
        self._step += steps
        return steps
