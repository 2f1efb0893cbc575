"""Records episodes: every message as it came into an MCAP bag, and frames with their actions into an episode store."""

from __future__ import annotations

import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rclpy.serialization import deserialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from std_srvs.srv import SetBool, Trigger
from trajectory_msgs.msg import JointTrajectory

from robolearn.core.errors import RefusedError
from robolearn.core.run import read_json
from robolearn.core.types import ACTION, Array, Episode, FeatureSpec, Spaces
from robolearn.data.store import EpisodeStore
from robolearn.deploy.codecs import FIELDS, MESSAGE_TYPES, decode, stamp_ns
from robolearn.deploy.streams import Frame, ObservationContract, Resampler, StreamsNotReadyError
from robolearn_bridge.lifecycle import SafeLifecycleNode, run
from robolearn_bridge.messages import RECORD_IMAGE_QOS, RECORD_QOS, RECORD_SENSOR_QOS, chunk_rows, message_class
from robolearn_bridge.parameters import declare, read

SENT, INTERVENTION = "action.sent", "intervention"
CHUNKS = {"policy/chunk": "policy", "teleop/chunk": "teleop", "gate_node/sent": "sent"}


@dataclass
class Recording:
    """One episode under way."""

    begun_ns: int
    """Wall clock [ns]."""
    bag: Path
    messages: queue.Queue[tuple[str, int, bytes] | None] = field(default_factory=queue.Queue)
    frames: list[Frame] = field(default_factory=list)
    rows: dict[str, list[tuple[int, Array, int]]] = field(default_factory=lambda: {name: [] for name in CHUNKS.values()})
    """Source -> (stamp, rows (h, a), nanoseconds between rows)."""

    def episode(self, spaces: Spaces, *, success: bool, task: str) -> Episode:
        """Return frames and the actions in force during their control steps.

        ``action.sent`` is the last command that the gate sent before the next frame, ``action`` what the operator or else the
        policy wanted for this one, ``intervention`` whether it was the operator.

        Raises:
            RefusedError: fewer than two frames, or no command was sent during the first of them.
        """
        if len(self.frames) < 2:
            raise RefusedError(
                f"An episode of {len(self.frames)} frames is not stored; the streams were silent or it was too short."
            )
        at = np.array([f.at_ns for f in self.frames], np.int64)
        # The last frame's step has no end: it is as long as the others.
        until = np.append(at[1:], at[-1] + round(1e9 / spaces.control_rate_hz))
        sent, has_sent = _in_force(self.rows["sent"], at, until, spaces.action_dim)
        if not has_sent.any():
            raise RefusedError("The gate sent no command during this episode (is it armed?).")
        first = int(np.argmax(has_sent))
        policy, from_policy = _in_force(self.rows["policy"], at, until, spaces.action_dim)
        teleop, from_teleop = _in_force(self.rows["teleop"], at, until, spaces.action_dim, only_within=True)
        wanted = np.where(from_teleop[:, None], teleop, np.where(from_policy[:, None], policy, sent))
        data: dict[str, Array] = {key: np.stack([f.observation[key] for f in self.frames])[first:] for key in spaces.observation}
        data |= {
            ACTION: wanted[first:].astype(np.float32),
            SENT: sent[first:].astype(np.float32),
            INTERVENTION: from_teleop[first:, None].astype(np.float32),
        }
        facts = {"wall_clock_start_ns": int(at[first]), "bag": self.bag.name, "task": task, "stamps_ns": at[first:].tolist()}
        return Episode(data, success, None, facts)


def _in_force(
    chunks: list[tuple[int, Array, int]], at: Array, until: Array, dim: int, *, only_within: bool = False
) -> tuple[Array, Array]:
    """Return for each step the row of the newest chunk stamped before its end (t, a), and whether there was one (t,).

    ``only_within`` counts chunks of the step itself alone: an operator who has let go wants nothing.
    """
    stamps = np.array([stamp for stamp, _, _ in chunks], np.int64)
    values, found = np.zeros((len(at), dim)), np.zeros(len(at), bool)
    for k, newest in enumerate(np.searchsorted(stamps, until, side="left") - 1):
        if newest < 0 or (only_within and stamps[newest] < at[k] - (until[k] - at[k])):
            continue
        stamp, rows, step_ns = chunks[newest]
        row = max(0, round((at[k] - stamp) / step_ns))
        if row < len(rows):
            values[k], found[k] = rows[row], True
    return values, found


class RecorderNode(SafeLifecycleNode):
    """Listens only: it stands in no path between a source and the robot."""

    def __init__(self) -> None:
        super().__init__("recorder_node")
        declare(self, "contract", "", "JSON file with task, spaces and contract; a bundle's bundle.json is one.", read_only=True)
        declare(self, "folder", "", "Where bags and the episode store go.", read_only=True)
        self._recording: Recording | None = None
        self._store: EpisodeStore | None = None

    def configure(self) -> None:
        """Open the store and subscribe."""
        path = Path(read(self, "contract"))
        card = read_json(path, what="description of task, spaces and contract")
        lacking = [name for name in ("task", "spaces", "contract") if name not in card]
        if lacking or not read(self, "folder"):
            raise RefusedError(f"{path} lacks {lacking}, or the parameter folder={read(self, 'folder')!r} is empty.")
        self._task, self._spaces = str(card["task"]), Spaces.from_json(card["spaces"])  # type: ignore[arg-type]
        self._contract = ObservationContract.from_json(card["contract"], where=str(path))  # type: ignore[arg-type]
        self._resampler = Resampler(self._contract, self._spaces)
        self._folder = Path(read(self, "folder"))
        extra = {SENT: self._spaces.action, INTERVENTION: FeatureSpec((1,), names=(INTERVENTION,))}
        store = self._folder / "episodes"
        if store.exists():
            self._store = EpisodeStore.open(store, "a", spaces=self._spaces, task=self._task, fidelity="robot")
        else:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._store = EpisodeStore.create(store, self._spaces, task=self._task, fidelity="robot", extra=extra)
        self._lock = threading.Lock()
        self._types: dict[str, str] = {}
        self._heard = []
        for name in self._resampler.streams:
            stream = self._contract.streams[name]
            qos = RECORD_IMAGE_QOS if "image" in FIELDS[stream.kind] else RECORD_SENSOR_QOS
            self._listen(
                stream.topic, message_class(stream.kind), MESSAGE_TYPES[stream.kind], partial(self._on_sample, name), qos
            )
        for topic, source in CHUNKS.items():
            self._listen(
                topic, JointTrajectory, "trajectory_msgs/msg/JointTrajectory", partial(self._on_chunk, source), RECORD_QOS
            )
        self._offered = [
            self.create_service(Trigger, "~/start", self.guarded(self._on_start, "start")),
            self.create_service(SetBool, "~/finish", self.guarded(self._on_finish, "finish")),
            self.create_service(Trigger, "~/discard", self.guarded(self._on_discard, "discard")),
        ]

    def deactivate(self) -> None:
        """Discard the episode under way; its bag stays."""
        self._end()

    def cleanup(self) -> None:
        """Close the store."""
        self.stop()
        for subscription in self._heard:
            self.destroy_subscription(subscription)
        for service in self._offered:
            self.destroy_service(service)

    def stop(self) -> None:
        """Close bag and store."""
        self._end()
        if self._store is not None:
            self._store.close()
            self._store = None

    def _listen(self, topic: str, message_type: type, type_name: str, then: Any, qos: Any) -> None:
        self._types[topic] = type_name

        def take(data: bytes) -> None:
            received = time.time_ns()
            recording = self._recording
            if recording is None:
                return
            recording.messages.put((topic, received, data))
            then(deserialize_message(data, message_type), received)

        self._heard.append(self.create_subscription(message_type, topic, self.guarded(take, topic), qos, raw=True))

    def _on_sample(self, name: str, message: Any, received: int) -> None:
        stream = self._contract.streams[name]
        sample = decode(stream.kind, message, stream.names)
        with self._lock:
            self._resampler.push(name, sample, stamp_ns=stamp_ns(message), received_ns=received)
            try:
                frame = self._resampler.take()
            except StreamsNotReadyError:
                return
            if frame is not None and self._recording is not None:
                self._recording.frames.append(frame)

    def _on_chunk(self, source: str, message: JointTrajectory, _: int) -> None:
        rows, times = chunk_rows(message, self._spaces.action.names)
        step = int(times[1]) if len(times) > 1 else round(1e9 / self._spaces.control_rate_hz)
        # A command of the gate holds until the next one; it has no later rows.
        recorded = (stamp_ns(message), rows, step if source != "sent" else 1 << 62)
        if self._recording is not None:
            self._recording.rows[source].append(recorded)

    def _on_start(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._state_machine.current_state[1] != "active" or self._recording is not None:
            raise RefusedError("The recorder must be active and not recording.")
        now = time.time_ns()
        with self._lock:
            self._resampler.reset()
        recording = Recording(now, self._folder / "bags" / time.strftime("%Y%m%d_%H%M%S", time.gmtime(now / 1e9)) / str(now))
        recording.bag.parent.mkdir(parents=True, exist_ok=True)
        self._writer = threading.Thread(target=_write_bag, args=(recording, dict(self._types)), name="bag")
        self._writer.start()
        self._recording = recording
        response.success, response.message = True, str(recording.bag)
        return response

    def _on_finish(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        recording = self._end()
        if recording is None or self._store is None:
            raise RefusedError("Nothing is being recorded.")
        index = self._store.append(recording.episode(self._spaces, success=request.data, task=self._task))
        response.success, response.message = True, f"episode {index} of {len(recording.frames)} frames; bag {recording.bag}"
        return response

    def _on_discard(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        response.success = self._end() is not None
        response.message = "" if response.success else "Nothing is being recorded."
        return response

    def _end(self) -> Recording | None:
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.messages.put(None)
            self._writer.join()
        return recording


def _write_bag(recording: Recording, types: dict[str, str]) -> None:
    """Write what is queued until None comes; runs in its own thread, so that no subscription waits for the disk."""
    store = get_typestore(Stores.ROS2_JAZZY)
    with Writer(recording.bag, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = {topic: writer.add_connection(topic, name, typestore=store) for topic, name in types.items()}
        while (item := recording.messages.get()) is not None:
            topic, received, data = item
            writer.write(connections[topic], received, data)


def main() -> int:
    """Run the node."""
    return run(RecorderNode)


if __name__ == "__main__":
    sys.exit(main())
