"""The gate's states, watchdogs and refusals, on hand-set clocks; every test drives it as the node does."""

import dataclasses
import itertools

import numpy as np
import pytest

import hardware
from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE, FeatureSpec, Spaces
from robolearn.deploy.chunk import Chunk, Track, read_chunk
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import JOINT_STATES, GateConfig, GateState

SPEC = hardware.load_robot("panda")
HOME = np.array(SPEC.home)
DT = 0.01


class Rig:
    """A gate with a perfect robot, an e-stop publisher and a policy behind it, each of which can be switched off."""

    def __init__(self, config=None):
        self.gate = CommandGate.for_robot(SPEC, config or GateConfig())
        self.tick_number, self.position = 0, HOME.copy()
        self.estop, self.sensor, self.policy = True, True, False
        self.goal, self.novelty = HOME + 0.1, None
        self.sent = []

    @property
    def now_s(self):
        return self.tick_number * DT

    def chunk(self, **change):
        values = np.tile(np.append(self.goal, 1.0), (20, 1))
        chunk = Chunk(self.gate.names, values, self.now_s, 0.05, novelty=self.novelty)
        return self.gate.on_chunk(dataclasses.replace(chunk, **change), now_s=self.now_s)

    def run(self, seconds):
        for _ in range(round(seconds / DT)):
            self.tick_number += 1
            now_s = self.now_s
            if self.estop:
                self.gate.on_estop(False, now_s=now_s)
            if self.sensor:
                self.gate.on_measured(self.position, stamp_s=now_s, now_s=now_s)
            if self.policy and self.tick_number % 5 == 0:
                self.chunk()
            command = self.gate.tick(now_s)
            if command.send:
                self.position = command.position[:7]
            self.sent.append(command)
        return self.sent[-1]

    def start(self):
        self.gate.arm()
        self.run(0.05)
        self.gate.reset(now_s=self.now_s)
        self.policy = True
        return self.run(0.1)


def states(rig):
    return [(str(state), reason) for _, state, reason in rig.gate.events]


def test_it_starts_latched_and_sends_nothing():
    rig = Rig()
    rig.gate.arm()
    command = rig.run(0.1)
    assert command.state is GateState.LATCHED
    assert command.reason == "startup"
    assert not command.send
    assert rig.chunk().startswith("state: the gate is latched")
    assert not rig.run(0.1).send


def test_dry_run_is_the_default():
    rig = Rig()
    rig.run(0.05)
    rig.gate.reset(now_s=rig.now_s)
    rig.policy = True
    assert not any(command.send for command in [rig.run(0.3)])
    assert rig.gate.state is GateState.RUNNING


def test_a_whole_run_in_order():
    rig = Rig()
    command = rig.start()
    assert command.state is GateState.RUNNING
    assert command.send
    rig.policy = False
    rig.run(2.0)
    assert states(rig) == [
        ("ready", ""),
        ("running", ""),
        ("stopping", "silent_policy"),
        ("holding", "silent_policy"),
        ("latched", "silent_policy"),
    ]


def test_it_reaches_the_goal_and_the_gripper_closes():
    rig = Rig()
    rig.start()
    np.testing.assert_allclose(rig.run(1.5).position, np.append(HOME + 0.1, 1.0), atol=1e-3)


# A policy's silence is cut off before it exceeds its time, a sensor's at the first tick after that.
@pytest.mark.parametrize(
    ("what", "reason", "within_s"), [("policy", "silent_policy", 0.25), ("sensor", "stale_joint_states", 0.1 + DT)]
)
def test_a_lost_publisher_stops_within_its_time_and_holds(what, reason, within_s):
    rig = Rig()
    rig.start()
    lost_s = rig.now_s
    setattr(rig, what, False)
    rig.run(1.0)
    began_s = next(t for t, state, why in rig.gate.events if why == reason)
    # The last chunk came up to 4 ticks before the loss was switched on.
    assert lost_s + within_s - 0.06 <= began_s <= lost_s + within_s + 1e-9
    held = rig.sent[-1]
    assert held.send
    assert held.state is GateState.HOLDING
    np.testing.assert_array_equal(held.velocity, 0)
    np.testing.assert_array_equal(held.position, rig.sent[-20].position)
    assert (np.abs(held.position[:7] - HOME) < 0.11).all()  # where it was, never zeros


def test_losing_the_estop_publisher_latches():
    rig = Rig()
    rig.start()
    rig.estop = False
    command = rig.run(1.0)
    assert command.state is GateState.LATCHED
    assert command.reason == "e_stop_lost"


def test_a_pressed_estop_ramps_down_latches_and_survives_its_release():
    rig = Rig()
    rig.start()
    rig.gate.on_estop(True, now_s=rig.now_s)
    assert rig.gate.state is GateState.STOPPING
    moving = rig.sent[-1].velocity
    assert np.abs(moving).max() > 0.05
    rig.estop = False
    speeds = [np.abs(rig.run(DT).velocity).max() for _ in range(30)]
    assert speeds[-1] == 0
    assert all(later <= earlier + 1e-9 for earlier, later in itertools.pairwise(speeds[3:]))
    rig.gate.on_estop(True, now_s=rig.now_s)
    assert rig.gate.state is GateState.LATCHED
    with pytest.raises(RefusedError, match="e-stop is pressed"):
        rig.gate.reset(now_s=rig.now_s)
    rig.estop = True
    rig.run(0.1)
    assert rig.gate.state is GateState.LATCHED
    assert rig.gate.events[-1][2] == "e_stop"


def test_reset_needs_an_idle_policy_and_never_resumes_the_old_chunk():
    rig = Rig()
    rig.start()
    old = Chunk(rig.gate.names, np.tile(np.append(rig.goal, 1.0), (100, 1)), rig.now_s, 0.05)
    rig.gate.stop("operator", now_s=rig.now_s)
    rig.run(0.3)
    with pytest.raises(RefusedError, match="still commanding"):
        rig.gate.reset(now_s=rig.now_s)
    rig.policy = False
    rig.run(0.3)
    stood = rig.position.copy()
    rig.gate.reset(now_s=rig.now_s)
    rig.run(0.3)
    assert rig.gate.state is GateState.READY
    assert rig.gate.on_chunk(old, now_s=rig.now_s).startswith(("command_age", "reordered"))
    np.testing.assert_array_equal(rig.position, stood)
    fresh_enough = dataclasses.replace(old, stamp_s=rig.now_s - 0.35)
    assert rig.gate.on_chunk(fresh_enough, now_s=rig.now_s).startswith("reordered")


def test_a_hold_goes_on_with_a_fresh_chunk_but_not_with_one_from_before():
    rig = Rig()
    rig.start()
    rig.policy = False
    rig.run(0.7)
    assert rig.gate.state is GateState.HOLDING
    assert rig.chunk(stamp_s=rig.now_s - 0.48).startswith("reordered")
    assert rig.chunk() == ""
    assert rig.gate.state is GateState.RUNNING


def test_reset_names_everything_in_the_way():
    gate = CommandGate.for_robot(SPEC, GateConfig(stream_timeouts_s={JOINT_STATES: 0.1, "wrist": 0.2}))
    with pytest.raises(RefusedError, match=r"e-stop's publisher.*'joint_states'.*'wrist'.*outside the limits"):
        gate.reset(now_s=1.0)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"values": np.full((20, 8), np.nan)}, "non_finite"),
        ({"values": np.append(np.zeros((19, 8)), [[0] * 7 + [np.inf]], axis=0)}, "non_finite"),
        ({"values": np.zeros((20, 7))}, "shape"),
        ({"values": np.zeros(8)}, "shape"),
        ({"values": "abc"}, "shape"),
        ({"stamp_s": "now"}, "shape"),
        ({"novelty": [1.0, 2.0]}, "shape"),
        ({"names": ("panda_joint1",) * 8}, "name"),
        ({"step_s": 0.0}, "non_finite"),
        ({"stamp_s": float("nan")}, "non_finite"),
        ({"stamp_s": 1e9}, "command_age"),
        ({"stamp_s": -5.0}, "command_age"),
        ({"source": "stranger"}, "source"),
        ({"novelty": float("nan")}, "novelty"),
        ({"values": np.tile(np.append(HOME + 1.0, 0), (20, 1))}, "start_tolerance"),
    ],
)
def test_a_bad_chunk_is_refused_whole_and_changes_nothing(change, kind):
    rig = Rig()
    rig.run(0.05)
    rig.gate.reset(now_s=rig.now_s)
    before = rig.run(DT)
    assert rig.chunk(**change).startswith(kind + ":")
    assert rig.gate.counts[f"refused_{kind}"] == 1
    after = rig.run(DT)
    assert after.state is GateState.READY
    np.testing.assert_array_equal(before.position, after.position)
    assert rig.chunk() == ""


def test_a_chunk_is_expired_when_all_its_rows_are_over():
    rig = Rig()
    rig.start()
    rig.run(0.3)
    assert rig.chunk(values=np.tile(np.append(HOME, 0), (1, 1)), stamp_s=rig.now_s - 0.06).startswith("expired")


def test_names_in_another_order_are_sorted_by_name():
    values = np.arange(16.0).reshape(2, 8)
    names = ("a", "b", "c", "d", "e", "f", "g", "h")
    backwards = Chunk(names[::-1], values[:, ::-1], 0.0, 0.05)
    np.testing.assert_array_equal(read_chunk(backwards, names), values)


def test_the_clock_of_a_chunk():
    rows = np.array([[1.0], [3.0], [4.0]])
    track = Track(rows, 0.1, 0.0, np.array([0.0]))
    for phase_s, expected in [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.15, 2.0), (0.25, 3.5), (0.3, 4.0), (9.0, 4.0)]:
        track.phase_s = phase_s
        np.testing.assert_allclose(track.target(), expected, atol=1e-12)
    # Accepted 0.15 s after its observation: row 0 is over, and the way to row 1 (at 0.2 s) begins at the anchor.
    late = Track(rows, 0.1, 0.15, np.array([-1.0]))
    for phase_s, expected in [(0.15, -1.0), (0.175, 1.0), (0.2, 3.0), (0.25, 3.5)]:
        late.phase_s = phase_s
        np.testing.assert_allclose(late.target(), expected, atol=1e-12)
    rates = Track(rows, 0.1, 0.0, None)
    for phase_s, expected in [(0.0, 1.0), (0.099, 1.0), (0.101, 3.0), (0.5, 4.0)]:
        rates.phase_s = phase_s
        np.testing.assert_array_equal(rates.target(), expected)


@pytest.mark.parametrize(("delay_steps", "first"), [(0, 0.0), (1, 0.1), (3, 0.3), (2.4, 0.2)])
def test_a_late_chunk_of_rates_is_entered_at_its_age(delay_steps, first):
    # Row k of the chunk is k / 10 and holds for [k, k + 1) steps of 50 ms after its observation, which was taken at 1 s. A chunk
    # that is 3 steps old begins with row 3; one that is 2.4 old with row 2, and row 3 follows 0.6 steps later.
    spaces = Spaces("panda", {STATE: FeatureSpec((1,))}, FeatureSpec((1,), names=("dx",)), (-1.0,), (1.0,), 20.0)
    config = GateConfig(estop_timeout_s=None, stream_timeouts_s={}, max_tick_gap_s=1.0)
    gate = CommandGate.for_spaces(spaces, config, control_rate_hz=100.0)
    arrival_s = 1.0 + delay_steps * 0.05
    gate.arm()
    gate.tick(arrival_s - 0.5)
    gate.reset(now_s=arrival_s - 0.5)
    # A reset refuses what was observed before it, so the chunk's observation is later than that.
    assert gate.on_chunk(Chunk(("dx",), np.arange(8)[:, None] / 10, 1.0, 0.05), now_s=arrival_s) == ""
    sent = [gate.tick(arrival_s + k * DT).position[0] for k in range(7)]
    expected = [min(int((delay_steps * 5 + k + 1e-6) / 5), 7) / 10 for k in range(7)]
    assert sent[0] == pytest.approx(first)
    np.testing.assert_allclose(sent, expected)


def test_a_burst_of_ticks_is_one_tick_and_missed_ones_are_not_caught_up():
    rig = Rig()
    rig.start()
    first = rig.gate.tick(rig.now_s)
    for _ in range(50):
        np.testing.assert_array_equal(rig.gate.tick(rig.now_s + 1e-4).position, first.position)
    rig.tick_number += 4  # four slots are skipped
    moved = rig.run(DT).position - first.position
    assert np.abs(moved[:7]).max() <= 0.25 * np.array(SPEC.max_velocity).max() * DT
    assert rig.gate.counts["missed_ticks"] == 4


def test_after_a_long_gap_it_begins_again_from_rest():
    rig = Rig()
    rig.start()
    epoch = rig.sent[-1].epoch
    rig.tick_number += 50
    command = rig.run(DT)
    assert command.epoch == epoch + 1
    assert command.reason == "tick_gap"
    np.testing.assert_array_equal(command.position, rig.sent[-2].position)


def test_a_clock_that_jumps_back_moves_nothing():
    rig = Rig()
    rig.start()
    before = rig.sent[-1].position
    np.testing.assert_array_equal(rig.gate.tick(0.0).position, before)
    np.testing.assert_array_equal(rig.gate.tick(float("nan")).position, before)
    assert rig.gate.counts["clock"] == 2


def test_bad_measurements_age_the_stream():
    rig = Rig()
    rig.start()
    rig.sensor = False
    for _ in range(20):
        rig.run(DT)
        rig.gate.on_measured(np.full(7, np.nan), stamp_s=rig.now_s, now_s=rig.now_s)
        rig.gate.on_measured(HOME[:6], stamp_s=rig.now_s, now_s=rig.now_s)
        rig.gate.on_measured(HOME, stamp_s=rig.now_s + 99, now_s=rig.now_s)
    assert rig.gate.counts["fault_stale_joint_states"] == 1
    assert (
        rig.gate.counts["measured_non_finite"] == rig.gate.counts["measured_shape"] == rig.gate.counts["stamp_joint_states"] == 20
    )


def test_every_watched_stream_is_watched():
    rig = Rig(GateConfig(stream_timeouts_s={JOINT_STATES: 0.1, "wrist_camera": 0.2}))
    rig.gate.on_stream("wrist_camera", stamp_s=0.05, now_s=0.05)
    rig.start()
    rig.run(0.3)
    assert ("stopping", "stale_wrist_camera") in states(rig)


def test_a_robot_that_does_not_follow_is_noticed():
    rig = Rig(GateConfig(max_tracking_error=0.05))
    rig.start()
    stuck = rig.position.copy()
    for _ in range(40):
        rig.position = stuck
        command = rig.run(DT)
    assert command.state is GateState.LATCHED
    assert command.reason == "tracking_error"


def test_a_robot_moved_by_hand_while_ready_is_let_go_and_found_again_at_reset():
    rig = Rig()
    rig.gate.arm()
    rig.run(0.05)
    rig.gate.reset(now_s=rig.now_s)
    rig.run(0.05)
    moved = HOME + 0.3
    for _ in range(30):
        rig.position = moved
        command = rig.run(DT)
    assert command.reason == "moved"
    assert not command.send
    rig.gate.reset(now_s=rig.now_s)
    command = rig.run(DT)
    assert command.send
    np.testing.assert_allclose(command.position[:7], moved)


def test_teleoperation_takes_over_and_keeps_the_policy_out():
    rig = Rig()
    rig.start()
    assert rig.chunk(source="teleop", stamp_s=rig.now_s + 0.001) == ""
    rig.run(DT)
    assert rig.chunk().startswith("preempted")
    rig.policy = False
    rig.run(0.7)
    assert states(rig)[-2:] == [("stopping", "silent_teleop"), ("holding", "silent_teleop")]
    assert rig.chunk() == ""


def test_a_heartbeat_bridges_the_time_between_chunks_but_not_for_ever():
    rig = Rig(GateConfig(policy_timeout_s=0.1, chunk_timeout_s=0.4))
    rig.start()
    rig.policy = False
    began_s = rig.now_s
    while rig.gate.state is GateState.RUNNING:
        rig.run(DT)
        rig.gate.on_heartbeat("policy", now_s=rig.now_s)
    assert 0.35 <= rig.now_s - began_s <= 0.42


def test_novel_observations_slow_down_and_stop():
    way = {}
    for novelty in (0.5, 1.5):
        rig = Rig()
        rig.novelty, rig.goal = novelty, HOME + 0.19
        rig.start()
        command = rig.run(0.2)
        way[novelty] = np.abs(command.position[:7] - HOME).max()
    assert way[1.5] < 0.8 * way[0.5]
    rig.novelty = 2.5
    rig.run(0.5)
    assert ("stopping", "novelty") in states(rig)


def test_release_ramps_the_weight_out_and_then_falls_silent():
    rig = Rig(GateConfig(weight_ramp_s=0.5))
    rig.start()
    rig.policy = False
    assert rig.run(1.0).weight == 1
    rig.gate.release(now_s=rig.now_s)
    weights = [rig.run(DT).weight for _ in range(70)]
    assert weights[0] > 0.95
    assert weights[-1] == 0
    assert max(np.abs(np.diff(weights))) <= DT / 0.5 + 1e-9
    assert not rig.sent[-1].send


def test_disarming_is_the_last_thing_on_the_wire():
    rig = Rig()
    rig.start()
    rig.gate.disarm(now_s=rig.now_s)
    rig.run(0.5)
    sent = [command for command in rig.sent if command.send]
    np.testing.assert_array_equal(sent[-1].velocity, 0)
    assert not rig.sent[-1].send
    assert rig.gate.state is GateState.LATCHED


def rate_spaces():
    names = ("dx", "dy", "gripper")
    observation = {STATE: FeatureSpec((1,), names=("x",))}
    return Spaces("panda", observation, FeatureSpec((3,), names=names), (-1.0,) * 3, (1.0,) * 3, 20.0)


def test_rates_are_the_policys_own_and_rest_at_zero():
    config = GateConfig(estop_timeout_s=None, stream_timeouts_s={}, policy_timeout_s=0.3)
    gate = CommandGate.for_spaces(rate_spaces(), config)
    gate.arm()
    gate.reset(now_s=0.0)
    rows = np.random.default_rng(0).uniform(-1.5, 1.5, (8, 3))
    assert gate.on_chunk(Chunk(gate.names, rows, 0.3, 0.05), now_s=0.3) == ""
    commands = [gate.tick(0.3 + k * 0.05) for k in range(9)]
    # Until the policy is missed after 0.3 s (6 steps), each step sends its row inside the bounds, as the evaluator's filter does.
    np.testing.assert_array_equal([c.position for c in commands[:6]], np.clip(rows, -1, 1)[:6])
    assert commands[-1].state is GateState.HOLDING
    np.testing.assert_array_equal(commands[-1].position, 0)
    assert commands[-1].send


def test_a_faster_gate_repeats_each_rate_for_its_step():
    config = GateConfig(estop_timeout_s=None, stream_timeouts_s={})
    gate = CommandGate.for_spaces(rate_spaces(), config, control_rate_hz=100.0)
    gate.reset(now_s=0.0)
    rows = np.linspace(-1, 1, 12).reshape(4, 3)
    gate.on_chunk(Chunk(gate.names, rows, 0.3, 0.05), now_s=0.3)
    sent = [gate.tick(0.3 + k * 0.01).position for k in range(20)]
    np.testing.assert_allclose(sent, np.repeat(rows, 5, axis=0))


def test_a_disarmed_gate_is_silent_only_after_a_command_at_rest():
    """A driver of velocities goes on with the last one: it must be zero."""
    rig = Rig()
    rig.start()
    moving = rig.run(0.3)
    assert np.abs(moving.velocity).max() > 0.01
    rig.gate.disarm(now_s=rig.now_s)
    rig.run(1.0)
    sent = [command for command in rig.sent if command.send]
    assert not rig.sent[-1].send
    np.testing.assert_array_equal(sent[-1].velocity, 0)
    np.testing.assert_array_equal(sent[-1].error, 0)
    assert sent[-1].state is GateState.LATCHED
