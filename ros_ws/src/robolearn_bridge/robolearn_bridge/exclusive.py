"""One commander a robot: a lock of this machine for each command topic, and who else publishes on it in the ROS graph."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy

from robolearn.core.errors import RefusedError

LOCKS = Path("/tmp")
"""One folder for the whole machine, whatever TMPDIR says."""


class ExclusiveTopics:
    """The right to publish on a robot's command topics.

    Discovery tells of another publisher late, or never if its announcements are lost. The lock does not depend on it: the kernel
    grants it to one process of the machine and takes it back when that process ends, however it ends. Commanders of other
    machines, and those that are no gates, are known by the graph alone, which must therefore be asked again and again.
    """

    def __init__(self, node: Node, topics: Sequence[str]) -> None:
        """``topics`` are resolved names; nothing is claimed yet."""
        self._node, self._topics = node, tuple(dict.fromkeys(topics))
        self._held: list[int] = []

    def claim(self) -> None:
        """Take the locks, all or none.

        Raises:
            RefusedError: another process of this machine holds one, or another node publishes on a topic.
        """
        try:
            for topic in self._topics:
                self._held.append(_lock(lock_file(topic, self._node.context.get_domain_id()), topic, self._node))
            self.require_alone()
        except RefusedError:
            self.release()
            raise

    def release(self) -> None:
        """Give the locks back."""
        while self._held:
            os.close(self._held.pop())

    def others(self) -> list[str]:
        """Return ``<node> on <topic>`` for every publisher that the graph knows, but this node's own one."""
        found: list[str] = []
        own = self._node.get_fully_qualified_name()
        for topic in self._topics:
            if not self._node.count_publishers(topic):
                continue
            infos = self._node.get_publishers_info_by_topic(topic)
            names = [f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in infos]
            if own in names:
                names.remove(own)  # once: a second one is another node of the same name
            found += [f"{name} on {topic}" for name in names]
        return found

    def require_alone(self) -> None:
        """Refuse if the graph knows of another publisher.

        Raises:
            RefusedError: names them all.
        """
        if others := self.others():
            raise RefusedError(f"Another node commands this robot: {', '.join(others)}.")


def reliable_publishers(node: Node, topic: str) -> list[str]:
    """Return the nodes whose messages a reliable subscription to ``topic`` gets; one that publishes twice is there twice."""
    if not node.count_publishers(topic):
        return []
    infos = node.get_publishers_info_by_topic(node.resolve_topic_name(topic))
    reliable = [info for info in infos if info.qos_profile.reliability == ReliabilityPolicy.RELIABLE]
    return [f"{info.node_namespace.rstrip('/')}/{info.node_name}" for info in reliable]


def require_single(node: Node, topic: str) -> None:
    """Refuse several publishers: messages do not tell whose they are, so that one could die, or ask for a stop, unnoticed.

    Raises:
        RefusedError: names them all.
    """
    if len(names := reliable_publishers(node, topic)) > 1:
        raise RefusedError(f"Several nodes publish {topic}, of which one could fall silent unnoticed: {', '.join(names)}.")


def lock_file(topic: str, domain: int) -> Path:
    """Return the file whose lock is the right to publish on ``topic`` in a ROS domain."""
    return LOCKS / f"robolearn_commands_{domain}_{hashlib.sha256(topic.encode()).hexdigest()[:16]}.lock"


def _lock(file: Path, topic: str, node: Node) -> int:
    """Return the descriptor that holds the lock while it is open; it is not inherited by children."""
    for flags in (os.O_RDWR, os.O_RDONLY, os.O_RDWR | os.O_CREAT | os.O_EXCL, os.O_RDWR):
        try:
            descriptor = os.open(file, flags, 0o644)
            break
        except OSError as error:  # not there yet, another user's, or made by another gate in this moment
            problem = error
    else:
        raise RefusedError(f"The lock {file} of {topic} cannot be opened ({problem}), so that a second gate could not be told.")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.read(descriptor, 200).decode(errors="replace").strip()
        os.close(descriptor)
        raise RefusedError(f"Another gate of this machine commands {topic}: {holder or 'it has just begun'}.") from None
    if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{node.get_fully_qualified_name()}, process {os.getpid()}\n".encode(), 0)
    return descriptor
