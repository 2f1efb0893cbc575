"""The SO-101's node on a bus that fails, timer by timer; no process is started."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from std_msgs.msg import Float64MultiArray

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn_bridge.so101_node import So101Node


class Arm:
    """The node's callbacks on an arm that is where the test puts it, or that does not answer."""

    def __init__(self) -> None:
        self._spec = load_robot("so101")
        self._low, self._high = np.append(self._spec.position_low, -1.0), np.append(self._spec.position_high, 1.0)
        self.home = np.append(self._spec.home, 0.0)
        self.bus: np.ndarray | None = self.home
        self.wrote: list[np.ndarray] = []
        self._measured = self._goal = self.home
        self._wanted: dict[str, np.ndarray] = {}
        self._active, self._counts = True, {"reads": 0, "writes": 0, "refused": 0}
        self._driver = SimpleNamespace(read=self.read, write=self.wrote.append)
        self._states = SimpleNamespace(publish=lambda _: None)

    _require_near = So101Node._require_near

    def read(self) -> np.ndarray:
        if self.bus is None:
            raise RefusedError("no status packet")
        return self.bus

    def command(self) -> None:
        So101Node._on_command(self, "command", Float64MultiArray(data=self.home[:5].tolist()))

    def timer(self) -> None:
        So101Node._on_timer(self)


def test_a_command_from_before_a_failure_of_the_bus_is_not_written_after_it() -> None:
    # It was compared with the last position that could be read, and written when the bus was back, wherever the arm was.
    arm = Arm()
    arm.command()
    arm.timer()
    assert len(arm.wrote) == 1
    arm.bus = None
    arm.command()
    with pytest.raises(RefusedError, match="no status packet"):
        arm.timer()
    fallen = arm.home.copy()
    fallen[1] += 1.0
    arm.bus = fallen
    arm.timer()
    assert len(arm.wrote) == 1


def test_a_command_is_compared_with_what_is_read_right_before_it_is_written() -> None:
    # It was compared when it came only: the arm may be elsewhere a read later.
    arm = Arm()
    arm.command()
    fallen = arm.home.copy()
    fallen[1] += 1.0
    arm.bus = fallen
    with pytest.raises(RefusedError, match="from the measured position"):
        arm.timer()
    assert arm.wrote == []
    arm.bus = arm.home
    arm.timer()
    assert arm.wrote == []
