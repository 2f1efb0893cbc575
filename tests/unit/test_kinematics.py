import dataclasses

import numpy as np
import pytest

import hardware
from robolearn.core.errors import RefusedError
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig
from robolearn.deploy.kinematics import WorkspaceGuard
from robolearn.deploy.limits import SafetyLimits
from robolearn.deploy.safety import SafetyFilter

WITH_MODEL = ("panda", "ur5e", "gen3", "gr1", "g1")


def test_forward_kinematics_of_the_gen3_is_kinovas_own():
    # Kinova's web application shows 0.456, 0.001, 0.434 m for Home (0 15 180 -130 0 55 90 deg), in the base frame.
    guard = WorkspaceGuard(hardware.load_robot("gen3"))
    assert guard.violation(np.radians([0, 15, 180, -130, 0, 55, 90])) == ""
    np.testing.assert_allclose(guard.tcp_positions()[0], [0.456, 0.001, 0.434], atol=2e-3)


def test_forward_kinematics_of_the_g1_is_the_urdfs():
    # All joints at 0. Torso and shoulder pitch: (-0.0039635, 0, 0.054) + (0.0039563, 0.10022, 0.23778) = (0, 0.10022, 0.29178).
    # Shoulder roll, turned by 0.27931 about x: y += 0.038 cos + 0.013831 sin = 0.04034, z += 0.038 sin - 0.013831 cos = -0.00282.
    # The turn back by 0.27925 leaves the rest straight: y += 0.00624 + 0.00189 + 0.003 = 0.01113,
    # x += 0.015783 + 0.1 + 0.038 + 0.046 + 0.0415 = 0.24128, z += -0.1032 - 0.080518 - 0.01 = -0.19372.
    left, right = WorkspaceGuard(hardware.load_robot("g1")).tcp_at(np.zeros(14))
    np.testing.assert_allclose(left, [0.24128, 0.15169, 0.09524], atol=1e-4)
    np.testing.assert_allclose(right, left * [1, -1, 1], atol=1e-4)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_home_is_allowed(name):
    spec = hardware.load_robot(name)
    assert WorkspaceGuard(spec).violation(np.array(spec.home)) == ""


def test_a_tool_below_the_table_and_a_hand_at_the_own_base_are_named():
    spec = hardware.load_robot("panda")
    guard = WorkspaceGuard(spec)
    # Stretched forwards and down: the flange is below the mounting plane.
    assert guard.violation(np.array([0.0, 1.6, 0.0, -0.6, 0.0, 1.2, 0.8])) == "workspace"
    wide = dataclasses.replace(spec, workspace=dataclasses.replace(spec.workspace, low=(-2, -2, -2), high=(2, 2, 2)))
    folded = np.array([0.0, -1.0, 0.0, -3.0, 0.0, 0.3, 0.8])
    assert WorkspaceGuard(wide).violation(folded) in {"right_hand/link0", "right_hand/link2", "link5/link0"}


def test_distance_of_two_bodies_is_measured_between_their_hulls():
    guard = WorkspaceGuard(hardware.load_robot("ur5e"))
    home = np.array(hardware.load_robot("ur5e").home)
    near = guard.distance("wrist_3_link", "shoulder_link", home)
    assert 0 < near < 0.5
    assert guard.distance("wrist_3_link", "shoulder_link", home, horizon_m=0.01) == pytest.approx(0.01)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_a_guarded_filter_never_leaves_the_allowed_region(name):
    """The stop plan is checked before each step, so even a full-speed approach ends before the border."""
    spec = dataclasses.replace(hardware.load_robot(name), speed_scale=1.0)
    guard, judge = WorkspaceGuard(spec), WorkspaceGuard(spec)
    limits = dataclasses.replace(SafetyLimits.from_robot(spec), max_relative_target=None)
    safety = SafetyFilter(limits, num_rows=1, guard=guard)
    rng = np.random.default_rng(0)
    extra = [0.0] * len(spec.grippers)
    safety.reset(np.array([[*spec.home, *extra]]))
    low, high = limits.inner_bounds()
    low, high = np.maximum(low, -3), np.minimum(high, 3)
    for tick in range(300):
        if tick % 60 == 0:
            target = rng.uniform(low, high)[None]
        sent = safety.apply(target, now_s=tick / 100)[0]
        assert judge.violation(sent[: spec.dim]) == "", tick
    assert safety.counts["guard"][0] > 0
    while not safety.at_rest[0]:
        assert judge.violation(safety.coast()[0, : spec.dim]) == ""


def test_a_gate_refuses_to_start_outside_its_workspace():
    spec = hardware.load_robot("panda")
    gate = CommandGate.for_robot(spec, GateConfig(estop_timeout_s=None), guard=WorkspaceGuard(spec))
    gate.on_measured(np.array([0.0, 1.6, 0.0, -0.6, 0.0, 1.2, 0.8]), stamp_s=0.0, now_s=0.0)
    with pytest.raises(RefusedError, match="guard does not allow"):
        gate.reset(now_s=0.0)
    assert not np.isfinite(gate.tick(0.0).position).any()


def test_a_robot_without_a_model_cannot_be_guarded():
    with pytest.raises(RefusedError, match="no kinematic model"):
        WorkspaceGuard(hardware.load_robot("so101"))
