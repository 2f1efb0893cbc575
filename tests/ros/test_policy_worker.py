"""The policy node's worker and the chunks that it writes, without a process."""

from __future__ import annotations

import json
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from std_srvs.srv import Trigger

from robolearn.core.errors import RefusedError
from robolearn_bridge.messages import chunk_message, chunk_rows
from robolearn_bridge.policy_node import PolicyNode


class Deciding:
    """A worker whose engine does what the test says with the frames that it is given."""

    def __init__(self, act: Any) -> None:
        self._wake, self._engine_lock = threading.Condition(), threading.Lock()
        self._acting, self._closing, self._episode, self._longest = True, False, 0, 8
        self._pending: list[Any] = []
        self._period_ns = 50_000_000
        self._failure = self._last_refusal = ""
        self._counts = {"chunks": 0, "frames_skipped": 0, "frames_refused": 0}
        self._engine = SimpleNamespace(act=act, novelty=None, reset=lambda _: None)
        self._bundle = SimpleNamespace(spaces=SimpleNamespace(action=SimpleNamespace(names=("a",))), policy_seed=0, name="bundle")
        self._resampler = self._steps = SimpleNamespace(reset=lambda: None)
        self._state_machine = SimpleNamespace(current_state=(3, "active"))
        self.published: list[Any] = []
        self._chunks = SimpleNamespace(publish=self.published.append)

    _work, _decide, _set_acting, _reset_engine = (
        PolicyNode._work,
        PolicyNode._decide,
        PolicyNode._set_acting,
        PolicyNode._reset_engine,
    )

    def get_logger(self) -> Any:
        return SimpleNamespace(error=lambda _: None)

    def get_parameter(self, _: str) -> Any:
        return SimpleNamespace(value=0)

    def start(self) -> Any:
        return PolicyNode._on_start(self, Trigger.Request(), Trigger.Response())

    def decide(self) -> None:
        """Let the worker take one frame, and end it."""
        self._pending.append((1, SimpleNamespace(at_ns=7, observation={})))
        thread = threading.Thread(target=self._work)
        thread.start()
        while self._pending:
            time.sleep(0.001)
        with self._wake:
            self._closing = True
            self._wake.notify()
        thread.join(10)
        assert not thread.is_alive()
        self._closing = False


def test_a_policy_that_fails_is_said_to_have_failed_and_starts_only_after_a_reset() -> None:
    # The worker's thread ended without a word, and the node said "acting" for ever.
    node = Deciding(lambda _: np.zeros(3)[7])
    node.decide()
    assert node._failure.startswith("the policy failed (IndexError")
    assert not node._acting
    with pytest.raises(RefusedError, match="the policy failed"):
        node.start()
    node._reset_engine()
    assert node.start().success
    assert node._acting


def test_a_chunk_of_one_row_says_for_how_long_it_holds() -> None:
    # Its times do not, and the gate took the row for one of its own periods, a fifth of the policy's step.
    for rows, tag in ((1, {"source": "policy", "step_s": 0.05}), (2, {"source": "policy"})):
        node = Deciding(lambda _, rows=rows: np.zeros((rows, 1), np.float32))
        node.decide()
        assert json.loads(node.published[0].header.frame_id) == tag


@pytest.mark.parametrize(("times_ns", "even"), [((0, 5, 10), True), ((0, 100_000_000, 199_999_999), True), ((0, 5, 20), False)])
def test_a_chunks_rows_come_in_equal_steps(times_ns: tuple[int, ...], even: bool) -> None:
    # The gate took the first step for all of them.
    message = chunk_message(np.zeros((3, 1)), ("a",), stamp_ns=0, period_ns=1, source="{}")
    for point, time_ns in zip(message.points, times_ns, strict=True):
        point.time_from_start.nanosec = time_ns
    if even:
        np.testing.assert_array_equal(chunk_rows(message, ("a",))[1], times_ns)
    else:
        with pytest.raises(RefusedError, match="equal steps"):
            chunk_rows(message, ("a",))
