"""Devices through the libraries that read them: real events of pygame, real states of pyspacemouse, LeRobot's own base class."""

import os
import time

import numpy as np
import pygame
import pyspacemouse
import pytest

from robolearn.core.errors import RefusedError
from robolearn.teleop.devices import keys
from robolearn.teleop.devices.gamepad import Gamepad
from robolearn.teleop.devices.keyboard import Keyboard
from robolearn.teleop.devices.lerobot import LeRobotTeleoperator
from robolearn.teleop.devices.spacemouse import SpaceMouse
from robolearn.teleop.devices.web import WebDevice


@pytest.fixture(autouse=True)
def _no_display(monkeypatch):
    monkeypatch.setitem(os.environ, "SDL_VIDEODRIVER", "dummy")


def post(kind, **facts):
    pygame.event.post(pygame.event.Event(kind, **facts))


def test_keys_add_up_and_shift_slows_down():
    np.testing.assert_allclose(keys.twist_of({"w", "a", "r"}), [1, 1, 1, 0, 0, 0])
    np.testing.assert_allclose(keys.twist_of({"w", "s"}), np.zeros(6))
    np.testing.assert_allclose(keys.twist_of({"f", "q", "shift"}), [0, 0, -0.3, 0, 0, 0.3])


def test_the_keyboard_moves_while_a_key_is_down_and_lets_go_with_the_focus():
    keyboard = Keyboard()
    try:
        assert not keyboard.poll().engaged
        post(pygame.KEYDOWN, key=pygame.K_w)
        post(pygame.KEYDOWN, key=pygame.K_LSHIFT)
        found = keyboard.poll()
        assert found.engaged
        assert found.twist[0] == pytest.approx(0.3)
        assert abs(found.stamp_s - time.monotonic()) < 5
        post(pygame.KEYUP, key=pygame.K_w)
        assert not keyboard.poll().engaged
        post(pygame.KEYDOWN, key=pygame.K_r)
        assert keyboard.poll().engaged
        post(pygame.WINDOWFOCUSLOST)
        assert not keyboard.poll().engaged
        for key in (pygame.K_RETURN, pygame.K_SPACE, pygame.K_1, pygame.K_z):
            post(pygame.KEYDOWN, key=key)
        keyboard.poll()
        assert keyboard.commands() == ["start", "gripper", "success", "undo"]
        assert keyboard.commands() == []
    finally:
        keyboard.close()


def test_the_gamepad_moves_with_the_bumper_held_and_stops_when_it_is_pulled_out():
    gamepad = Gamepad()
    try:
        assert gamepad.poll() is None, "nothing is plugged in"
        pad = {"instance_id": 5}
        post(pygame.JOYAXISMOTION, axis=1, value=-1.0, **pad)
        post(pygame.JOYAXISMOTION, axis=0, value=0.05, **pad)
        post(pygame.JOYAXISMOTION, axis=4, value=0.5, **pad)
        post(pygame.JOYHATMOTION, hat=0, value=(1, 0), **pad)
        found = gamepad.poll()
        assert not found.engaged
        post(pygame.JOYBUTTONDOWN, button=5, **pad)
        found = gamepad.poll()
        assert found.engaged
        # Forward is away; half down on the right stick; the cross rolls; a twentieth to the right is within the dead band.
        np.testing.assert_allclose(found.twist, [1, 0, -0.5, 1, 0, 0])
        post(pygame.JOYAXISMOTION, axis=1, value=1.0, instance_id=9)
        assert gamepad.poll().twist[0] == 1, "another pad does not count"
        post(pygame.JOYBUTTONDOWN, button=0, **pad)
        post(pygame.JOYBUTTONDOWN, button=7, **pad)
        gamepad.poll()
        assert gamepad.commands() == ["gripper", "start"]
        post(pygame.JOYDEVICEREMOVED, **pad)
        assert gamepad.poll() is None
    finally:
        gamepad.close()


class Reports:
    """A SpaceMouse's reports, as pyspacemouse hands them out; then it is pulled out."""

    def __init__(self, *states):
        self.states = list(states)

    def read(self):
        if not self.states:
            raise OSError("no such device")
        return self.states.pop(0) if len(self.states) > 1 or self.states[0] is None else self.states[0]

    def close(self):
        pass


def test_the_spacemouse_uses_its_newest_report_and_reports_its_loss():
    def state(t, **axes):
        return pyspacemouse.SpaceMouseState(t=t, **axes)

    reports = Reports(state(1, y=1.0), state(2, y=0.5, x=-0.25, z=0.02, yaw=0.5, buttons=[1, 0]))
    mouse = SpaceMouse(reports)
    found = mouse.poll()
    # Away is y, left is -x; 0.02 is within the dead band; pyspacemouse's yaw is clockwise.
    np.testing.assert_allclose(found.twist, [0.5, 0.25, 0, 0, 0, -0.5])
    assert found.engaged
    assert mouse.commands() == ["gripper"]
    mouse.poll()
    assert mouse.commands() == [], "a button counts once while it is held"
    reports.states = [state(3, buttons=[0, 1])]
    assert not mouse.poll().engaged
    assert mouse.commands() == ["takeover"]
    reports.states = []
    with pytest.raises(RefusedError, match="SpaceMouse is gone: no such device"):
        mouse.poll()
    assert mouse.poll() is None


def test_the_page_is_obeyed_while_it_is_in_control_and_never_with_nonsense():
    page = WebDevice()
    page.owner = 1
    assert page.poll() is None
    page.take({"twist": [0, 0, 1, 0, 0, 0], "engaged": True, "rtt": 4.0, "at": time.time() * 1e3 - 10}, owner=1)
    found = page.poll()
    assert found.engaged
    assert found.twist[2] == 1
    assert page.latency_ms[0] >= 2
    assert page.input_ms[0][0] >= 10
    with pytest.raises(RefusedError, match="Another page is in control"):
        page.take({"twist": [0] * 6, "engaged": True}, owner=2)
    for bad in ({"twist": [0] * 5, "engaged": True}, {"twist": "up", "engaged": True}, {"twist": [0] * 6, "engaged": 1}, {}):
        with pytest.raises(RefusedError):
            page.take(bad, owner=1)
    with pytest.raises(RefusedError, match="finite"):
        page.take({"twist": [float("nan"), 0, 0, 0, 0, 0], "engaged": True}, owner=1)
    page.let_go()
    assert page.poll() is None


def lerobot_teleoperator(tmp_path, action):
    from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

    class Plugin(Teleoperator):
        config_class = TeleoperatorConfig
        name = "plugin"
        is_connected = False
        is_calibrated = True
        action_features = feedback_features = property(lambda self: {})

        def connect(self, calibrate=True):
            self.is_connected = True

        def calibrate(self):
            pass

        def configure(self):
            pass

        def get_action(self):
            if isinstance(action, Exception):
                raise action
            return action

        def send_feedback(self, feedback):
            pass

        def disconnect(self):
            self.is_connected = False

    return Plugin(TeleoperatorConfig(id="test", calibration_dir=tmp_path))


def test_lerobots_deltas_move_the_hand_and_its_leaders_move_joints(tmp_path):
    action = {"delta_x": 1.0, "delta_y": 0.0, "delta_z": -0.5, "gripper": 0}
    device = LeRobotTeleoperator(lerobot_teleoperator(tmp_path, action))
    found = device.poll()
    np.testing.assert_allclose(found.twist, [1, 0, -0.5, 0, 0, 0])
    assert (found.gripper, found.engaged) == (1.0, True), "0 closes"
    action |= {"delta_x": 0.0, "delta_z": 0.0, "gripper": 1}
    found = device.poll()
    assert (found.gripper, found.engaged) == (1.0, False), "1 leaves it as it is"

    arm = LeRobotTeleoperator(
        lerobot_teleoperator(tmp_path, {"shoulder_pan.pos": 90.0, "elbow.pos": -45.0, "gripper.pos": 25.0}),
        joints={"shoulder_pan": "joint1"},
    )
    found = arm.poll()
    assert found.joints == pytest.approx({"joint1": np.pi / 2, "elbow": -np.pi / 4})
    assert found.gripper == pytest.approx(0.5)  # a quarter open: 1 - 25 / 50
    arm.close()
    assert arm.poll() is None
    odd = LeRobotTeleoperator(lerobot_teleoperator(tmp_path, {"phone": 1}))
    with pytest.raises(RefusedError, match=r"gives \['phone'\]"):
        odd.poll()


def test_a_lerobot_teleoperator_that_cannot_be_read_is_refused_and_one_that_is_lost_stops_no_session(tmp_path):
    # lerobot's gamepad "connects" where none is plugged in and fails when it is read: a traceback ended the session.
    unread = lerobot_teleoperator(tmp_path, AttributeError("'NoneType' object has no attribute 'get_axis'"))
    with pytest.raises(RefusedError, match=r"plugin cannot be read \(AttributeError: .*get_axis.*\); is it plugged in\?"):
        LeRobotTeleoperator(unread)
    assert not unread.is_connected
    lost = lerobot_teleoperator(tmp_path, {"delta_x": 0.0, "delta_y": 0.0, "delta_z": 0.0})
    device = LeRobotTeleoperator(lost)

    def unplugged():
        raise ConnectionError("no answer")

    lost.get_action = unplugged
    with pytest.raises(RefusedError, match=r"cannot be read \(ConnectionError: no answer\)"):  # a session says so and goes on
        device.poll()
