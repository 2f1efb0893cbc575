"""The operator's device at its edges, message by message on a clock that is set by hand; no process is started."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sensor_msgs.msg import Joy
from std_msgs.msg import Bool

from robolearn.core.errors import RefusedError
from robolearn_bridge import teleop_node
from robolearn_bridge.messages import joint_state
from robolearn_bridge.teleop_node import TeleopNode

NAMES = ["a", "b"]
JOY = {"axes": [0, 1], "scales": [1.0, 1.0], "deadman_button": 4, "gripper_button": 0, "estop_button": 1}


class Operated:
    """A teleop node's callbacks without its topics; a leader of two joints, or a joystick."""

    def __init__(self, **parameters: Any) -> None:
        self._parameters = {"rate_hz": 20.0, "timeout_s": 0.2, "scale": 1.0, "estop_button": -1} | parameters
        self._device, self._names, self._joints = self._parameters["device"], NAMES, NAMES
        self._is_gripper, self._gripper_open, self._gripper_span = np.zeros(2, bool), np.zeros(0), np.ones(0)
        self._wish, self._wish_at, self._held_at = None, -np.inf, -np.inf
        self._held = self._pressed = self._zeroed = False
        self._leader = self._robot = self._leader_zero = self._robot_zero = np.full(2, np.nan)
        self.asked: list[list[float]] = []
        self.stops: list[bool] = []
        self._chunks = SimpleNamespace(publish=lambda message: self.asked.append(list(message.points[0].positions)))
        self._estop = SimpleNamespace(publish=lambda message: self.stops.append(message.data))

    def get_parameter(self, name: str) -> Any:
        return SimpleNamespace(value=self._parameters[name])

    def get_logger(self) -> Any:
        return SimpleNamespace(warning=lambda *_, **__: None)

    def leader(self, *position: float) -> None:
        TeleopNode._on_leader(self, joint_state(NAMES, np.array(position), 0))

    def robot(self, *position: float) -> None:
        TeleopNode._on_robot(self, joint_state(NAMES, np.array(position), 0))

    def deadman(self, held: bool) -> None:
        TeleopNode._on_deadman(self, Bool(data=held))

    def joy(self, *buttons: int, axes: tuple[float, ...] = (0.0, 0.0)) -> None:
        TeleopNode._on_joy(self, Joy(axes=axes, buttons=buttons))

    def timer(self) -> list[list[float]]:
        """Return what is asked for now."""
        count = len(self.asked)
        TeleopNode._on_timer(self)
        return self.asked[count:]

    _in_actions, _take, fault, _require_buttons = (
        TeleopNode._in_actions,
        TeleopNode._take,
        TeleopNode.fault,
        TeleopNode._require_buttons,
    )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    made = SimpleNamespace(now=100.0)
    monkeypatch.setattr(teleop_node, "time", SimpleNamespace(monotonic=lambda: made.now, time_ns=lambda: 0))
    return made


@pytest.fixture
def grip(clock: SimpleNamespace) -> Operated:
    """A leader that is held and has moved by 0.1."""
    made = Operated(device="leader")
    made.robot(0.5, 0.5)
    made.leader(0.0, 0.0)
    made.deadman(True)
    made.leader(0.0, 0.0)
    assert made.timer() == [[0.5, 0.5]]
    made.leader(0.1, 0.0)
    assert made.timer() == [[0.6, 0.5]]
    return made


@pytest.mark.parametrize("silent", ["deadman", "leader", "both"])
def test_after_a_silence_taking_hold_makes_nothing_jump(grip: Operated, clock: SimpleNamespace, silent: str) -> None:
    # A silence ended the chunks but not the grip: what came after it was measured from the old one's beginning.
    for _ in range(8):
        clock.now += 0.05
        if silent == "deadman":
            grip.leader(0.8, 0.0)
        elif silent == "leader":
            grip.deadman(True)
        asked = grip.timer()
    assert asked == []
    grip.deadman(True)
    assert grip.timer() == []  # the leader has not been read in this grip
    grip.leader(1.2, 0.0)
    grip.deadman(True)
    grip.leader(1.2, 0.0)
    assert grip.timer() == [[0.5, 0.5]]
    grip.leader(1.3, 0.0)
    assert grip.timer() == [[pytest.approx(0.6), 0.5]]


def test_after_nonsense_taking_hold_makes_nothing_jump(grip: Operated) -> None:
    # A deadman that came before the next good reading of the leader kept the beginning of the grip before the nonsense.
    grip.fault("leader/joint_states", RefusedError("degrees"))
    assert grip.timer() == []
    grip.deadman(True)
    assert grip.timer() == []
    grip.leader(2.0, 0.0)
    assert grip.timer() == [[0.5, 0.5]]


def test_a_grip_between_two_readings_of_the_leader_begins_at_the_second(grip: Operated) -> None:
    # Letting go and taking hold again between two readings was no new grip.
    grip.deadman(False)
    grip.deadman(True)
    grip.leader(2.0, 0.0)
    assert grip.timer() == [[0.5, 0.5]]


def test_an_e_stop_button_that_the_joystick_does_not_have_is_no_e_stop(clock: SimpleNamespace) -> None:
    # The heartbeat said "not pressed" for ever, whatever was pressed.
    operated = Operated(device="joy", **JOY | {"estop_button": 20})
    with pytest.raises(RefusedError, match="20 are configured"):
        operated.joy(0, 0, 0, 0, 0, 1)
    operated.timer()
    assert operated.stops == []  # the gate takes the silence for a stop


def test_an_e_stop_is_pressed_even_when_the_stick_sends_nonsense(clock: SimpleNamespace) -> None:
    # The axes were looked at first: with one that is not a number the button was not looked at.
    operated = Operated(device="joy", **JOY)
    operated.joy(0, 0, 0, 0, 0)
    with pytest.raises(RefusedError, match="not finite"):
        operated.joy(0, 1, 0, 0, 0, axes=(0.0, float("nan")))
    operated.timer()
    assert operated.stops == [True]


@pytest.mark.parametrize(
    "wrong", [{"deadman_button": -1}, {"gripper_button": -2}, {"estop_button": -2}, {"axes": [0, -1]}], ids=str
)
def test_buttons_and_axes_are_not_counted_from_the_end(wrong: dict[str, Any]) -> None:
    # -1 was the joystick's last button or axis.
    with pytest.raises(RefusedError, match="negative"):
        Operated(device="joy", **JOY | wrong)._require_buttons()
