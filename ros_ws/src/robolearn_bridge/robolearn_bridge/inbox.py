"""Subscriptions that a thread waits for by itself.

rclpy's executor gathers every publisher, service and timer of a node into a new wait set before each wait: 1 ms of Python a
message, for a node of the gate's size. What comes at the control rate is therefore waited for here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy._rclpy_pybind11 import WaitSet
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription

_LOOK_S = 0.1
"""How often the thread looks whether it is over."""


class _NotTheExecutors(CallbackGroup):
    """Keeps the executor away: even a wait for a reader's events alone returns at once while messages wait for somebody else."""

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        pass


@dataclass(frozen=True)
class _Heard:
    subscription: Subscription
    callback: Callable[[Any], object]
    newest: bool


class Inbox:
    """Hands each message to its callback, in a thread of its own or whenever :meth:`wait` is called."""

    def __init__(self, node: Node) -> None:
        """Of ``node``; nothing is heard yet."""
        self._node, self._group = node, _NotTheExecutors()
        self._heard: list[_Heard] = []
        self._events: list[Any] = []
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def hear(self, kind: type, topic: str, callback: Callable[[Any], object], qos: QoSProfile, *, newest: bool = False) -> None:
        """Subscribe; of the messages that wait already when it is their turn, ``newest`` hands on the last one only."""
        subscription = self._node.create_subscription(kind, topic, callback, qos, callback_group=self._group)
        self._heard.append(_Heard(subscription, callback, newest))
        self._events += subscription.event_handlers
        self._set = WaitSet(len(self._heard), 0, 0, 0, 0, len(self._events), self._node.context.handle)

    def start(self) -> None:
        """Wait in a thread from now on; callbacks must not raise."""
        self._thread = threading.Thread(target=self._run, name="inbox")
        self._thread.start()

    def wait(self, timeout_s: float) -> None:
        """Wait for a message and call back for everything that has come."""
        self._set.clear_entities()
        for heard in self._heard:
            self._set.add_subscription(heard.subscription.handle)
        for event in self._events:
            event.add_to_wait_set(self._set)
        self._set.wait(int(timeout_s * 1e9))
        ready = self._set.get_ready_entities("subscription")
        for heard in self._heard:
            if heard.subscription.handle.pointer in ready:
                self._take(heard)
        for event in self._events:
            if event.is_ready(self._set) and (what := event.take_data()):
                event.callback(what)  # rclpy's own, which logs a publisher that does not fit

    def stop(self) -> None:
        """End the thread, after the callback under way."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    def destroy(self) -> None:
        """Stop, and unsubscribe."""
        self.stop()
        while self._heard:
            self._node.destroy_subscription(self._heard.pop().subscription)

    def _take(self, heard: _Heard) -> None:
        subscription, last = heard.subscription, None
        for _ in range(subscription.qos_profile.depth):
            taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
            if taken is None:
                break
            if heard.newest:
                last = taken[0]
            else:
                heard.callback(taken[0])
        if last is not None:
            heard.callback(last)

    def _run(self) -> None:
        while not self._closing.is_set() and self._node.context.ok():
            self.wait(_LOOK_S)
