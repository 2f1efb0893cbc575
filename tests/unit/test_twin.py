"""Twins take what drivers take, give what they publish, and fail as asked."""

import numpy as np
import pytest

import hardware
from robolearn.core.errors import RefusedError
from robolearn.deploy.chunk import Chunk
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig, GateState
from robolearn.deploy.kinematics import WorkspaceGuard
from sim_envs.twin import JointFault, RobotTwin, TwinFaults

TWINS = ("panda", "ur5e", "gen3", "gr1", "g1")


@pytest.mark.parametrize("name", TWINS)
def test_it_stands_at_home_against_gravity_and_goes_where_it_is_sent(name):
    spec = hardware.load_robot(name)
    twin = RobotTwin(spec)
    twin.advance(0.5)
    np.testing.assert_allclose(twin.position, spec.home, atol=1e-3)
    twin.send_position(np.array(spec.home) + 0.05, now_s=0.5)
    twin.advance(1.2)
    np.testing.assert_allclose(twin.position, np.array(spec.home) + 0.05, atol=2e-3)
    np.testing.assert_array_equal(twin.reading(1.2).position, twin.position)


def test_a_velocity_goes_on_for_ever_as_the_real_controller_lets_it():
    twin = RobotTwin(hardware.load_robot("ur5e"))
    start = twin.position
    twin.send_velocity(np.full(6, 0.1), now_s=0.0)
    twin.advance(2.0)
    np.testing.assert_allclose(twin.position - start, 0.2, atol=0.01)
    np.testing.assert_allclose(twin.reading(2.0).velocity, 0.1, atol=1e-3)


def test_a_trajectory_is_followed_in_time_and_its_past_skipped():
    spec = hardware.load_robot("panda")
    twin, home = RobotTwin(spec), np.array(spec.home)
    twin.advance(1.0)
    points = home + np.array([[9.0], [0.1], [0.1]])  # the first point, 9 rad away, is already past
    twin.send_trajectory(points, times_s=[0.9, 1.5, 2.0], now_s=1.0)
    twin.advance(1.25)
    # Half of the way from 1.0 s to 1.5 s; the servo lags by 2 damping / stiffness = 0.067 s of 0.2 rad/s.
    np.testing.assert_allclose(twin.position - home, 0.05 - 0.2 * 60 / 900, atol=0.004)
    twin.advance(2.5)
    np.testing.assert_allclose(twin.position - home, 0.1, atol=1e-3)
    with pytest.raises(RefusedError, match="ended"):
        twin.send_trajectory(points, times_s=[0.1, 0.2, 0.3], now_s=2.5)
    with pytest.raises(RefusedError, match="increasing"):
        twin.send_trajectory(points, times_s=[3.0, 2.9, 3.1], now_s=2.5)


def test_delays_and_losses():
    spec = hardware.load_robot("panda")
    twin = RobotTwin(spec, faults=TwinFaults(command_delay_s=0.1, state_delay_s=0.05))
    twin.send_position(np.array(spec.home) + 0.1, now_s=0.0)
    twin.advance(0.1)
    np.testing.assert_allclose(twin.position, spec.home, atol=1e-4)
    twin.advance(0.3)
    assert twin.reading(0.3).stamp_s == pytest.approx(0.25)
    assert np.abs(twin.position - spec.home).min() > 0.05
    deaf = RobotTwin(spec, faults=TwinFaults(command_loss=1.0, state_loss=1.0))
    deaf.send_position(np.array(spec.home) + 0.1, now_s=0.0)
    deaf.advance(0.3)
    np.testing.assert_allclose(deaf.position, spec.home, atol=1e-4)
    assert deaf.reading(0.3) is None
    lossy = RobotTwin(spec, faults=TwinFaults(state_loss=0.3), seed=1)
    lost = sum(lossy.reading(0.0) is None for _ in range(1000))
    assert 250 < lost < 350


def test_noise_offset_freeze_stuck_and_limp():
    spec = hardware.load_robot("panda")
    home = np.array(spec.home)
    noisy = RobotTwin(spec, faults=TwinFaults(position_noise=0.01))
    measured = np.array([noisy.reading(0.0).position for _ in range(400)])
    np.testing.assert_allclose(measured.std(axis=0), 0.01, rtol=0.2)
    faults = TwinFaults(joints=(JointFault("panda_joint1", "stuck", 0.1), JointFault("panda_joint7", "offset", 0.1, 0.2)))
    twin = RobotTwin(spec, faults=faults)
    twin.advance(0.2)
    twin.send_position(home + 0.1, now_s=0.2)
    twin.advance(1.0)
    # joint 4 is between the others: it moves; joint 1's brake is closed; joint 7's encoder reads 0.2 rad more.
    np.testing.assert_allclose(twin.position[[0, 3, 6]] - home[[0, 3, 6]], [0, 0.1, 0.1], atol=2e-3)
    np.testing.assert_allclose(twin.reading(1.0).position[[0, 6]] - home[[0, 6]], [0, 0.3], atol=2e-3)
    limp = RobotTwin(spec, faults=TwinFaults(joints=(JointFault("panda_joint2", "limp"),)))
    limp.advance(0.5)
    assert abs(limp.position[1] - home[1]) > 0.05
    frozen = RobotTwin(spec, faults=TwinFaults(frozen_since_s=0.1))
    frozen.send_position(home + 0.1, now_s=0.0)
    frozen.advance(0.5)
    assert frozen.reading(0.5).stamp_s == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TwinFaults(command_loss=1.5), "command_loss"),
        (lambda: TwinFaults(state_delay_s=-1), "state_delay_s"),
        (lambda: TwinFaults(joints=(JointFault("panda_joint1", "stick"),)), "Did you mean 'stuck'"),
        (
            lambda: RobotTwin(hardware.load_robot("panda"), faults=TwinFaults(joints=(JointFault("joint1", "limp"),))),
            "panda_joint1",
        ),
        (lambda: RobotTwin(hardware.load_robot("so101")), "no twin"),
        (lambda: RobotTwin(hardware.load_robot("panda")).send_position(np.full(7, np.nan), now_s=0.0), "finite"),
        (lambda: RobotTwin(hardware.load_robot("panda")).send_velocity(np.zeros(6), now_s=0.0), "7 finite"),
    ],
)
def test_bad_input_is_named(make, words):
    with pytest.raises(RefusedError, match=words):
        make()


def reachable(spec, goal):
    inner = np.array(spec.position_low) + spec.position_margin, np.array(spec.position_high) - spec.position_margin
    return np.clip(np.array(spec.home) + goal, *inner)


def drive(twin, config, *, seconds, guard=None, goal=0.15):
    """Run a gate at its rate against a twin: chunks at 20 Hz towards ``goal`` from home; return the gate and what it sent."""
    spec = twin.spec
    gate = CommandGate.for_robot(spec, config, guard=guard)
    gate.arm()
    target = np.append(reachable(spec, goal), np.zeros(len(spec.grippers)))
    sent = []
    for k in range(round(seconds * spec.control_rate_hz)):
        now_s = k / spec.control_rate_hz
        twin.advance(now_s)
        reading = twin.reading(now_s)
        if reading is not None:
            gate.on_measured(reading.position, stamp_s=reading.stamp_s, now_s=now_s)
        if k == 2:
            gate.reset(now_s=now_s)
        if k > 2 and k % 5 == 0:
            gate.on_chunk(Chunk(gate.names, np.tile(target, (20, 1)), now_s, 0.05), now_s=now_s)
        command = gate.tick(now_s)
        if command.send:
            twin.send_position(command.position[: spec.dim], now_s=now_s)
        sent.append(command)
    return gate, sent


@pytest.mark.parametrize("name", TWINS)
def test_gate_and_twin_reach_the_goal_over_a_line_with_delay_loss_and_noise(name):
    spec = hardware.load_robot(name)
    faults = TwinFaults(command_delay_s=0.01, state_delay_s=0.01, command_loss=0.05, state_loss=0.05, position_noise=0.002)
    twin = RobotTwin(spec, faults=faults)
    guard = WorkspaceGuard(spec)
    gate, sent = drive(twin, GateConfig(estop_timeout_s=None), seconds=2.5, guard=guard, goal=0.1)
    assert sent[-1].state is GateState.RUNNING
    np.testing.assert_allclose(twin.position, reachable(spec, 0.1), atol=0.01)
    assert not guard.counts
    assert gate.counts["fault_stale_joint_states"] == 0


def test_a_stuck_joint_latches_and_a_frozen_state_holds():
    spec = hardware.load_robot("panda")
    config = GateConfig(estop_timeout_s=None, max_tracking_error=0.05)
    stuck = RobotTwin(spec, faults=TwinFaults(joints=(JointFault("panda_joint1", "stuck"),)))
    _, sent = drive(stuck, config, seconds=1.0)
    assert sent[-1].state is GateState.LATCHED
    assert sent[-1].reason == "tracking_error"
    frozen = RobotTwin(spec, faults=TwinFaults(frozen_since_s=0.3))
    gate, sent = drive(frozen, GateConfig(estop_timeout_s=None), seconds=0.9)
    began_s = next(at for at, _, why in gate.events if why == "stale_joint_states")
    assert 0.4 <= began_s <= 0.42
    np.testing.assert_array_equal(sent[-1].velocity, 0)
