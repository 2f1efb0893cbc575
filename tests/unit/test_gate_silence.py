"""How a gate falls silent and how it begins to speak again: never with a jump, never while the robot moves."""

import numpy as np
import pytest
from test_gate import DT, HOME, SPEC, Rig

from robolearn.core.errors import RefusedError
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig, GateState


def dry_run(rig, *, way=0.14):
    """Let a policy lead the preview away from a robot to which nothing is sent, within the tolerance of a start."""
    rig.run(0.05)
    rig.gate.reset(now_s=rig.now_s)
    rig.policy, rig.goal = True, HOME + way
    command = rig.run(2.0)
    assert np.abs(command.position[:7] - HOME).max() == pytest.approx(way, abs=1e-3)
    rig.policy = False
    rig.gate.stop("operator", now_s=rig.now_s)
    rig.run(1.0)


def assert_holds(rig, seconds=0.5):
    """The gate sends, and nothing but where the robot is."""
    stood = rig.position.copy()
    count = len(rig.sent)
    rig.run(seconds)
    assert all(command.send for command in rig.sent[count:])
    for command in rig.sent[count:]:
        np.testing.assert_array_equal(command.position[:7], stood)


def test_arming_after_a_dry_run_sends_nothing_before_a_reset_which_holds_the_robot():
    # The command of the dry run, up to 0.2 rad from the robot, was sent as the first one, without a ramp.
    rig = Rig()
    dry_run(rig)
    rig.gate.arm()
    assert not rig.run(0.3).send
    rig.gate.reset(now_s=rig.now_s)
    assert_holds(rig)


def test_arming_a_gate_that_is_ready_begins_at_the_measured_position():
    # A gate that was ready in a dry run sent what it had found at its reset, wherever the robot was by then.
    rig = Rig()
    rig.run(0.05)
    rig.gate.reset(now_s=rig.now_s)
    rig.position = HOME + 0.15
    rig.run(0.3)
    rig.gate.arm()
    assert_holds(rig)


def test_a_gate_that_is_ready_but_blind_is_not_armed():
    # With joint states that had ended it would have sent where the robot was long ago.
    rig = Rig()
    rig.run(0.05)
    rig.gate.reset(now_s=rig.now_s)
    rig.run(0.1)
    rig.sensor = False
    rig.run(0.5)
    with pytest.raises(RefusedError, match="joint_states"):
        rig.gate.arm()
    assert not rig.run(0.1).send


@pytest.mark.parametrize("way", ["disarm", "release"])
def test_a_robot_that_was_moved_during_a_silence_is_held_where_it_is(way):
    # After a silence a reset went on from the command before it if that lay within 0.2 rad of the robot.
    rig = Rig(GateConfig(weight_ramp_s=0.2))
    rig.start()
    rig.policy = False
    getattr(rig.gate, way)(now_s=rig.now_s)
    assert not rig.run(1.5).send
    rig.position = HOME + 0.15
    rig.run(0.3)
    rig.gate.arm()
    assert not rig.run(0.1).send
    rig.gate.reset(now_s=rig.now_s)
    assert_holds(rig)


def test_arming_after_disarming_lasts():
    # Arming again was granted and undone at the next tick, as the gate was still disarming.
    rig = Rig()
    rig.start()
    rig.policy = False
    rig.gate.disarm(now_s=rig.now_s)
    rig.run(1.0)
    assert not rig.gate.armed
    rig.gate.arm()
    rig.run(0.1)
    assert rig.gate.armed
    rig.gate.reset(now_s=rig.now_s)
    assert rig.run(0.1).send


@pytest.mark.parametrize("ramp_s", [0.02, 0.5])
@pytest.mark.parametrize("running_s", [0.0, 0.1, 0.3])
def test_a_release_is_silent_only_after_a_command_at_rest_of_weight_0(ramp_s, running_s):
    # Silence came with weight 0, while the robot still moved: an output of velocities went on with the last one.
    rig = Rig(GateConfig(weight_ramp_s=ramp_s))
    rig.start()
    rig.run(running_s)
    rig.policy = False
    assert np.abs(rig.sent[-1].velocity).max() > 0.05
    rig.gate.release(now_s=rig.now_s)
    assert not rig.run(2.0).send
    last = [command for command in rig.sent if command.send][-1]
    assert last.weight == 0
    assert last.state is GateState.LATCHED
    np.testing.assert_array_equal(last.velocity, 0)


def test_disarming_ramps_the_weight_out_where_the_driver_blends():
    # The last message of a disarmed arm_sdk held the arms with weight 1, and the first one after the next arming began at 0.
    rig = Rig(GateConfig(weight_ramp_s=0.5, blends=True))
    rig.start()
    rig.policy = False
    assert rig.run(1.0).weight == 1
    count = len(rig.sent)
    rig.gate.disarm(now_s=rig.now_s)
    assert not rig.run(1.5).send
    weights = [command.weight for command in rig.sent[count:] if command.send]
    assert weights[-1] == 0
    assert np.abs(np.diff([1.0, *weights])).max() <= DT / 0.5 + 1e-9
    rig.gate.arm()
    rig.gate.reset(now_s=rig.now_s)
    assert rig.run(DT).weight <= DT / 0.5 + 1e-9


def test_a_late_tick_beside_a_wall_goes_on_from_where_the_robot_is():
    # The guard with its margin forbade to begin again there: every tick raised from then on, and nothing could stop the robot.
    walled = False
    rig = Rig()
    rig.gate = CommandGate.for_robot(SPEC, GateConfig(), guard=lambda way: np.full(way.shape[1], not walled))
    rig.start()
    walled = True
    rig.run(DT)
    before = rig.sent[-1]
    assert np.abs(before.velocity).max() > 0.05
    rig.tick_number += 15
    command = rig.run(DT)
    assert command.reason == "tick_gap"
    np.testing.assert_array_equal(command.position, before.position)
    rig.policy = False
    rig.gate.stop("operator", now_s=rig.now_s)
    rig.run(0.5)
    assert rig.gate.state is GateState.LATCHED
    with pytest.raises(RefusedError, match="guard does not allow"):  # only a reset asks it
        rig.gate.reset(now_s=rig.now_s)


def test_a_tick_that_fails_once_does_not_fail_for_ever(monkeypatch):
    # The tick's time was kept only after what failed, so that each later one found the same gap and failed as well.
    rig = Rig()
    rig.start()
    with monkeypatch.context() as patch:
        patch.setattr(rig.gate, "_restart", lambda *_, **__: 1 / 0)
        rig.tick_number += 50
        with pytest.raises(ZeroDivisionError):
            rig.run(DT)
    rig.gate.stop("operator", now_s=rig.now_s)
    rig.policy = False
    assert rig.run(1.0).state is GateState.LATCHED


def test_a_tracking_error_that_could_never_be_seen_is_refused():
    # Commands stay within 0.2 rad of the measured position, so that this parameter switched its watchdog off without a word.
    with pytest.raises(RefusedError, match=r"max_tracking_error=0.2 would never be reached"):
        CommandGate.for_robot(SPEC, GateConfig(max_tracking_error=0.2))
    CommandGate.for_robot(SPEC, GateConfig(max_tracking_error=0.19))
