"""Records episodes: every message as it came into an MCAP bag, and frames with their actions into an episode store.

The store's part is the recorder of teleoperation: every step is in the store's journal while the episode goes on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.serialization import deserialize_message
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robolearn.core.errors import RefusedError
from robolearn.core.run import read_json
from robolearn.core.types import Spaces
from robolearn.data.header import live_extra
from robolearn.data.store import EpisodeStore
from robolearn.deploy.chunk import StepClock
from robolearn.deploy.codecs import FIELDS, MESSAGE_TYPES, decode, stamp_ns
from robolearn.deploy.streams import ObservationContract, Resampler, StreamsNotReadyError
from robolearn.teleop.recorder import Recorder, RecorderConfig, Sample, State
from robolearn_bridge.bag import Bag
from robolearn_bridge.diagnostics import report
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import (
    COMMAND_QOS,
    RECORD_IMAGE_QOS,
    RECORD_QOS,
    RECORD_SENSOR_QOS,
    chunk_rows,
    message_class,
)
from robolearn_bridge.parameters import declare, read, read_choice
from robolearn_bridge.steps import HOLDS, StepJoiner

CHUNKS = {"policy/chunk": "policy", "teleop/chunk": "teleop", "gate_node/sent": "sent"}
FIDELITY = "robot"
LOOK_S = 0.05
"""How often steps whose end has come are looked at; see :mod:`robolearn_bridge.steps`."""
FLUSH_S = 0.4
"""How long a step may wait for its sync to the disk to begin: with the wait for its command less than 1 s in all."""
_NEVER_S = 1e9


class RecorderNode(SafeLifecycleNode):
    """Listens only: it stands in no path between a source and the robot."""

    def __init__(self) -> None:
        super().__init__("recorder_node")
        declare(self, "contract", "", "JSON file with task, spaces and contract; a bundle's bundle.json is one.", read_only=True)
        declare(self, "folder", "", "Where bags and the episode store go.", read_only=True)
        declare(self, "operator", "", "Who is at the controls; kept with every episode.", read_only=True)
        declare(
            self, "sync", "realtime", "'realtime', or 'lockstep' with a simulator that waits for each command.", read_only=True
        )
        declare(self, "max_stream_age_s", 0.5, "Time without a whole frame that pauses the recording [s].", read_only=True)
        declare(self, "min_free_mib", 256.0, "Space that recording leaves on the disk [MiB].", read_only=True)
        # The executor's thread and, at the end of the process, the main thread.
        self._lock = threading.RLock()
        self._bag: Bag | None = None
        self._store: EpisodeStore | None = None
        self._problem = ""

    def configure(self) -> None:
        """Open the store and subscribe."""
        path = Path(read(self, "contract"))
        card = read_json(path, what="description of task, spaces and contract")
        lacking = [name for name in ("task", "spaces", "contract") if name not in card]
        if lacking or not read(self, "folder"):
            raise RefusedError(f"{path} lacks {lacking}, or the parameter folder={read(self, 'folder')!r} is empty.")
        self._task, self._spaces = str(card["task"]), Spaces.from_json(card["spaces"])  # type: ignore[arg-type]
        self._contract = ObservationContract.from_json(card["contract"], where=str(path))  # type: ignore[arg-type]
        lockstep = read_choice(self, "sync", ("lockstep", "realtime")) == "lockstep"
        self._resampler = Resampler(self._contract, self._spaces)
        self._steps = StepClock(1 / self._spaces.control_rate_hz, lockstep=lockstep)
        self._folder = Path(read(self, "folder"))
        # In lockstep silence is nothing unusual.
        self._patience_s = _NEVER_S if lockstep else read(self, "max_stream_age_s")
        config = RecorderConfig(read(self, "operator"), FLUSH_S, read(self, "min_free_mib"), self._patience_s)
        self._store = self._open_store()
        try:
            self._recorder = Recorder(self._store, config)
        except RefusedError:
            self._store.close()
            self._store = None
            raise
        for rescued in self._store.recovered:
            self.get_logger().warning(f"an earlier recorder was ended in mid-episode: {rescued}")
        self._begin()
        self._listen_to_all()
        services = (
            (Trigger, "start", self._on_start),
            (SetBool, "finish", self._on_finish),
            (Trigger, "discard", self._on_discard),
            (SetBool, "pause", self._on_pause),
            (Trigger, "undo", self._on_undo),
        )
        self._offered = [self.create_service(kind, f"~/{name}", self.guarded(call, name)) for kind, name, call in services]
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", COMMAND_QOS)
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._timers = [
            self.create_timer(LOOK_S, self.guarded(self._on_look, "recording"), clock=steady),
            self.create_timer(1.0, self.guarded(self._report, "diagnostics"), clock=steady),
        ]

    def deactivate(self) -> None:
        """Keep the episode under way as interrupted."""
        self._end()

    def cleanup(self) -> None:
        """Close the store."""
        self.stop()
        for timer in self._timers:
            self.destroy_timer(timer)
        for subscription in self._heard:
            self.destroy_subscription(subscription)
        for service in self._offered:
            self.destroy_service(service)
        self.destroy_publisher(self._diagnostics)

    def stop(self) -> None:
        """Keep the episode under way as interrupted; close bag and store."""
        with self._lock:
            self._end()
            if self._store is not None:
                self._store.close()
                self._store = None

    def fault(self, where: str, error: BaseException) -> None:
        """Say what was not recorded, or not done."""
        self._problem = f"{where}: {error}"
        self.get_logger().warning(self._problem, throttle_duration_sec=1.0)

    def _open_store(self) -> EpisodeStore:
        path = self._folder / "episodes"
        if path.exists():
            return EpisodeStore.open(path, "a", spaces=self._spaces, task=self._task, fidelity=FIDELITY)
        self._folder.mkdir(parents=True, exist_ok=True)
        return EpisodeStore.create(path, self._spaces, task=self._task, fidelity=FIDELITY, extra=live_extra(self._spaces))

    def _listen_to_all(self) -> None:
        self._types: dict[str, str] = {}
        self._heard: list[Any] = []
        for name in self._resampler.streams:
            stream = self._contract.streams[name]
            qos = RECORD_IMAGE_QOS if "image" in FIELDS[stream.kind] else RECORD_SENSOR_QOS
            then = partial(self._on_sample, name)
            self._listen(stream.topic, message_class(stream.kind), MESSAGE_TYPES[stream.kind], then, qos)
        for topic, source in CHUNKS.items():
            then = partial(self._on_chunk, source)
            self._listen(topic, JointTrajectory, "trajectory_msgs/msg/JointTrajectory", then, RECORD_QOS)

    def _listen(self, topic: str, message_type: type, type_name: str, then: Any, qos: Any) -> None:
        self._types[topic] = type_name

        def take(data: bytes) -> None:
            received = time.time_ns()
            with self._lock:
                if self._bag is None:
                    return
                self._bag.put(topic, received, data)
                then(deserialize_message(data, message_type), received)

        self._heard.append(self.create_subscription(message_type, topic, self.guarded(take, topic), qos, raw=True))

    def _on_sample(self, name: str, message: Any, received: int) -> None:
        stream = self._contract.streams[name]
        sample = decode(stream.kind, message, stream.names)
        self._resampler.push(name, sample, stamp_ns=stamp_ns(message), received_ns=received)
        try:
            frame = self._resampler.take()
        except StreamsNotReadyError:
            return
        # A driver may be faster than the control steps.
        if frame is not None and self._recorder.state is State.RECORDING and self._steps.advance(frame.at_ns):
            self._joiner.push_frame(frame, offset_ns=_offset_ns())
            self._frame_at = time.monotonic()

    def _on_chunk(self, source: str, message: JointTrajectory, _: int) -> None:
        rows, times = chunk_rows(message, self._spaces.action.names)
        step_ns = int(times[1]) if len(times) > 1 else self._joiner.period_ns
        self._joiner.push_chunk(
            source,
            rows,
            stamp_ns=stamp_ns(message),
            step_ns=HOLDS if source == "sent" else step_ns,
            offset_ns=_offset_ns(),
        )

    def _on_look(self) -> None:
        """Record the steps that are complete; pause where no frame comes any more."""
        with self._lock:
            for saved in self._recorder.finished():
                error = saved.future.exception()
                if error is not None:
                    self.fault("save", error)
            if self._bag is None or self._recorder.state is not State.RECORDING:
                return
            self._add(self._joiner.look())
            silent_s = time.monotonic() - self._frame_at if self._frame_at is not None else 0.0
            if silent_s > self._patience_s and self._recorder.state is State.RECORDING:
                self._add(self._joiner.flush())
                ages = self._resampler.ages_s(time.time_ns())
                self._frame_at = None
                self._recorder.lose(max(ages, key=lambda name: ages[name]), silent_s)

    def _add(self, samples: Iterable[Sample]) -> None:
        for sample in samples:
            self._recorder.add(sample)

    def _begin(self) -> None:
        """Await the next frame as one that has none before it."""
        self._resampler.reset()
        self._steps.reset()
        self._joiner = StepJoiner(round(1e9 / self._spaces.control_rate_hz))
        self._frame_at: float | None = None

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            if self._state_machine.current_state[1] != "active" or self._bag is not None:
                raise RefusedError("The recorder must be active and not recording.")
            now = time.time_ns()
            path = self._folder / "bags" / time.strftime("%Y%m%d_%H%M%S", time.gmtime(now / 1e9)) / str(now)
            self._recorder.start(metadata={"bag": str(path.relative_to(self._folder)), "wall_clock_start_ns": now})
            self._begin()
            self._bag = Bag(path, dict(self._types))
        response.success, response.message = True, str(path)
        return response

    def _on_finish(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        with self._lock:
            self._require_episode()
            bag = self._close_bag()
            if self._recorder.frames == 0:
                self._recorder.discard()
                raise RefusedError(
                    "Nothing is stored: there was no frame with a command of the gate (is it armed, do all streams come?)."
                )
            saved = self._recorder.save(success=request.data)
        response.success = True
        response.message = f"episode of {saved.length} frames, {'success' if saved.success else 'failure'}; bag {bag}"
        return response

    def _on_discard(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            self._require_episode()
            self._close_bag()
            self._recorder.discard()
        response.success, response.message = True, "undo takes it back until the next start"
        return response

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        with self._lock:
            if request.data:
                if self._recorder.state is State.RECORDING:
                    self._add(self._joiner.flush())
                self._recorder.pause()
            else:
                self._recorder.resume()
                self._begin()
        response.success = True
        return response

    def _on_undo(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._lock:
            response.message = self._recorder.undo()
        response.success = True
        return response

    def _require_episode(self) -> None:
        """Let an episode that is under way, stopped by a full disk, or brought back by undo pass."""
        if self._recorder.state in (State.IDLE, State.DISCARDED):
            raise RefusedError("Nothing is being recorded.")

    def _close_bag(self) -> Path | str:
        """Record what is still open and end the bag; return where it lies."""
        try:
            if self._recorder.state is State.RECORDING:
                self._add(self._joiner.flush())
        finally:
            bag, self._bag = self._bag, None
            if bag is not None:
                bag.close()
        return bag.path if bag is not None else "closed before"

    def _end(self) -> None:
        with self._lock:
            if self._store is None:
                return
            try:
                self._close_bag()
            finally:
                self._recorder.close()

    def _report(self) -> None:
        recorder = self._recorder
        values = {
            "state": str(recorder.state),
            "frames": recorder.frames,
            "durable frames": recorder.durable_frames,
            "interventions": recorder.interventions,
            "being stored": recorder.pending,
        }
        problem, self._problem = self._problem, ""
        self._diagnostics.publish(report(self, problem, values))


def _offset_ns() -> int:
    """Return the monotonic clock less the wall clock."""
    return time.monotonic_ns() - time.time_ns()


def main() -> int:
    """Run the node."""
    return run(RecorderNode)


if __name__ == "__main__":
    sys.exit(main())
