"""Every message of an episode as it came."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from pathlib import Path

from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore


class Bag:
    """An MCAP bag that a thread of its own writes, so that no subscription waits for the disk."""

    def __init__(self, path: Path, types: Mapping[str, str]) -> None:
        """Begin the folder ``path``; ``types`` is topic -> message type."""
        self.path, self._types = path, dict(types)
        self._messages: queue.Queue[tuple[str, int, bytes] | None] = queue.Queue()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._thread = threading.Thread(target=self._write, name="bag")
        self._thread.start()

    def put(self, topic: str, received_ns: int, data: bytes) -> None:
        """Hand a serialised message over."""
        self._messages.put((topic, received_ns, data))

    def close(self) -> None:
        """Write what is queued, and the index."""
        self._messages.put(None)
        self._thread.join()

    def _write(self) -> None:
        store = get_typestore(Stores.ROS2_JAZZY)
        with Writer(self.path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
            connections = {topic: writer.add_connection(topic, name, typestore=store) for topic, name in self._types.items()}
            while (item := self._messages.get()) is not None:
                topic, received_ns, data = item
                writer.write(connections[topic], received_ns, data)
