"""The gate in its own process against a driver in this one: nothing unsafe is ever on the wire."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from harness import (
    ACTIVATE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    Client,
    FakeArm,
    move,
    node,
    nodes,
    play,
    reach,
    require_rest_then_silence,
    wait_until,
)
from std_msgs.msg import Bool, Float64MultiArray

from robolearn.deploy.launch_file import NodeProcess
from robolearn.deploy.launcher import Launched
from robolearn_bridge.messages import COMMAND_QOS, SENSOR_QOS


def test_a_gate_starts_latched_and_dry(arm: FakeArm) -> None:
    assert arm.client.transition("gate_node", CONFIGURE, ACTIVATE)
    play(arm, reach(arm), lambda: arm.client.count("gate_node", "refused_state") > 0, what="a refusal while latched")
    assert arm.gate == {"state": "latched", "reason": "startup", "sending": False}
    arm.wait_for_reset()
    play(arm, reach(arm), lambda: arm.went("running"), what="running")
    assert arm.commands == []  # never armed


def test_chunks_are_executed_inside_the_limits_and_end_at_rest(arm: FakeArm) -> None:
    arm.bring_up()
    move(arm, reach(arm, 0.6), way=0.2)  # further on the hand would leave its box
    arm.wait_for("holding", "silent_policy")
    speed = np.abs(np.diff(arm.sent, axis=0)).max(axis=0) * arm.spec.control_rate_hz
    assert (speed <= arm.spec.speed_scale * np.array(arm.spec.max_velocity) * (1 + 1e-6)).all()
    assert (speed[[0, 2, 4, 6]] > 0.05).all()  # it did move
    arm.wait_for_commands(5)
    np.testing.assert_array_equal(arm.commands[-1][1], arm.commands[-2][1])


REFUSALS = {"nan": "refused_non_finite", "names": "faults", "length": "faults", "stale": "refused_command_age"}


@pytest.mark.parametrize("fault", REFUSALS)
def test_a_bad_chunk_is_refused_whole(arm: FakeArm, fault: str) -> None:
    arm.bring_up()
    target = reach(arm)
    if fault == "nan":
        target[3] = np.nan
    names = {"names": ("elbow", *arm.names[1:]), "length": arm.names[:-1]}.get(fault)
    before = arm.client.count("gate_node", REFUSALS[fault])

    def ask() -> bool:
        arm.send_chunk(target, names=names, age_s=5.0 if fault == "stale" else 0.0)
        return arm.client.count("gate_node", REFUSALS[fault]) > before

    wait_until(ask, what=REFUSALS[fault])
    assert arm.gate["state"] == "ready"
    assert all((position == arm.spec.home).all() for _, position in arm.commands)
    play(arm, reach(arm), lambda: arm.went("running"), what="running with a good chunk")


def test_e_stop_ramps_down_and_latches_until_it_is_reset(arm: FakeArm) -> None:
    arm.bring_up()
    move(arm, reach(arm, 1.0))
    arm.press()
    play(arm, reach(arm, 1.0), lambda: arm.went("latched", "e_stop"), what="the latch")  # the policy goes on asking
    refused, why = arm.client.trigger("gate_node/reset")
    assert not refused
    assert "e-stop is pressed" in why
    arm.pressed = False
    arm.wait_for_commands(5)
    held = arm.commands[-1][1]
    assert np.abs(held - reach(arm, 1.0)).max() > 0.1
    arm.wait_for_reset()
    arm.wait_for_commands(30)
    np.testing.assert_array_equal(arm.commands[-1][1], held)  # the old chunk is not resumed


def test_a_lost_e_stop_publisher_stops_the_robot(arm: FakeArm) -> None:
    arm.bring_up()
    move(arm, reach(arm))
    arm.heartbeat_on = False
    play(arm, reach(arm), lambda: arm.went("latched", "e_stop_lost"), what="the latch")


def test_lost_joint_states_stop_the_robot(arm: FakeArm) -> None:
    arm.bring_up()
    # A short way: the gate sends nothing once the last measurement is farther from the command than it tolerates at a start.
    near = reach(arm, 0.15)
    move(arm, near)
    arm.joint_states_on = False
    play(arm, near, lambda: arm.stopped_for("stale_joint_states"), what="the stop")
    seen = len(arm.sent)
    wait_until(lambda: len(arm.sent) > seen + 5 and (np.ptp(arm.sent[-5:], axis=0) == 0).all(), what="rest")


def test_a_novel_observation_slows_the_robot_down_and_then_stops_it(arm: FakeArm) -> None:
    arm.bring_up()
    limit = arm.spec.speed_scale * np.array(arm.spec.max_velocity) / arm.spec.control_rate_hz
    move(arm, reach(arm, 0.15))
    # Novelty 1.9 leaves (2 - 1.9) / (2 - 1) = a tenth of the speed: a plateau there, not the way to a rest.
    far = np.array(arm.spec.home) + 0.4 * np.sign(reach(arm) - np.array(arm.spec.home))

    def slow() -> bool:
        speed = np.abs(np.diff(arm.sent[-21:], axis=0))[:, 0] / limit[0]
        return bool((np.abs(speed - 0.1) < 0.01).all())

    play(arm, far, slow, what="a tenth of the speed", novelty=1.9)
    play(arm, far, lambda: arm.stopped_for("novelty"), what="the stop", novelty=2.1)


def test_deactivation_ends_with_a_command_at_rest(arm: FakeArm) -> None:
    arm.bring_up()
    move(arm, reach(arm, 1.0))
    assert arm.client.transition("gate_node", DEACTIVATE)
    require_rest_then_silence(arm)


def test_an_illegal_transition_is_refused_and_the_node_lives(client: Client, launched: Launched) -> None:
    assert not client.transition("gate_node", ACTIVATE)  # unconfigured: kills a plain rclpy lifecycle node
    assert not client.transition("gate_node", 77)
    assert client.transition("gate_node", CONFIGURE)
    assert not client.transition("gate_node", CONFIGURE)
    assert client.transition("gate_node", ACTIVATE)
    assert launched.exit_code("gate_node") is None
    assert client.transition("gate_node", DEACTIVATE, CLEANUP)


def test_a_second_gate_on_the_same_robot_is_refused(arm: FakeArm, tmp_path: Path, domain: str) -> None:
    """By a lock of the machine: discovery may be late, and then both would command."""
    arm.bring_up()
    second = node("gate_node", name="gate_two", robot="panda", interface="position")
    with nodes(tmp_path, second, domain=domain):
        assert arm.client.transition("gate_two", CONFIGURE)
        for _ in range(3):
            assert not arm.client.transition("gate_two", ACTIVATE)
        move(arm, reach(arm))  # the first one is not disturbed
        assert not arm.went("latched", "second_commander")
    log = (tmp_path / "gate_two.log").read_text()
    assert "Another gate of this machine commands /robot/forward_position_controller/commands: /robot/gate_node, process" in log


def test_another_commander_disarms_the_gate_for_as_long_as_it_is_there(arm: FakeArm) -> None:
    """One that holds no lock of this machine: on another one, or no gate at all; it appears while the arm moves."""
    arm.bring_up()
    move(arm, reach(arm, 1.0))
    topic = "forward_position_controller/commands"
    stranger = arm.client.node.create_publisher(Float64MultiArray, topic, COMMAND_QOS)
    play(arm, reach(arm, 1.0), lambda: arm.went("latched", "second_commander"), what="the latch")
    require_rest_then_silence(arm)
    refused, why = arm.client.trigger("gate_node/reset")
    assert not refused
    assert "Another node commands this robot: /robot/client on /robot/forward_position_controller/commands" in why
    assert not arm.client.set_bool("gate_node/arm", True)[0]
    assert arm.client.transition("gate_node", DEACTIVATE)
    assert not arm.client.transition("gate_node", ACTIVATE)
    arm.client.node.destroy_publisher(stranger)
    wait_until(lambda: arm.client.transition("gate_node", ACTIVATE), what="activation")
    arm.wait_for_reset()
    silent = len(arm.commands)
    time.sleep(0.3)
    assert len(arm.commands) == silent  # ready, but nobody has armed it again
    assert arm.client.set_bool("gate_node/arm", True)[0]
    arm.wait_for_commands(3)


MISFITS = {
    "robot": ({"robot": "pandas"}, "Did you mean 'panda'?"),
    "interface": ({"interface": "velocity"}, "takes no 'velocity'"),
    "bundle": ({"interface": "rates", "bundle": "/nowhere"}, "No bundle description at /nowhere/bundle.json"),
    "clock": ({"use_sim_time": True}, "use_sim_time"),
    "lockstep": ({"sync": "lockstep"}, "sync='lockstep' is for simulators"),
    "tracking": ({"max_tracking_error": 0.2}, "max_tracking_error=0.2 would never be reached"),
    "rate": ({"rate_hz": 5000.0}, "rate_hz=5000.0 must lie in [100.0, 1000.0]"),
}


def test_an_e_stop_of_another_qos_is_none(client: Client, arm: FakeArm, launched: Launched) -> None:
    """A best-effort publisher does not reach the gate's reliable subscription: that must not look like an e-stop at rest."""
    arm.heartbeat_on = False
    best_effort = client.node.create_publisher(Bool, "e_stop", SENSOR_QOS)
    end = client.every(0.05, lambda: best_effort.publish(Bool(data=False)))
    assert client.transition("gate_node", CONFIGURE, ACTIVATE)
    wait_until(lambda: "e_stop" in launched.tail("gate_node") and "RELIABILITY" in launched.tail("gate_node"), what="the warning")
    refused, why = client.trigger("gate_node/reset")
    end()
    client.node.destroy_publisher(best_effort)
    assert not refused
    assert "the e-stop's publisher was silent" in why


def test_a_second_e_stop_latches_and_refuses_a_reset(client: Client, arm: FakeArm) -> None:
    # With two publishers the one's heartbeat hid the other's death, and its "not pressed" the other's "pressed".
    arm.bring_up()
    move(arm, reach(arm, 1.0))
    second = client.node.create_publisher(Bool, "e_stop", COMMAND_QOS)
    play(arm, reach(arm, 1.0), lambda: arm.went("latched", "second_e_stop"), what="the latch")
    refused, why = client.trigger("gate_node/reset")
    assert not refused
    assert "Several nodes publish e_stop" in why
    client.node.destroy_publisher(second)
    arm.wait_for_reset()


def test_malformed_parameters_end_a_node_with_code_2(tmp_path: Path, domain: str) -> None:
    bad = {
        "syntax": ("a: [1\n  b: }", "Couldn't parse params file"),
        "type": ("/**:\n  ros__parameters:\n    policy_timeout_s: soon\n", "Parameter policy_timeout_s of type: "),
        "name": ("/**:\n  ros__parameters:\n    estop_timeuot_s: 0.2\n", "Did you mean 'estop_timeout_s'?"),
    }
    processes = []
    for name, (text, _) in bad.items():
        (tmp_path / f"{name}.yaml").write_text(text)
        processes.append(NodeProcess("robolearn_bridge", "gate_node", name, "/robot", (tmp_path / f"{name}.yaml",)))
    with nodes(tmp_path, *processes, domain=domain) as running:
        for name, (_, message) in bad.items():
            wait_until(lambda n=name: running.exit_code(n) is not None, what=f"the end of {name}")
            assert running.exit_code(name) == 2
            assert message in running.tail(name)
            assert "Traceback" not in running.tail(name)


def test_what_does_not_fit_is_refused_by_name(client: Client, tmp_path: Path, domain: str) -> None:
    gates = [
        node("gate_node", name=f"gate_{what}", **({"robot": "panda", "interface": "position"} | changes))
        for what, (changes, _) in MISFITS.items()
    ]
    with nodes(tmp_path, *gates, domain=domain) as running:
        for what in MISFITS:
            assert not client.transition(f"gate_{what}", CONFIGURE)
            assert running.exit_code(f"gate_{what}") is None
    for what, (_, message) in MISFITS.items():
        assert message in (tmp_path / f"gate_{what}.log").read_text()
