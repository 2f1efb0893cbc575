"""The phase machine of the scripted experts by hand-worked numbers, and what every expert keeps on its own environment."""

import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.rotations import rotation_6d_from_matrix
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from sim_envs.experts.hand import rotation_vector, top_down
from sim_envs.experts.phases import ScriptedExpert
from sim_envs.experts.pick import nearest_quarter
from sim_envs.experts.scene import CLOSED, OPEN, Command
from sim_envs.task import EnvOptions, get_task, make_env

TASKS = ("lift", "stack", "can", "square", "door", "two_arm_lift")
GOAL_M = np.array([0.01, 0.0, -1.0])


class ReachExpert(ScriptedExpert):
    """Servos to GOAL_M with the hand straight down, free of contact for 3 steps and in contact from then on."""

    def phases(self):
        return self._free, self._contact

    def _command(self, scene, gripper, following, contact):
        goal = np.broadcast_to(GOAL_M, scene.eef_pos.shape)
        yaw = np.full(scene.eef_pos.shape[:-1], 0.1)
        return Command(goal, top_down(yaw), gripper, following, contact=contact)

    def _free(self, scene):
        return self._command(scene, OPEN, np.where(scene.timer >= 2, 1, 0), contact=False)

    def _contact(self, scene):
        return self._command(scene, CLOSED, np.ones(len(scene.timer), int), contact=True)


class TwoArmReachExpert(ReachExpert):
    arm_base_yaw = (0.0, np.pi / 2)


def observation_at(positions, yaw=0.0):
    """Observation of one-armed robots (b, 3) or many-armed ones (b, arms, 3) whose hands point down with heading ``yaw``."""
    positions = np.asarray(positions, dtype=float)
    arms = positions.reshape(len(positions), -1, 3)
    hand = np.broadcast_to(rotation_6d_from_matrix(top_down(np.array(yaw))), (*arms.shape[:-1], 6))
    fingers = np.broadcast_to([0.04, -0.04], (*arms.shape[:-1], 2))
    return {
        STATE: np.concatenate([arms, hand, fingers], axis=-1).reshape(len(positions), -1).astype(np.float32),
        "observation.joint_position": np.zeros((len(positions), 7 * arms.shape[1]), np.float32),
        ENVIRONMENT_STATE: np.tile(np.r_[np.zeros(3), 1, 0, 0, 0, 1, 0, np.zeros(3)], (len(positions), 1)).astype(np.float32),
    }


def unhurried(expert, gain=1.0, speed=0.5):
    """Replace the drawn style by plain numbers, without a pause."""
    expert._memory["gain"], expert._memory["speed"], expert._memory["pause_phase"] = gain, speed, -1
    return expert


def test_servo_by_hand():
    expert = ReachExpert(1)
    expert.reset([0])
    _, intended = unhurried(expert).act(observation_at([[0.0, 0.0, 0.0]]))
    # x: 1.0 * 0.01 m / 0.05 m = 0.2; z: 1.0 * -1 m / 0.05 m = -20, limited to the speed 0.5;
    # turn about z: 1.5 * 0.1 rad / 0.5 rad = 0.3; the gripper opens.
    np.testing.assert_allclose(intended, [[0.2, 0.0, -0.5, 0.0, 0.0, 0.3, -1.0]], atol=1e-6)


def test_each_arm_is_commanded_in_the_frame_of_its_base():
    expert = TwoArmReachExpert(1)
    expert.reset([0])
    _, intended = unhurried(expert).act(observation_at([[[0.0, 0.0, -1.0], [0.0, 0.0, -1.0]]]))
    # The second base is turned by +90 degrees: the world's x is its -y; a turn about z stays what it is.
    np.testing.assert_allclose(intended[0, :7], [0.2, 0.0, 0.0, 0.0, 0.0, 0.3, -1.0], atol=1e-6)
    np.testing.assert_allclose(intended[0, 7:], [0.0, -0.2, 0.0, 0.0, 0.0, 0.3, -1.0], atol=1e-6)


def test_noise_is_three_times_larger_in_free_motion():
    # Three free steps, then contact: 400 environments x 3 steps x 3 axes = 3600 draws of 3 * 0.05 = 0.15 for the position and
    # half of it for the rotation; the standard error of a standard deviation is 0.15 / sqrt(7200) = 0.0018. |intended| <= 0.3:
    # nothing is clipped.
    expert = ReachExpert(400)
    expert.reset(np.arange(400))
    unhurried(expert)
    difference = []
    for _ in range(6):
        executed, intended = expert.act(observation_at(np.tile([0.0, 0.0, -1.0], (400, 1))))
        difference.append(executed - intended)
    free, contact = np.array(difference[:3]), np.array(difference[3:])
    assert free[..., :3].std() == pytest.approx(0.15, abs=0.008)
    assert free[..., 3:6].std() == pytest.approx(0.075, abs=0.004)
    assert contact[..., :3].std() == pytest.approx(0.05, abs=0.003)
    assert contact[..., 3:6].std() == pytest.approx(0.025, abs=0.0015)
    assert not np.array(difference)[..., 6].any(), "the gripper is commanded without noise"


def test_a_pause_holds_still_at_the_start_of_its_phase():
    expert = ReachExpert(1)
    expert.reset([0])
    unhurried(expert)
    expert._memory["pause_phase"], expert._memory["pause_steps"] = 0, 5
    actions = np.array([expert.act(observation_at([[0.0, 0.0, -1.0]]))[1][0] for _ in range(7)])
    # Five steps of pause delay the change of phase (due after the third step) to the sixth; the gripper keeps its command.
    assert not actions[:5, :6].any()
    assert actions[5, :6].any()
    np.testing.assert_array_equal(actions[:, 6], [OPEN] * 6 + [CLOSED])


def test_masked_reset_leaves_the_others_alone():
    observation = observation_at(np.zeros((2, 3)))
    touched, untouched = ReachExpert(2), ReachExpert(2)
    for expert in (touched, untouched):
        expert.reset([3, 4])
        expert.act(observation)
    touched.reset([99, 5], mask=np.array([False, True]))
    executed, reference = touched.act(observation)[0], untouched.act(observation)[0]
    np.testing.assert_array_equal(executed[0], reference[0])
    assert not np.array_equal(executed[1], reference[1])
    fresh = ReachExpert(1)
    fresh.reset([5])
    np.testing.assert_array_equal(executed[1], fresh.act(observation_at(np.zeros((1, 3))))[0][0])


def test_rotation_vector_inverts_a_turn_about_z():
    angle = np.array([-3.0, -0.4, 0.0, 1e-7, 2.5])
    turn = top_down(angle) @ np.swapaxes(top_down(np.zeros(5)), -1, -2)
    np.testing.assert_allclose(rotation_vector(turn), angle[:, None] * [0.0, 0.0, 1.0], atol=1e-9)


def test_nearest_quarter_by_hand():
    # 100 degrees is 10 past a quarter turn: seen from 0 it is 10 degrees, seen from 90 it stays 100, seen from 200 it is 190.
    degrees = np.degrees(nearest_quarter(np.radians([100.0, 100.0, 100.0]), np.radians([0.0, 90.0, 200.0])))
    np.testing.assert_allclose(degrees, [10.0, 100.0, 190.0])


def test_refusals():
    with pytest.raises(RefusedError, match=r"quality=1\.5"):
        ReachExpert(1, 1.5)
    with pytest.raises(RefusedError, match="num_envs=0"):
        ReachExpert(0)
    expert = ReachExpert(2)
    with pytest.raises(RefusedError, match="before reset"):
        expert.act(observation_at(np.zeros((2, 3))))
    with pytest.raises(RefusedError, match="3 seeds"):
        expert.reset([0, 1, 2])
    expert.reset([0, 1])
    with pytest.raises(RefusedError, match=r"observation.state.*\(2, 11\).*\(3, 11\)"):
        expert.act(observation_at(np.zeros((3, 3))))
    with pytest.raises(RefusedError, match=r"environment_state.*nothing"):
        expert.act({k: v for k, v in observation_at(np.zeros((2, 3))).items() if k != ENVIRONMENT_STATE})


def demonstrate(env, name, seeds, quality, steps):
    """Roll the expert; return success (b,), executed and intended (t, b, a), and the observations that it saw."""
    expert = get_task(name).make_expert(len(seeds), quality)
    observation = env.reset(seeds)
    expert.reset(seeds)
    success, executed, intended, seen = np.zeros(len(seeds), bool), [], [], []
    for _ in range(steps):
        seen.append(observation)
        noisy, clean = expert.act(observation)
        executed.append(noisy)
        intended.append(clean)
        step = env.step(noisy)
        observation = step.observation
        success |= step.success
        if step.ended.all():
            break
    return success, np.array(executed), np.array(intended), seen


@pytest.mark.parametrize("name", TASKS)
def test_a_demonstration_depends_on_its_seed_alone(name):
    env = make_env(name, EnvOptions(num_envs=3))
    _, executed, intended, seen = demonstrate(env, name, [5, 6, 7], 0.6, 40)
    env.close()
    assert executed.dtype == np.float32
    assert np.abs(executed).max() <= 1.0
    assert np.abs(intended).max() <= 1.0
    assert set(np.unique(intended[..., 6::7])) <= {OPEN, CLOSED}
    again, alone = get_task(name).make_expert(3, 0.6), get_task(name).make_expert(1, 0.6)
    again.reset([5, 6, 7])
    alone.reset([6])
    for i, observation in enumerate(seen):
        np.testing.assert_array_equal(again.act(observation)[0], executed[i])
        np.testing.assert_array_equal(alone.act({k: v[1:2] for k, v in observation.items()})[0][0], executed[i, 1])
    assert np.abs(executed[:, 0] - executed[:, 1]).max() > 0.1


def test_lower_quality_solves_less():
    env = make_env("lift", EnvOptions(num_envs=10))
    best, middle, worst = (demonstrate(env, "lift", np.arange(10), quality, 90)[0].sum() for quality in (1.0, 0.5, 0.0))
    env.close()
    assert best == 10
    assert best > middle > worst
