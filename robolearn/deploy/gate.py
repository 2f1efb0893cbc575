"""The command gate: the one place through which commands reach a robot; numpy only, no ROS, and time is an argument.

Every ``now_s`` and stamp is on one steady clock. The node that wires this calls the ``on_...`` methods from its subscriptions and
:meth:`CommandGate.tick` from its control loop, and sends what ``tick`` returns if ``Command.send`` says so::

    LATCHED --reset()--> READY --chunk--> RUNNING --soft fault--> STOPPING --at rest--> HOLDING --fresh chunk--> RUNNING
       ^                                     |                       |                     |
       +--------- at rest ----- STOPPING <---+-- hard fault, stop() -+---------------------+-- resume window over

It starts LATCHED. A soft fault (silent policy, stale stream, novel observation, late tick) ramps down and holds, and is over when
a chunk from a newer observation comes inside ``resume_window_s``. A hard fault (e-stop, its publisher lost, tracking error,
:meth:`CommandGate.stop`) ramps down and latches: only :meth:`CommandGate.reset` leads on, and it drops every chunk.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.core.types import Array, Spaces
from robolearn.deploy.chunk import Chunk, Track, read_chunk
from robolearn.deploy.gate_config import JOINT_STATES, Command, GateConfig, GateState, RateGuard
from robolearn.deploy.gate_watch import SourceWatch, StreamWatch
from robolearn.deploy.limits import SafetyLimits, filled
from robolearn.deploy.safety import Guard, SafetyFilter
from robolearn.deploy.slowdown import Slowdown


class CommandGate:
    """Executes chunks of one robot's commands, inside its limits, until something is wrong."""

    def __init__(
        self,
        limits: SafetyLimits,
        config: GateConfig,
        *,
        names: tuple[str, ...],
        measured_dim: int,
        guard: Guard | RateGuard | None = None,
    ) -> None:
        """Make a gate for ``names``, of which the first ``measured_dim`` are measured positions (0: rates, with a RateGuard)."""
        if len(names) != limits.dim or not 0 <= measured_dim <= limits.dim:
            raise RefusedError(f"{limits.dim} limits came with {len(names)} names, of which {measured_dim} are measured.")
        self._limits, self._config, self._names, self._n = limits, config, names, measured_dim
        self._slowdown = Slowdown(limits, novelty_stop=config.novelty_stop, rates=not measured_dim)
        self._rate_guard: RateGuard | None = None if measured_dim else cast(RateGuard | None, guard)
        self._filter = SafetyFilter(limits, num_rows=1, guard=cast(Guard | None, guard) if measured_dim else None)
        self._dt = 1 / limits.control_rate_hz
        self._low, self._high = limits.inner_bounds()
        rest = filled(limits.rest_command, limits.dim, np.nan)
        self._rest = np.where(np.isfinite(rest), rest, np.clip(0.0, self._low, self._high))
        self._measured: Array = np.full(measured_dim, np.nan)
        self.counts: Counter[str] = Counter()
        """Refused chunks, faults and missed ticks by name, and what the filter altered before the last reset."""
        self._streams = StreamWatch(config, self.counts)
        self._pressed: bool | None = None
        self._estop_s = self._since_s = -np.inf
        self._state, self._reason, self._hard = GateState.LATCHED, "startup", True
        self._track: Track | None = None
        self._entered_s = 0.0  # when row 0 of the track began
        self._sources = SourceWatch(config)
        self._stamp_s = -np.inf  # what was observed before is too old to be followed
        self.steps = 0
        """Control periods so far; calls of :meth:`tick` within one period count once."""
        self._now_s, self._start_s, self._slot, self._slots = -np.inf, 0.0, -1, 0
        self._command, self._velocity, self._goal = np.full(limits.dim, np.nan), np.zeros(limits.dim), np.full(limits.dim, np.nan)
        self._armed = self._disarming = self._releasing = False
        self._let_go = False  # nothing is on the wire, so that the next command on it has to be a new beginning
        self._weight, self._epoch, self._novelty = 0.0, 0, 0.0
        self.events: deque[tuple[float, GateState, str]] = deque(maxlen=1000)
        """(time, state, reason) of each change of state, oldest first."""

    @classmethod
    def for_robot(cls, spec: RobotSpec, config: GateConfig, *, guard: Guard | None = None) -> CommandGate:
        """Return a gate for joint positions [rad] and grippers [-1 open, 1 closed], in the order of the spec."""
        names = spec.joints + tuple(gripper.joint for gripper in spec.grippers)
        return cls(SafetyLimits.from_robot(spec), config.for_robot(spec), names=names, measured_dim=spec.dim, guard=guard)

    @classmethod
    def for_spaces(
        cls, spaces: Spaces, config: GateConfig, *, control_rate_hz: float | None = None, guard: RateGuard | None = None
    ) -> CommandGate:
        """Return a gate for actions that are rates, such as OSC pose deltas: the evaluator's own filter, which rests at 0.

        ``control_rate_hz`` may exceed the policy's, so that stops come sooner: each row is sent until its step is over.
        """
        limits = replace(SafetyLimits.from_spaces(spaces), control_rate_hz=control_rate_hz or spaces.control_rate_hz)
        return cls(limits, config, names=spaces.action.names, measured_dim=0, guard=guard)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the command's elements, in order."""
        return self._names

    @property
    def limits(self) -> SafetyLimits:
        """The limits; read-only for the life of the gate."""
        return self._limits

    @property
    def state(self) -> GateState:
        """The present state."""
        return self._state

    @property
    def armed(self) -> bool:
        """Whether commands may be on the wire; disarmed it still is until the last one, at rest, was sent."""
        return self._armed

    @property
    def filter_counts(self) -> Mapping[str, int]:
        """Kind -> commands that the filter altered for that reason."""
        return {kind: int(count[0]) for kind, count in self._filter.counts.items()}

    def on_measured(self, position: Array, *, stamp_s: float, now_s: float) -> None:
        """Take measured joint positions (n,) [rad] in order; what is bad, old or from the future is counted and ignored."""
        position = np.asarray(position, float)
        if self._n and position.shape != self._measured.shape:
            self.counts["measured_shape"] += 1
        elif not np.isfinite(position).all():
            self.counts["measured_non_finite"] += 1
        elif self._streams.is_news(JOINT_STATES, stamp_s=stamp_s, now_s=now_s):
            self._measured = position.copy() if self._n else self._measured
            if self._rate_guard is not None:
                self._rate_guard.on_measured(position, stamp_s=stamp_s)

    def on_stream(self, name: str, *, stamp_s: float, now_s: float) -> None:
        """Note when the newest observation of another watched stream was taken."""
        self._streams.is_news(name, stamp_s=stamp_s, now_s=now_s)

    def on_heartbeat(self, source: str, *, now_s: float) -> None:
        """Note that a source of commands is alive, between its chunks."""
        self._sources.on_heartbeat(source, now_s)

    def on_estop(self, pressed: bool, *, now_s: float) -> None:
        """Take the e-stop's state; pressed latches at once, released only allows :meth:`reset`."""
        self._pressed, self._estop_s = bool(pressed), now_s
        if pressed:
            self._fault("e_stop", now_s, hard=True)

    def on_chunk(self, chunk: Chunk, *, now_s: float) -> str:
        """Accept a chunk as what is followed from now on, or refuse it whole and leave everything as it is.

        Returns:
            "" if accepted, else why not; the text before the colon is the key in :attr:`counts`.
        """
        try:
            values = read_chunk(chunk, self._names)
            self._admit(chunk, values, now_s)
        except RefusedError as error:
            self.counts[f"refused_{str(error).split(':', 1)[0]}"] += 1
            return str(error)
        return ""

    def arm(self) -> None:
        """Allow commands on the wire; without this the gate is a dry run.

        The first of them holds the measured position: at once if the gate is ready, else from the next reset on.

        Raises:
            RefusedError: the gate is in motion, or it is ready at a position that is unknown by now or that may not be held.
        """
        if self._state not in (GateState.LATCHED, GateState.READY):
            raise RefusedError(f"Arming needs a gate that is latched or ready; it is {self._state}.")
        if not self._armed:
            self._let_go = True
            if self._state is GateState.READY:
                if stale := self._streams.stale(self._now_s):
                    raise RefusedError(f"Arming needs fresh observations of {stale}.")
                self._begin()
        self._armed, self._disarming = True, False

    def disarm(self, *, now_s: float, reason: str = "disarmed") -> None:
        """Ramp down, latch, and send nothing more once at rest (and the weight out, where the driver blends by it)."""
        self._disarming = True
        self._releasing = self._config.blends
        self.stop(reason, now_s=now_s)

    def stop(self, reason: str, *, now_s: float) -> None:
        """Ramp down and latch."""
        self._fault(reason, now_s, hard=True)

    def release(self, *, now_s: float) -> None:
        """Ramp down, latch, and ramp :attr:`Command.weight` to 0: give the arms back to the vendor's controller."""
        self._releasing = True
        self.stop("released", now_s=now_s)

    def reset(self, *, now_s: float) -> None:
        """Leave the latch: hold where the robot is, with no chunk, ready for a new one.

        Raises:
            RefusedError: names everything that is in the way: e-stop pressed or silent, a stale stream, a source that is still
                commanding, a robot outside its limits, or a gate that is not at rest and latched.
        """
        if obstacles := self._obstacles(now_s):
            raise RefusedError(f"Reset refused: {'; '.join(obstacles)}.")
        self._begin()
        self._track, self._stamp_s, self._novelty = None, now_s, 0.0
        self._sources.forget()
        self._releasing = self._disarming = False
        self._enter(GateState.READY, "", now_s)

    def tick(self, now_s: float) -> Command:
        """Return the command of the present control period.

        Periods are slots of the control rate, counted from the first call: a call in the same slot returns the same command
        again, so no burst of calls can make the robot faster, and slots without a call are never caught up.
        """
        advance = self._advance(now_s)
        if advance:
            self.steps += 1
            self._watch(now_s)
            if np.isfinite(self._command).all():
                self._step(now_s)
            self._settle(now_s)
            ramp = self._dt / self._config.weight_ramp_s
            active = self._armed and self._epoch > 0 and not self._releasing
            self._weight = min(max(self._weight + (ramp if active else -ramp), 0.0), 1.0)
        command = self._output()
        self._let_go |= not command.send and self._epoch > 0
        return command

    def _output(self) -> Command:
        send = self._armed and self._epoch > 0 and not self._let_go
        command, velocity, error = self._command.copy(), self._velocity.copy(), np.zeros(self._limits.dim)
        error[: self._n] = command[: self._n] - self._measured if self._state is GateState.RUNNING else 0
        return Command(command, velocity, error, send, self._state, self._reason, self._epoch, self._weight)

    def _advance(self, now_s: float) -> bool:
        """Return whether ``now_s`` is in a new slot, and start again from rest after a gap."""
        if not np.isfinite(now_s) or now_s < self._now_s:
            self.counts["clock"] += 1
            return False
        if self._slot < 0:
            self._start_s = now_s
        gap = now_s - self._now_s
        slot = int((now_s - self._start_s) / self._dt + 0.5)
        if slot <= self._slot and self._slot >= 0:
            return False
        first, self._slots = self._slot < 0, slot - self._slot
        self._slot, self._now_s = slot, now_s  # before anything can fail: the next tick must not find the same gap
        self.counts["missed_ticks"] += 0 if first else max(self._slots - 1, 0)
        if not first and gap > self._config.max_tick_gap_s and np.isfinite(self._command).all():
            # Beside a wall the way to rest may lead through the guard's margin; the robot is there, and has to go on from there.
            self._restart(self._command, ask_guard=False)
            self._fault("tick_gap", now_s, hard=False)
        return True

    def _step(self, now_s: float) -> None:
        """Advance the command by one period: towards the chunk when running, else along the stop plan."""
        before = self._command
        track = self._track
        if self._state is GateState.RUNNING and track is not None:
            # A position is for the end of the period that begins now, a rate for the period itself.
            track.phase_s = track.phase_s + self._dt * self._slots if self._n else now_s - self._entered_s
            self.counts["underrun"] += track.ended
            self._goal = self._slowdown.target(track.target(), self._goal, self._novelty)
            measured = np.concatenate([self._measured, before[self._n :]])[None]
            if track.ended and not self._n:
                self._command = self._filter.coast()[0]
            else:
                self._command = self._filter.apply(self._goal[None], now_s=now_s, measured=measured)[0]
        else:
            self._command = self._filter.coast()[0]
        if self._n:
            self._velocity = (self._command - before) / self._dt
        elif self._rate_guard is not None and self._state is GateState.RUNNING:
            limited, reason = self._rate_guard.limit(self._command)
            self.counts["workspace"] += bool((limited != self._command).any())
            self._command = limited
            if reason:
                self._fault(reason, now_s, hard=True)
                self._command = self._filter.coast()[0]

    def _watch(self, now_s: float) -> None:
        """Look for what is missing or wrong; hard faults first."""
        config = self._config
        next_s = now_s + self._dt - 1e-9  # a silence too long before the next tick is too long now; 1e-9 is for rounding
        if config.estop_timeout_s is not None and next_s - self._estop_s > config.estop_timeout_s:
            self._fault("e_stop_lost", now_s, hard=True)
        if self._state not in (GateState.RUNNING, GateState.STOPPING) and not self._near(self._command[: self._n]):
            # Sending the old command on would make the robot jump back to it.
            self._let_go = True
            self._fault("moved", now_s, hard=True)
        if self._state is not GateState.RUNNING:
            return
        error = config.max_tracking_error
        if error is not None and self._n and not (np.abs(self._command[: self._n] - self._measured) <= error).all():
            self._fault("tracking_error", now_s, hard=True)
        for name in self._streams.stale(now_s):
            self._fault(f"stale_{name}", now_s, hard=False)
        if self._sources.is_silent(next_s):
            self._fault(f"silent_{self._sources.active}", now_s, hard=False)

    def _settle(self, now_s: float) -> None:
        """Leave STOPPING when at rest, HOLDING when nobody came; fall silent a command later, so that the last one is at rest."""
        if self._state is GateState.LATCHED and not (self._releasing and self._weight > 0):
            self._let_go |= self._releasing
            if self._disarming:
                self._armed = self._disarming = False
        if self._state is GateState.STOPPING and (not np.isfinite(self._command).all() or self._filter.at_rest[0]):
            self._enter(GateState.LATCHED if self._hard else GateState.HOLDING, self._reason, now_s)
        if self._state is GateState.HOLDING and now_s - self._since_s > self._config.resume_window_s:
            self._hard = True
            self._enter(GateState.LATCHED, self._reason, now_s)

    def _admit(self, chunk: Chunk, values: Array, now_s: float) -> None:
        """Check a readable chunk against source, time and state, and follow it.

        Raises:
            RefusedError: it is not followed.
        """
        config, age_s = self._config, now_s - chunk.stamp_s
        self._sources.check(chunk.source, now_s, commanding=self._state is GateState.RUNNING)
        if age_s > config.max_command_age_s or age_s < -config.future_tolerance_s:
            raise RefusedError(f"command_age: {age_s:.3f} s; allowed up to {config.max_command_age_s} s.")
        if age_s >= len(values) * chunk.step_s:
            raise RefusedError(f"expired: all {len(values)} rows are over, the observation is {age_s:.3f} s old.")
        if self._state in (GateState.LATCHED, GateState.STOPPING):
            raise RefusedError(f"state: the gate is {self._state} ({self._reason}).")
        if chunk.stamp_s <= self._stamp_s:
            raise RefusedError(
                f"reordered: its observation is not newer than the last one's ({chunk.stamp_s} <= {self._stamp_s})."
            )
        if chunk.novelty is not None and not chunk.novelty < config.novelty_stop:
            self._novelty = np.inf
            self._fault("novelty", now_s, hard=False)
            raise RefusedError(f"novelty: {chunk.novelty}; allowed below {config.novelty_stop}.")
        anchor = (self._goal if self._track else self._command).copy() if self._n else None
        track = Track(values, chunk.step_s, max(age_s, 0.0), anchor)
        jump = np.abs(values[track.row] - self._command)[: self._n].max(initial=0.0)
        if self._state is not GateState.RUNNING and jump > config.start_tolerance:
            raise RefusedError(f"start_tolerance: begins {jump:.3f} rad away; allowed {config.start_tolerance}.")
        self._sources.follow(chunk.source, now_s)
        self._track, self._stamp_s, self._novelty = track, chunk.stamp_s, chunk.novelty or 0.0
        self._entered_s = now_s - track.phase_s
        if self._state is not GateState.RUNNING:
            self._goal = self._command.copy()
            self._enter(GateState.RUNNING, "", now_s)

    def _obstacles(self, now_s: float) -> list[str]:
        """Name everything that is in the way of a reset."""
        config, found = self._config, []
        if self._state is not GateState.LATCHED:
            found.append(f"the gate is {self._state}, not latched")
        if self._pressed:
            found.append("the e-stop is pressed")
        if config.estop_timeout_s is not None and not now_s - self._estop_s <= config.estop_timeout_s:
            found.append(f"the e-stop's publisher was silent for {config.estop_timeout_s} s")
        for name in self._streams.stale(now_s):
            found.append(f"stream {name!r} has no observation of the last {config.stream_timeouts_s[name]} s")
        if self._sources.is_asking(now_s):
            found.append("a source is still commanding")
        inside = (self._measured >= self._low[: self._n]) & (self._measured <= self._high[: self._n])
        if not inside.all():
            found.append(f"measured positions of {[self._names[i] for i in np.flatnonzero(~inside)]} are outside the limits")
        return found

    def _fault(self, reason: str, now_s: float, *, hard: bool) -> None:
        """Begin to ramp down; a hard fault outranks a soft one, and a latched gate keeps its first reason."""
        if self._state is GateState.LATCHED or (self._state is GateState.READY and not hard):
            return
        if self._state in (GateState.STOPPING, GateState.HOLDING) and (self._hard or not hard):
            return
        self.counts[f"fault_{reason}"] += 1
        self._hard, self._track = hard, None
        self._stamp_s = max(self._stamp_s, now_s)
        self._enter(GateState.STOPPING, reason, now_s)

    def _begin(self) -> None:
        """Hold the last command if that is what the wire does, else what is measured."""
        held = self._filter.position[0]
        follows = not self._let_go and np.isfinite(held).all() and self._near(held[: self._n])
        # The elements without a measurement begin as they were, at rest, or near 0.
        start: Array = held if follows else np.append(self._measured, np.where(np.isfinite(held), held, self._rest)[self._n :])
        self._restart(start)
        self._command, self._velocity, self._let_go = start, np.zeros_like(start), False

    def _restart(self, start: Array, *, ask_guard: bool = True) -> None:
        """Begin a new sequence of commands at rest at ``start`` (a,)."""
        altered = self.filter_counts
        self._filter.reset(start[None], ask_guard=ask_guard)
        self.counts.update(altered)
        self._epoch += 1

    def _enter(self, state: GateState, reason: str, now_s: float) -> None:
        self._state, self._reason, self._since_s = state, reason, now_s
        self.events.append((now_s, state, reason))

    def _near(self, position: Array) -> bool:
        """Return whether the robot is where the command holds it; True where it cannot be measured."""
        unknown = not self._n or not np.isfinite(position).all()
        return unknown or bool((np.abs(position - self._measured) <= self._config.start_tolerance).all())
