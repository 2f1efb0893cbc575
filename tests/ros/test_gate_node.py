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
    largest_steps,
    node,
    nodes,
    reach,
    require_rest_then_silence,
    run,
    wait_until,
)

from robolearn.deploy.launcher import Launched


def test_a_gate_starts_latched_and_dry(arm: FakeArm) -> None:
    assert arm.client.transition("gate_node", CONFIGURE, ACTIVATE)
    run(arm, 0.3, reach(arm))
    assert arm.gate == {"state": "latched", "reason": "startup", "sending": False}
    wait_until(lambda: arm.client.trigger("gate_node/reset")[0])
    end = time.monotonic() + 20.0
    while arm.gate["state"] != "running" and time.monotonic() < end:  # on a busy machine late streams stop it in between
        run(arm, 0.2, reach(arm))
    assert arm.gate["state"] == "running"
    assert arm.commands == []  # never armed


def test_chunks_are_executed_inside_the_limits_and_end_at_rest(arm: FakeArm) -> None:
    arm.bring_up()
    run(arm, 1.0, reach(arm, 1.5))
    arm.wait_for("holding", 3.0)  # the policy fell silent
    limits = largest_steps(arm.commands, arm.spec.control_rate_hz)
    scale = arm.spec.speed_scale
    assert (limits["velocity"] <= scale * np.array(arm.spec.max_velocity) * (1 + 1e-6)).all()
    assert (limits["velocity"][[0, 2, 4, 6]] > 0.05).all()  # it did move
    np.testing.assert_array_equal(arm.commands[-1][1], arm.commands[-2][1])


@pytest.mark.parametrize("fault", ["nan", "names", "length", "stale"])
def test_a_bad_chunk_is_refused_whole(arm: FakeArm, fault: str) -> None:
    arm.bring_up()
    target = reach(arm)
    if fault == "nan":
        target[3] = np.nan
    names = {"names": ("elbow", *arm.names[1:]), "length": arm.names[:-1]}.get(fault)
    for _ in range(10):
        arm.send_chunk(target, names=names, age_s=5.0 if fault == "stale" else 0.0)
        time.sleep(0.03)
    assert arm.gate["state"] == "ready"
    assert all((position == arm.spec.home).all() for _, position in arm.commands)


def test_e_stop_ramps_down_and_latches_until_it_is_reset(arm: FakeArm) -> None:
    arm.bring_up()
    run(arm, 0.6, reach(arm, 1.0))
    arm.press()
    run(arm, 0.6, reach(arm, 1.0))  # the policy goes on asking
    arm.wait_for("latched", 3.0)
    assert arm.gate["reason"] == "e_stop"
    refused, why = arm.client.trigger("gate_node/reset")
    assert not refused
    assert "e-stop is pressed" in why
    arm.pressed = False
    held = arm.commands[-1][1]
    time.sleep(0.4)
    assert arm.client.trigger("gate_node/reset")[0]
    time.sleep(0.3)
    np.testing.assert_array_equal(arm.commands[-1][1], held)  # the old chunk is not resumed


def test_a_lost_e_stop_publisher_stops_the_robot(arm: FakeArm) -> None:
    arm.bring_up()
    arm.heartbeat_on = False
    run(arm, 1.2, reach(arm))
    arm.wait_for("latched", 3.0)
    assert arm.gate["reason"] == "e_stop_lost"


def test_lost_joint_states_stop_the_robot(arm: FakeArm) -> None:
    arm.bring_up()
    run(arm, 0.4, reach(arm))
    arm.joint_states_on = False
    run(arm, 0.5, reach(arm))
    assert any(state == "stopping" and reason == "stale_joint_states" for _, state, reason in arm.states)
    np.testing.assert_array_equal(arm.commands[-1][1], arm.commands[-2][1])


def test_deactivation_ends_with_a_command_at_rest(arm: FakeArm) -> None:
    arm.bring_up()
    run(arm, 0.5, reach(arm, 1.0))
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
    arm.bring_up()
    second = node("gate_node", name="gate_two", robot="panda", interface="position")
    with nodes(tmp_path, second, domain=domain):
        assert arm.client.transition("gate_two", CONFIGURE)
        assert not arm.client.transition("gate_two", ACTIVATE)
    assert "Another node commands this robot: /robot/gate_node" in (tmp_path / "gate_two.log").read_text()


MISFITS = {
    "robot": ({"robot": "pandas"}, "Did you mean 'panda'?"),
    "interface": ({"interface": "velocity"}, "takes no 'velocity'"),
    "bundle": ({"interface": "rates", "bundle": "/nowhere"}, "No bundle description at /nowhere/bundle.json"),
    "clock": ({"use_sim_time": True}, "use_sim_time"),
    "rate": ({"rate_hz": 5000.0}, "rate_hz=5000.0 must lie in [100.0, 1000.0]"),
}


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
