"""One person, one environment, one recorder: the control loop of teleoperation, at the environment's own rate.

The loop runs in one thread. Other threads (the page's) hand in commands and read :attr:`Session.status` and the pictures, which
are replaced as a whole and never changed.
"""

from __future__ import annotations

import math
import queue
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.core.types import Array, Observation, is_image
from robolearn.data.header import ACTION_SENT
from robolearn.teleop.device import Device, Wish, check_command
from robolearn.teleop.motion import Command, Motion
from robolearn.teleop.pace import Pace, Timing
from robolearn.teleop.recorder import Recorder, Sample, Stamp, State
from robolearn.teleop.views import LiveViews

_TIMING_EVERY = 10
"""Control steps between two looks at the regularity of all frames of the episode."""


class Autopilot(Protocol):
    """A policy that drives until a person takes over (HG-DAgger, Kelly et al. 2019, arXiv 1810.02890)."""

    def reset(self, seed: int) -> None:
        """Begin an episode."""

    def act(self, observation: Observation) -> Array:
        """Return the action (a,) of one control step from an observation with a batch axis of 1."""

    def skip(self, observation: Observation) -> None:
        """See a step that a person drove; whatever was planned is void."""


@dataclass(frozen=True)
class SessionConfig:
    """How a session runs."""

    first_seed: int = 0
    """Seed of the first episode's initial state; the next episodes count on."""
    save_on_success: bool = True
    """Save an episode as a success as soon as the environment says so; undo takes that back."""
    view_height: int = 480
    """Rows of the live picture [pixels]."""
    view_width: int = 848
    """Columns of it [pixels]."""
    view_rate_hz: float = 12.0
    """Live pictures per second of the camera that is shown large."""
    views: tuple[str, ...] = ()
    """Cameras to show."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.view_rate_hz) and self.view_rate_hz > 0):
            raise RefusedError(f"view_rate_hz={self.view_rate_hz} must be positive and finite.")


@dataclass(frozen=True)
class Message:
    """Something that the operator should know."""

    number: int
    """Counted from 1."""
    level: str
    """``info``, ``good`` or ``bad``."""
    text: str


@dataclass(frozen=True)
class EpisodeCard:
    """An episode of this store, as the page lists it."""

    position: int
    """In the store."""
    number: int
    """Number in the file's name, which never changes."""
    success: bool
    length: int
    """Steps."""
    seed: int | None
    outcome: str
    facts: dict[str, Any] = field(default_factory=dict)
    """Operator, notes, timing, result of the replay check."""


class Session:
    """Runs the loop; see the module."""

    def __init__(
        self,
        env: Env,
        motion: Motion,
        recorder: Recorder,
        devices: Sequence[Device],
        *,
        config: SessionConfig,
        wish_age_s: float,
        autopilot: Autopilot | None = None,
        cards: Callable[[], list[EpisodeCard]] = list,
    ) -> None:
        """Join the parts; the loop starts with :meth:`run` or :meth:`tick`.

        Args:
            env: one environment.
            motion: makes actions of its robot.
            recorder: records into a store of the environment's spaces.
            devices: all are listened to; the first whose clutch is closed moves the robot.
            config: see there.
            wish_age_s: age at which a wish no longer counts [s].
            autopilot: drives while nobody has taken over; None where a person always drives.
            cards: lists the store's episodes.

        Raises:
            RefusedError: more than one environment.
        """
        if env.num_envs != 1:
            raise RefusedError(f"A person drives one environment, not {env.num_envs}.")
        self._env, self._motion, self._recorder, self._devices = env, motion, recorder, list(devices)
        self._config, self._wish_age_s, self._autopilot, self._cards = config, wish_age_s, autopilot, cards
        self._rate_hz = env.spec.spaces.control_rate_hz
        self.pace = Pace(self._rate_hz)
        self._asked: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self._messages: deque[Message] = deque(maxlen=50)
        self._message_count = 0
        self._arm = 0
        self._human = autopilot is None
        self._ended = False
        self._success = False
        self._seed = self._next_seed = config.first_seed
        self._active = ""
        self._wish_lag_s = 0.0
        self.views = LiveViews(
            config.views,
            (config.view_height, config.view_width),
            config.view_rate_hz,
            lambda camera, height, width: env.render(0, camera, height, width),
        )
        """What the page shows of the world."""
        self._kept: Timing | None = None
        self._episodes: list[dict[str, Any]] = []
        self._episodes_version = 0
        self._list_episodes()
        self.quit = False
        """Whether somebody asked to end the session."""
        self.steps = 0
        """Control steps since the session began."""
        self._reset(self._seed)
        self.status: dict[str, Any] = {}
        """What the page shows; replaced once per control step."""
        self._report()

    def ask(self, command: str, **details: Any) -> None:
        """Hand in a command from any thread.

        Raises:
            RefusedError: there is no such command.
        """
        self._asked.put((check_command(command), details))

    @property
    def observation(self) -> Observation:
        """The newest observation, without a batch axis."""
        return {key: value[0] for key, value in self._observation.items()}

    def run(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Run at the control rate until :attr:`quit` or ``stop()``."""
        while not (self.quit or stop()):
            self.pace.wait()
            self.tick()

    def tick(self) -> None:
        """Make one control step."""
        seen_at = Stamp.now()
        self._obey()
        wish = self._newest_wish()
        if wish is not None and wish.engaged and self._autopilot is not None and not self._human:
            self._take_over(human=True)
        command = self._command(wish)
        # A simulated world stands still between steps, and while the recording is paused.
        if not self._ended and self._recorder.state is not State.PAUSED:
            self._record(command, seen_at)
            step = self._env.step(command.sent[None])
            self._see(step.observation)
            self.steps += 1
            if bool(step.ended[0]):
                self._finish_episode(success=bool(step.success[0]))
        self._collect()
        self.views.refresh()
        self._report()

    def close(self) -> None:
        """End the session: an unlabelled episode is kept as interrupted."""
        for device in self._devices:
            device.close()
        self._recorder.close()

    def _command(self, wish: Wish | None) -> Command:
        if self._human or self._autopilot is None:
            if self._autopilot is not None and not self._ended:
                self._autopilot.skip(self._observation)
            return self._motion.act(self.observation, wish, self._arm)
        action = self._autopilot.act(self._observation)
        spaces = self._env.spec.spaces
        return Command(action, np.clip(action, spaces.action_low, spaces.action_high).astype(np.float32))

    def _newest_wish(self) -> Wish | None:
        """Return the first engaged wish that is fresh, or the newest that is not engaged; None where all are silent."""
        now = time.monotonic()
        found: Wish | None = None
        self._active = ""
        for device in self._devices:
            try:
                wish = device.poll()
            except RefusedError as error:
                self._say("bad", f"{device.name}: {error}")
                continue
            for name in device.commands():
                self.ask(name)
            if wish is None or now - wish.stamp_s > self._wish_age_s:
                continue
            if found is None or (wish.engaged and not found.engaged):
                found, self._active = wish, device.name
                self._wish_lag_s = now - wish.stamp_s
        return found

    def _record(self, command: Command, seen_at: Stamp) -> None:
        if self._recorder.state is not State.RECORDING:
            return
        stamps = dict.fromkeys(self._observation, seen_at) | {ACTION_SENT: Stamp.now()}
        try:
            self._recorder.add(Sample(self.observation, command.action, command.sent, self._human, stamps))
        except RefusedError as error:
            self._say("bad", str(error))

    def _see(self, observation: Observation) -> None:
        self._observation = {key: np.array(value) for key, value in observation.items()}

    def _reset(self, seed: int) -> None:
        self._seed, self._ended, self._success = seed, False, False
        self._see(self._env.reset([seed]))
        self._motion.reset(self.observation)
        if self._autopilot is not None:
            self._autopilot.reset(seed)
            self._human = False

    def _finish_episode(self, *, success: bool) -> None:
        self._ended, self._success = True, success
        if self._recorder.state not in (State.RECORDING, State.PAUSED):
            self._say("good" if success else "info", "Solved, but not recorded." if success else "The time is up.")
        elif success and self._config.save_on_success:
            self._save(success=True)
        else:
            self._recorder.stop()
            self._say("info", "The episode has ended: label it, or discard it.")

    def _obey(self) -> None:
        """Carry out what was asked since the last step."""
        while True:
            try:
                command, details = self._asked.get_nowait()
            except queue.Empty:
                return
            try:
                self._carry_out(command, details)
            except RefusedError as error:
                self._say("bad", str(error))

    def _carry_out(self, command: str, details: dict[str, Any]) -> None:
        match command:
            case "success" | "failure":
                self._save(success=command == "success", notes=str(details.get("notes", "")))
            case "takeover" | "release":
                self._take_over(human=command == "takeover")
            case "gripper":
                self._motion.toggle_gripper(self._arm)
            case "arm":
                self._arm = (self._arm + 1) % len(self._motion.arms)
            case "quit":
                self.quit = True
            case _:
                self._direct(command)

    def _direct(self, command: str) -> None:
        """Carry out a command about the recording."""
        recorder = self._recorder
        match command:
            case "start":
                self._start(self._next_seed)
            case "stop":
                recorder.stop()
            case "discard" | "rerecord":
                recorder.discard()
                self._say("info", "Discarded; undo takes it back until the next start.")
                if command == "rerecord":
                    self._start(self._seed)
            case "undo":
                self._say("info", f"Undone: {recorder.undo()}.")
                self._list_episodes()
            case "pause" if recorder.state is State.PAUSED:
                recorder.resume()
            case "pause":
                recorder.pause()

    def _start(self, seed: int) -> None:
        facts = {"devices": [device.name for device in self._devices], "policy_driven": self._autopilot is not None}
        self._recorder.start(seed=seed, metadata=facts)
        self._next_seed = max(self._next_seed, seed + 1)
        self._reset(seed)
        self._say("info", f"Recording from initial state {seed}.")

    def _save(self, *, success: bool, notes: str = "") -> None:
        saved = self._recorder.save(success=success, notes=notes)
        self._ended = True
        self._say("good" if success else "info", f"{'Success' if success else 'Failure'} saved: {saved.length} steps.")

    def _take_over(self, *, human: bool) -> None:
        if self._autopilot is None:
            raise RefusedError("No policy drives here; you are in control already. Start with --policy to watch over one.")
        if human != self._human:
            self._human = human
            self._say("info", "You are in control." if human else "The policy drives.")

    def _collect(self) -> None:
        """Notice what the store has finished in the background."""
        for saved in self._recorder.finished():
            error = saved.future.exception()
            if error is not None:
                self._say("bad", str(error))
            self._list_episodes()

    def _list_episodes(self) -> None:
        # Once per change, not per control step: a thousand cards take 8 ms.
        self._episodes = [asdict(card) for card in self._cards()]
        self._episodes_version += 1

    def _say(self, level: str, text: str) -> None:
        self._message_count += 1
        self._messages.append(Message(self._message_count, level, text))

    def _report(self) -> None:
        recorder = self._recorder
        late = np.array(self.pace.lateness_s) if self.pace.lateness_s else np.zeros(1)
        if self.steps % _TIMING_EVERY == 0:
            self._kept = recorder.timing() if recorder.state is State.RECORDING else None
        kept = self._kept
        self.status = {
            "state": str(recorder.state),
            "task": self._env.spec.task,
            "rate_hz": self._rate_hz,
            "step": recorder.frames,
            "seconds": recorder.frames / self._rate_hz,
            "durable": recorder.durable_frames,
            "seed": self._seed,
            "ended": self._ended,
            "solved": self._success,
            "device": self._active,
            "arm": self._motion.arms[self._arm],
            "arms": len(self._motion.arms),
            "policy": self._autopilot is not None,
            "human": self._human,
            "interventions": recorder.interventions,
            "lag_ms": round(self._wish_lag_s * 1e3, 1),
            "late_p95_ms": round(float(np.percentile(late, 95)) * 1e3, 2),
            "missed": self.pace.missed,
            "dropped": kept.dropped if kept else 0,
            "kept_rate_hz": round(kept.rate_hz, 2) if kept else 0.0,
            "jitter_p95_ms": round(kept.jitter_p95_ms, 2) if kept else 0.0,
            "pending": recorder.pending,
            "save_ms": round(recorder.blocking_ms[-1], 2) if recorder.blocking_ms else None,
            "views": list(self._config.views),
            "stored_cameras": [key for key in self._env.spec.spaces.observation if is_image(key)],
            "messages": [asdict(m) for m in self._messages][-4:],
            "episodes": self._episodes,
            "episodes_version": self._episodes_version,
        }
