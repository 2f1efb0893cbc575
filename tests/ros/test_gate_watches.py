"""What the gate's node watches itself, without a process: ticks cannot tell where they wait for the one that is watched."""

from __future__ import annotations

import threading
import time
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from robolearn.core.errors import RefusedError
from robolearn.deploy.gate_config import GateState
from robolearn_bridge.gate_node import GateNode


class Watching:
    """A gate's node whose gate is running; each of its watches looks once."""

    def __init__(self, *, state_age_s: float = 0.0, chunk_age_s: float = 0.0) -> None:
        now, looks = time.monotonic(), iter([False, True])
        self._pending_at, self._answered_at, self._heartbeat_at = now - state_age_s, now - chunk_age_s, now
        self._closing = SimpleNamespace(wait=lambda _: next(looks))
        self.stopped: list[str] = []
        self._lock, self._loop = nullcontext(), threading.current_thread()
        self._gate = SimpleNamespace(state=GateState.RUNNING, stop=lambda reason, now_s: self.stopped.append(reason))
        self._problem, self._faulted = "", 0

    def get_parameter(self, name: str) -> Any:
        values = {"policy_timeout_s": 0.25, "state_timeout_s": 0.1, "estop_timeout_s": 0.5}
        return SimpleNamespace(value=values[name])

    def _now_s(self) -> float:
        return 0.0

    def _tick_lockstep(self, *, publish: bool) -> None:
        assert publish


@pytest.mark.parametrize(
    ("ages", "stopped"),
    [({}, []), ({"state_age_s": 0.4}, ["silent"]), ({"chunk_age_s": 0.6}, ["silent"])],
    ids=["nothing", "simulator", "policy"],
)
def test_in_lockstep_simulator_and_policy_are_watched_by_the_wall(ages: dict[str, float], stopped: list[str]) -> None:
    # Only the states' age was looked at: of a robot that goes on publishing them, a policy that had ended was not missed.
    node = Watching(**ages)
    GateNode._watch_lockstep(node)
    assert node.stopped == stopped


def test_a_refusal_in_a_tick_stops_the_robot() -> None:
    # It was taken for a message that is not used, and the loop went on refusing, whoever asked for a stop.
    node = Watching()

    def refuse(_: float) -> None:
        raise RefusedError("The guard does not allow to start there.")

    node._gate.tick = refuse
    with pytest.raises(RuntimeError, match="guard does not allow") as error:
        GateNode._next(node)
    GateNode.fault(node, "control loop", error.value)
    assert node.stopped == ["exception in control loop"]
    GateNode.fault(node, "policy/chunk", RefusedError("a bad message"))
    assert len(node.stopped) == 1
