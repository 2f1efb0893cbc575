"""Every file in hardware/ keeps one contract: limits of the installed model, home inside them, a source for each number."""

import dataclasses
import importlib.util
from pathlib import Path

import mujoco
import numpy as np
import pytest

import hardware
import hardware.g1
import hardware.so101
from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.deploy.chunk import Chunk
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig, GateState
from robolearn.deploy.limits import SafetyLimits

ROBOTS = hardware.robot_names()
WITH_MODEL = [name for name in ROBOTS if hardware.load_robot(name).model is not None]


def load_model(spec: RobotSpec) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_path(str(spec.model.locate()))


def test_the_folder_holds_the_promised_robots():
    assert set(ROBOTS) >= {"panda", "fr3", "ur5e", "gen3", "so101", "g1", "gr1"}
    assert set(WITH_MODEL) == {"panda", "ur5e", "gen3", "gr1", "g1"}


@pytest.mark.parametrize("name", ROBOTS)
def test_a_robot_is_named_like_its_file(name):
    assert hardware.load_robot(name).name == name


@pytest.mark.parametrize("name", WITH_MODEL)
def test_joint_order_and_position_limits_are_the_models(name):
    spec = hardware.load_robot(name)
    model = load_model(spec)
    index = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, joint) for joint in spec.model.joints]
    assert -1 not in index
    assert index == sorted(index)
    limited = model.jnt_limited[index].astype(bool)
    np.testing.assert_allclose(np.where(limited, model.jnt_range[index, 0], -np.inf), spec.position_low, atol=1e-5)
    np.testing.assert_allclose(np.where(limited, model.jnt_range[index, 1], np.inf), spec.position_high, atol=1e-5)


@pytest.mark.parametrize("name", WITH_MODEL)
def test_bodies_of_the_workspace_check_exist_in_the_model(name):
    spec = hardware.load_robot(name)
    model = load_model(spec)
    pairs = [body for pair in spec.workspace.collision_pairs for body in pair]
    for body in (spec.model.base_body, *spec.model.tcp_bodies, *pairs):
        assert mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, body) >= 0, body


@pytest.mark.parametrize("name", ROBOTS)
def test_home_keeps_the_margin(name):
    spec = hardware.load_robot(name)
    assert (np.array(spec.home) >= np.array(spec.position_low) + spec.position_margin).all()
    assert (np.array(spec.home) <= np.array(spec.position_high) - spec.position_margin).all()


@pytest.mark.parametrize("name", ROBOTS)
def test_every_number_names_its_source(name):
    spec = hardware.load_robot(name)
    numbers = [
        f.name for f in dataclasses.fields(spec) if f.name.startswith(("position", "max_effort", "max_v", "max_a", "max_j"))
    ]
    for field in (*numbers, "home", "control_rate_hz", "topics", *(f for f in ("kp", "kd") if getattr(spec, f))):
        assert len(spec.sources[field]) > 10, field
    assert spec.workspace.source
    assert all(gripper.source for gripper in spec.grippers)


@pytest.mark.parametrize("name", ROBOTS)
def test_a_source_cannot_be_left_out(name):
    spec = hardware.load_robot(name)
    for field in spec.sources:
        if field in ("speed_scale",):
            continue
        with pytest.raises(RefusedError, match=field):
            dataclasses.replace(spec, sources={k: v for k, v in spec.sources.items() if k != field})


@pytest.mark.parametrize("name", ROBOTS)
def test_a_gate_of_the_robot_starts_at_home_and_follows_a_chunk(name):
    spec = hardware.load_robot(name)
    gate = CommandGate.for_robot(spec, GateConfig())
    home, dt = np.array(spec.home), 1 / spec.control_rate_hz
    target = np.append(home + 0.02, np.ones(len(spec.grippers)))
    position = home
    for k in range(int(0.8 * spec.control_rate_hz)):
        now_s = k * dt
        gate.on_estop(False, now_s=now_s)
        gate.on_measured(position, stamp_s=now_s, now_s=now_s)
        if k == 1:
            gate.reset(now_s=now_s)
        if k >= 2 and k % 5 == 0:
            assert gate.on_chunk(Chunk(gate.names, np.tile(target, (20, 1)), now_s, 0.05), now_s=now_s) == ""
        command = gate.tick(now_s)
        position = command.position[: spec.dim] if k >= 1 else position
    assert command.state is GateState.RUNNING
    np.testing.assert_allclose(position, home + 0.02, atol=1e-3)


@pytest.mark.parametrize("name", ROBOTS)
def test_limits_keep_the_makers_times_the_scale(name):
    spec = hardware.load_robot(name)
    limits, n = SafetyLimits.from_robot(spec), spec.dim
    np.testing.assert_allclose(limits.max_velocity[:n], np.array(spec.max_velocity) * spec.speed_scale)
    np.testing.assert_allclose(limits.max_jerk[:n], np.array(spec.max_jerk) * spec.speed_scale)
    low, high = limits.inner_bounds()
    np.testing.assert_allclose(low[:n], np.array(spec.position_low) + spec.position_margin)
    np.testing.assert_allclose(high[:n], np.array(spec.position_high) - spec.position_margin)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"home": (9.0, *[0.0] * 6)}, "home of .*joint1"),
        ({"max_velocity": (0.0, *[1.0] * 6)}, "max_velocity"),
        ({"max_jerk": (float("nan"), *[1.0] * 6)}, "max_jerk"),
        ({"max_effort": (1.0,) * 6}, "max_effort needs 7 entries"),
        ({"joints": ("a",) * 7}, "unique"),
        ({"speed_scale": 1.5}, "exceed"),
        ({"joint_unit": "degrees"}, "joint_unit"),
        ({"command_interfaces": ("torque",)}, "interface"),
        ({"command_interfaces": ("arm_sdk",)}, "arm_sdk"),
        ({"position_margin": -0.1}, "margin"),
    ],
)
def test_a_malformed_robot_is_refused_by_name(change, words):
    with pytest.raises(RefusedError, match=words):
        dataclasses.replace(hardware.load_robot("panda"), **change)


def test_joint_states_are_matched_by_name_and_unit():
    spec = dataclasses.replace(hardware.load_robot("so101"), joint_unit="deg")
    names = ["gripper", *reversed(spec.joints)]
    # 90 deg = pi/2; the gripper is not one of the arm's joints and is dropped.
    values = np.array([50.0, 10.0, 20.0, 30.0, 40.0, 90.0])
    np.testing.assert_allclose(spec.in_order(names, values)[0], np.pi / 2)
    np.testing.assert_allclose(spec.to_wire(spec.in_order(names, values)), [90, 40, 30, 20, 10])
    with pytest.raises(RefusedError, match="shoulder_pan"):
        spec.in_order(names[:-1], values[:-1])
    with pytest.raises(RefusedError, match="repeat"):
        spec.in_order([*names, "gripper"], np.append(values, 1.0))


def test_so101_driver_speaks_degrees_and_percent():
    class Arm:
        def __init__(self):
            self.position = {f"{name}.pos": 0.0 for name in (*hardware.so101.SPEC.joints, "gripper")}

        def get_observation(self):
            return self.position

        def send_action(self, action):
            self.position = dict(action)
            return action

    arm = Arm()
    driver = hardware.so101.So101Driver(arm)
    driver.write(np.array([np.pi / 4, -np.pi / 2, 0.5, 0.0, 0.0, -1.0]))
    # pi/4 rad = 45 deg; -1 is open, which LeRobot calls 100 percent.
    assert arm.position["shoulder_pan.pos"] == pytest.approx(45)
    assert arm.position["shoulder_lift.pos"] == pytest.approx(-90)
    assert arm.position["gripper.pos"] == pytest.approx(100)
    np.testing.assert_allclose(driver.read(), [np.pi / 4, -np.pi / 2, 0.5, 0.0, 0.0, -1.0])
    before = dict(arm.position)
    # Degrees given where radians are expected: 45 is far outside the limits, so nothing is sent.
    with pytest.raises(RefusedError):
        driver.write(np.array([45.0, 0, 0, 0, 0, 0]))
    assert arm.position == before


def test_so101_motor_names_are_lerobots():
    # Read, not imported: importing lerobot's robots takes ten seconds.
    folder = Path(importlib.util.find_spec("lerobot").submodule_search_locations[0])
    source = (folder / "robots/so_follower/so_follower.py").read_text()
    for name in (*hardware.so101.SPEC.joints, "gripper"):
        assert f'"{name}": Motor(' in source
    assert "MotorNormMode.DEGREES if config.use_degrees" in source


def test_g1_motor_table():
    table = hardware.g1.motor_table(np.arange(14.0), np.full(14, 0.5), weight=0.25)
    assert table.shape == (35, 5)
    # Motor 15 is the left shoulder pitch, 28 the right wrist yaw; q of motor 29 is the weight.
    np.testing.assert_allclose(table[15], [0, 0.5, 0, 60, 1.5])
    np.testing.assert_allclose(table[28], [13, 0.5, 0, 60, 1.5])
    np.testing.assert_allclose(table[29], [0.25, 0, 0, 0, 0])
    assert not table[:15].any()
    for bad in ({"weight": 1.1}, {"weight": float("nan")}):
        with pytest.raises(RefusedError):
            hardware.g1.motor_table(np.zeros(14), np.zeros(14), **bad)


def test_an_unknown_robot_is_refused_with_the_nearest_name():
    with pytest.raises(RefusedError, match="Did you mean 'panda'"):
        hardware.load_robot("pandas")


@pytest.mark.parametrize("name", ROBOTS)
def test_a_stuck_joint_latches_every_robots_gate_by_default(name):
    spec = hardware.load_robot(name)
    gate = CommandGate.for_robot(spec, GateConfig(estop_timeout_s=None))
    dt, home = 1 / spec.control_rate_hz, np.array(spec.home)
    # The joint nearest to the hand is asked to turn at 0.2 rad/s, away from its nearer limit, but its measurement stays.
    turn = np.zeros(spec.dim)
    turn[-1] = 0.2 if spec.position_high[-1] - home[-1] > 1.1 else -0.2
    position, far = home.copy(), 0.0
    for k in range(int(3 * spec.control_rate_hz)):
        now_s = k * dt
        gate.on_measured(position, stamp_s=now_s, now_s=now_s)
        if k == 1:
            gate.reset(now_s=now_s)
        if k >= 2 and k % 5 == 0:
            ahead_s = now_s + 0.05 * np.arange(1, 11)[:, None]
            values = np.concatenate([home + ahead_s * turn, np.ones((10, len(spec.grippers)))], axis=1)
            gate.on_chunk(Chunk(gate.names, values, now_s, 0.05), now_s=now_s)
        command = gate.tick(now_s)
        if k > 2:
            position[:-1] = command.position[: spec.dim - 1]
            far = max(far, abs(command.position[spec.dim - 1] - home[-1]))
    assert command.state is GateState.LATCHED
    assert command.reason == "tracking_error"
    assert spec.max_tracking_error < far < spec.max_relative_target + 0.01


def test_a_tracking_error_that_no_command_reaches_is_refused():
    with pytest.raises(RefusedError, match=r"max_tracking_error=0.2 would never be reached"):
        dataclasses.replace(hardware.load_robot("panda"), max_tracking_error=0.2)
