"""Wishes become actions: hand-worked numbers, the box, the clutch and the joints that mink finds."""

import mujoco
import numpy as np
import pytest

from hardware import load_robot
from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE, FeatureSpec, Spaces
from robolearn.teleop.device import Wish, check_command
from robolearn.teleop.inverse_kinematics import JointTargets
from robolearn.teleop.motion import MotionConfig, PoseDelta
from sim_envs.native_env import native_lift_spaces

ARM = ("dx", "dy", "dz", "drx", "dry", "drz", "gripper")


def observed(x=0.0, y=0.0, z=1.0):
    return {STATE: np.array([x, y, z, *np.zeros(8)], np.float32)}


def pose_delta(**config):
    motion = PoseDelta(native_lift_spaces(), MotionConfig(**config), metres=0.05, radians=0.5)
    motion.reset(observed())
    return motion


def wish(*twist, **how):
    return Wish(0.0, np.array([*twist, *np.zeros(6 - len(twist))]), engaged=True, **how)


def test_full_deflection_is_the_speed_and_facing_the_robot_turns_it_round():
    # 0.3 m/s for 1/20 s are 15 mm, 0.3 of the 50 mm that an action of 1 goes. Facing the robot, away is -x and left is -y.
    motion = pose_delta(linear_speed_m_s=0.3, angular_speed_rad_s=1.0)
    command = motion.act(observed(), wish(1, 0.5, -1), 0)
    np.testing.assert_allclose(command.action, [-0.3, -0.15, -0.3, 0, 0, 0, -1], atol=1e-6)
    # Behind it, away is +x. 1 rad/s for 1/20 s is 0.05 rad, 0.1 of the 0.5 rad of an action of 1.
    motion = pose_delta(linear_speed_m_s=0.3, angular_speed_rad_s=1.0, view_yaw_deg=0.0)
    command = motion.act(observed(), wish(1, 0, 0, 0, 0, 1), 0)
    np.testing.assert_allclose(command.sent, [0.3, 0, 0, 0, 0, 0.1, -1], atol=1e-6)


def test_nothing_moves_without_the_clutch_and_the_gripper_stays_as_it_was_left():
    motion = pose_delta()
    still = [0, 0, 0, 0, 0, 0, -1]
    np.testing.assert_array_equal(motion.act(observed(), None, 0).sent, still)
    np.testing.assert_array_equal(motion.act(observed(), Wish(0.0, np.ones(6)), 0).sent, still)
    motion.toggle_gripper(0)
    assert motion.act(observed(), None, 0).sent[6] == 1
    motion.act(observed(), wish(gripper=-0.5), 0)
    assert motion.act(observed(), None, 0).sent[6] == -0.5
    motion.reset(observed())
    assert motion.act(observed(), None, 0).sent[6] == -1


def test_the_box_holds_what_is_sent_and_not_what_is_wanted():
    motion = pose_delta(workspace_low=(-0.1, -0.1, 0.9), workspace_high=(0.1, 0.1, 1.1), view_yaw_deg=0.0, linear_speed_m_s=0.4)
    # 0.4 m/s are 20 mm a step; 5 mm are left to the box: 5 / 50 = 0.1.
    command = motion.act(observed(x=0.095), wish(1), 0)
    assert command.action[0] == pytest.approx(0.4)
    assert command.sent[0] == pytest.approx(0.1, abs=1e-5)
    # Outside already (pushed there): back is free, further is not.
    assert motion.act(observed(x=0.15), wish(1), 0).sent[0] == pytest.approx(0, abs=1e-5)
    assert motion.act(observed(x=0.15), wish(-1), 0).sent[0] == pytest.approx(-0.4, abs=1e-5)


def test_a_second_arm_stands_still_while_the_first_moves():
    names = tuple(f"robot{i}_{n}" for i in range(2) for n in ARM)
    state = tuple(f"robot{i}_{n}" for i in range(2) for n in ("eef_pos_x", "eef_pos_y", "eef_pos_z"))
    low, high = (-1.0,) * 14, (1.0,) * 14
    spaces = Spaces("panda_pair", {STATE: FeatureSpec((6,), names=state)}, FeatureSpec((14,), names=names), low, high, 20.0)
    motion = PoseDelta(spaces, MotionConfig(view_yaw_deg=0.0), metres=0.05, radians=0.5)
    assert motion.arms == ("robot0", "robot1")
    start = {STATE: np.zeros(6, np.float32)}
    motion.reset(start)
    sent = motion.act(start, wish(1), 1).sent
    assert not sent[:6].any()
    assert sent[7] > 0


def test_other_robots_and_bad_numbers_are_refused():
    g1 = load_robot("g1")
    spaces = Spaces("g1", {}, FeatureSpec((g1.dim,), names=g1.joints), g1.position_low, g1.position_high, 20.0)
    with pytest.raises(RefusedError, match=r"'g1' takes .* not pose deltas"):
        PoseDelta(spaces, MotionConfig(), metres=0.05, radians=0.5)
    with pytest.raises(RefusedError, match="6 finite numbers"):
        Wish(0.0, [0, 0, np.nan, 0, 0, 0])
    with pytest.raises(RefusedError, match="6 finite numbers"):
        Wish(0.0, [0, 0])
    with pytest.raises(RefusedError, match=r"Did you mean 'discard'\?"):
        check_command("discrad")
    with pytest.raises(RefusedError, match="view_yaw_deg=nan must be finite"):
        MotionConfig(view_yaw_deg=np.nan)
    with pytest.raises(RefusedError, match="low < high"):
        MotionConfig(workspace_low=(0, 0, 0), workspace_high=(1, 0, 1))


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_a_timeout_that_never_comes_is_refused(value):
    # With timeout_s=nan no wish was ever too old: the robot would have gone on after the device was lost.
    with pytest.raises(RefusedError, match=r"timeout_s=.* must be finite and not negative"):
        MotionConfig(timeout_s=value)


def test_a_wish_and_the_step_that_it_begins_end_within_a_tenth_of_a_second():
    assert MotionConfig().allowed_age_s(20.0) == pytest.approx(0.05)  # 0.1 s less one period of 0.05 s
    assert MotionConfig().allowed_age_s(100.0) == pytest.approx(0.09)
    with pytest.raises(RefusedError, match=r"timeout_s=0.08 is too long: with 20 Hz at most 0.050 s"):
        MotionConfig(timeout_s=0.08).allowed_age_s(20.0)
    with pytest.raises(RefusedError, match="At 10 Hz motion cannot end"):
        MotionConfig().allowed_age_s(10.0)


class Arm:
    """The Panda's model beside the controller, for forward kinematics of its own."""

    def __init__(self):
        self.spec = load_robot("panda")
        state = FeatureSpec((7,), names=self.spec.joints)
        limits = self.spec.position_low, self.spec.position_high
        self.spaces = Spaces("panda", {STATE: state}, FeatureSpec((7,), names=self.spec.joints), *limits, 20.0)
        self.model = mujoco.MjModel.from_xml_path(str(self.spec.model.locate()))
        self.data = mujoco.MjData(self.model)
        self.q = np.array(self.spec.home)

    def observation(self):
        return {STATE: self.q.astype(np.float32)}

    def hand(self, q):
        self.data.qpos[:7] = q
        mujoco.mj_kinematics(self.model, self.data)
        body = self.data.body("right_hand")
        return body.xpos.copy(), body.xmat.reshape(3, 3).copy()


def test_mink_moves_the_hand_along_the_wish_and_keeps_its_orientation():
    arm = Arm()
    motion = JointTargets(arm.spaces, arm.spec, MotionConfig(linear_speed_m_s=0.1, view_yaw_deg=0.0))
    motion.reset(arm.observation())
    place, turn = arm.hand(arm.q)
    for _ in range(20):
        arm.q = motion.act(arm.observation(), wish(0, 0, 1), 0).sent.astype(float)
    after, turned = arm.hand(arm.q)
    # 0.1 m/s upwards for 20 steps of 1/20 s: 10 cm.
    np.testing.assert_allclose(after - place, [0, 0, 0.1], atol=0.01)
    assert np.arccos(np.clip((np.trace(turn.T @ turned) - 1) / 2, -1, 1)) < 0.05
    np.testing.assert_array_equal(motion.act(arm.observation(), None, 0).sent, arm.q.astype(np.float32))


def test_joint_limits_and_speeds_hold_however_long_one_pushes():
    arm = Arm()
    motion = JointTargets(arm.spaces, arm.spec, MotionConfig(linear_speed_m_s=1.0, view_yaw_deg=0.0))
    motion.reset(arm.observation())
    low, high = np.array(arm.spec.position_low) + 0.05, np.array(arm.spec.position_high) - 0.05
    step = arm.spec.speed_scale * np.array(arm.spec.max_velocity) / 20
    for _ in range(60):
        before = arm.q
        arm.q = motion.act(arm.observation(), wish(1, 1, 1), 0).sent.astype(float)
        assert (np.abs(arm.q - before) <= step + 1e-6).all()
        assert ((arm.q >= low - 1e-6) & (arm.q <= high + 1e-6)).all()
        place, _ = arm.hand(arm.q)
        assert place[2] < 1.2
    reached, _ = arm.hand(arm.q)
    for _ in range(4):
        arm.q = motion.act(arm.observation(), wish(-1, -1, -1), 0).sent.astype(float)
    back, _ = arm.hand(arm.q)
    assert np.linalg.norm(back - reached) > 0.01, "a target that ran away would have to come back first"


def test_a_leader_is_followed_relative_to_where_the_clutch_closed():
    arm = Arm()
    motion = JointTargets(arm.spaces, arm.spec, MotionConfig())
    motion.reset(arm.observation())
    leader = np.full(7, 0.3)

    def follow(offset):
        joints = dict(zip(arm.spec.joints, leader + offset, strict=True))
        return motion.act(arm.observation(), Wish(0.0, engaged=True, joints=joints), 0)

    np.testing.assert_allclose(follow(0).sent, arm.q, atol=1e-6)
    # 0.25 of 2.175 rad/s for 1/20 s: joint 1 moves at most 0.0272 rad a step; 0.02 rad it follows at once.
    np.testing.assert_allclose(follow(0.02).sent, arm.q + 0.02, atol=1e-6)
    moved = follow(0.3)
    np.testing.assert_allclose(moved.action, arm.q + 0.3, atol=1e-6)
    assert moved.sent[0] == pytest.approx(arm.q[0] + 0.02 + 0.25 * 2.175 / 20, abs=1e-6)
    motion.act(arm.observation(), None, 0)
    before = motion.act(arm.observation(), Wish(0.0, engaged=True, joints={"panda_joint2": 0.0}), 0).sent
    after = motion.act(arm.observation(), Wish(0.0, engaged=True, joints={"panda_joint2": 0.01}), 0).sent
    np.testing.assert_allclose(after - before, [0, 0.01, 0, 0, 0, 0, 0], atol=1e-6)  # joints without a leader stay
    with pytest.raises(RefusedError, match=r"joints \['elbow'\] are none of 'panda'"):
        motion.act(arm.observation(), Wish(0.0, engaged=True, joints={"elbow": 0.0}), 0)
    with pytest.raises(RefusedError, match="no gripper"):
        motion.toggle_gripper(0)
