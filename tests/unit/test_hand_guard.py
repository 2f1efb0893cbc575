"""A robot that is commanded by rates stays in its box and does not fold onto itself, by what it measures."""

import dataclasses

import numpy as np
import pytest

import hardware
from robolearn.core.errors import RefusedError
from robolearn.core.types import FeatureSpec, Spaces
from robolearn.deploy.chunk import Chunk
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig, GateState
from robolearn.deploy.hand_guard import LOOK_AHEAD_S, HandGuard
from robolearn.deploy.kinematics import WorkspaceGuard

NAMES = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")
HOME = np.array(hardware.load_robot("panda").home)
ROOM = ((-2.0, -2.0, -2.0), (2.0, 2.0, 2.0))


def panda(low, high, **changes):
    spec = hardware.load_robot("panda")
    return dataclasses.replace(spec, workspace=dataclasses.replace(spec.workspace, low=low, high=high, **changes))


def at(guard, position, before=None, apart_s=0.05):
    """The guard after one measurement, or after two that are ``apart_s`` apart."""
    hand = HandGuard(guard, NAMES)
    if before is not None:
        hand.on_measured(before, stamp_s=0.0)
    hand.on_measured(position, stamp_s=apart_s)
    return hand


def test_the_tool_of_the_panda_is_between_its_fingers():
    # The flange at home is turned straight down: the tool centre point lies 0.1034 m below it.
    spec = hardware.load_robot("panda")
    bare = dataclasses.replace(spec, model=dataclasses.replace(spec.model, tcp_offset_m=(0.0, 0.0, 0.0)))
    apart = WorkspaceGuard(spec).tcp_at(HOME) - WorkspaceGuard(bare).tcp_at(HOME)
    np.testing.assert_allclose(np.linalg.norm(apart), 0.1034, atol=1e-6)
    assert apart[0, 2] < -0.1


def test_a_rate_leads_no_farther_out_and_every_other_one_stays():
    tcp = WorkspaceGuard(hardware.load_robot("panda")).tcp_at(HOME)[0]
    # The hand is 5 mm above the floor of the box, inside the margin of 10 mm; x and y are free.
    spec = panda((-2.0, -2.0, tcp[2] - 0.005), ROOM[1])
    hand = at(WorkspaceGuard(spec), HOME)
    down = np.array([0.3, -0.2, -0.5, 0.1, 0.2, 0.3, 1.0])
    limited, reason = hand.limit(down)
    assert reason == ""
    np.testing.assert_array_equal(limited, [0.3, -0.2, 0.0, 0.1, 0.2, 0.3, 1.0])
    np.testing.assert_array_equal(hand.limit(-down)[0], -down)  # back up again


def test_a_hand_that_moves_is_stopped_before_the_border():
    guard = WorkspaceGuard(hardware.load_robot("panda"))
    tcp = guard.tcp_at(HOME)[0]
    # Joint 1 turns the hand sideways. At 0.2 rad/s it gets 0.15 s * 0.2 rad/s = 0.03 rad farther, times its distance in x.
    ahead_m = LOOK_AHEAD_S * 0.2 * tcp[0]
    before = HOME.copy()
    before[0] -= 0.01
    for gap, blocked in ((0.5 * ahead_m, True), (1.5 * ahead_m, False)):
        spec = panda((-2.0, -2.0, -2.0), (2.0, tcp[1] + 0.01 + gap, 2.0))
        limited, _ = at(WorkspaceGuard(spec), HOME, before).limit(np.full(7, 0.5))
        assert (limited[1] == 0) == blocked, gap


def test_bodies_that_approach_stop_the_robot_and_may_part_again():
    spec = panda(*ROOM)
    guard = WorkspaceGuard(spec)
    folded = np.array([0.0, -1.0, 0.0, -2.9, 0.0, 0.3, 0.8])
    nearer = folded + np.array([0.0, 0.0, 0.0, -0.05, 0.0, 0.0, 0.0])
    pairs = [p for p in spec.workspace.collision_pairs if guard.distance(*p, nearer) < guard.distance(*p, folded)]
    limit = max(guard.distance(*p, folded) for p in pairs)
    near = WorkspaceGuard(panda(*ROOM, min_distance_m=limit, collision_pairs=tuple(pairs)))
    assert at(near, nearer, folded).limit(np.zeros(7))[1].startswith("collision_")
    assert at(near, folded, nearer).limit(np.zeros(7))[1] == ""


def test_rates_that_move_no_arm_are_refused():
    with pytest.raises(RefusedError, match="has 1 arms; the rates"):
        HandGuard(WorkspaceGuard(hardware.load_robot("panda")), ("dx", "dy", "gripper"))


def rate_gate(spec):
    spaces = Spaces("panda", {}, FeatureSpec((7,), names=NAMES), (-1.0,) * 7, (1.0,) * 7, 20.0)
    config = GateConfig(estop_timeout_s=None, policy_timeout_s=0.2)
    return CommandGate.for_spaces(spaces, config, guard=HandGuard(WorkspaceGuard(spec), NAMES))


def play(gate, position, rates, steps, *, begin_s=0.0):
    """What the gate sends while a policy asks for ``rates`` and the robot measures ``position`` (of a step's number)."""
    sent = []
    gate.arm()
    for k in range(steps):
        now_s = begin_s + 0.05 * k
        gate.on_measured(position(k), stamp_s=now_s, now_s=now_s)
        if k == 1:
            gate.reset(now_s=now_s)
        if k > 1:
            gate.on_chunk(Chunk(NAMES, np.tile(rates, (4, 1)), now_s, 0.05), now_s=now_s)
        sent.append(gate.tick(now_s))
    return sent


def test_a_gate_for_rates_keeps_the_hand_in_the_robots_box():
    tcp = WorkspaceGuard(hardware.load_robot("panda")).tcp_at(HOME)[0]
    rates = np.array([0.3, 0.0, -0.5, 0.0, 0.0, 0.0, 1.0])
    free = play(rate_gate(panda(*ROOM)), lambda k: HOME, rates, 6)[-1]
    np.testing.assert_array_equal(free.position, rates)
    gate = rate_gate(panda((-2.0, -2.0, tcp[2] - 0.005), ROOM[1]))
    sent = play(gate, lambda k: HOME, rates, 6)[-1]
    assert sent.state is GateState.RUNNING
    np.testing.assert_array_equal(sent.position, [0.3, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert gate.counts["workspace"] == 4  # steps 2 to 5


def test_a_gate_for_rates_latches_when_the_arm_folds_onto_itself():
    folded, fold = np.array([0.0, -1.0, 0.0, -2.5, 0.0, 0.3, 0.8]), np.array([0.0, 0.0, 0.0, -0.05, 0.0, 0.0, 0.0])
    gate = rate_gate(panda(*ROOM))
    sent = play(gate, lambda k: folded + k * fold, np.full(7, 0.1), 12)
    assert sent[3].state is GateState.RUNNING
    assert sent[-1].state is GateState.LATCHED
    assert sent[-1].reason.startswith("collision_")
    np.testing.assert_array_equal(sent[-1].position[:6], 0)


def test_nothing_moves_that_was_never_measured():
    limited, reason = HandGuard(WorkspaceGuard(panda(*ROOM)), NAMES).limit(np.ones(7))
    np.testing.assert_array_equal(limited, 0)
    assert reason == "unmeasured"
