"""Episodes of the batched environment: refusals, endings, divergence, independence of rows."""

import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from sim_envs import osc_kernel as kernel
from sim_envs.task import EnvOptions, make_env


@pytest.fixture
def lift():
    env = make_env("lift", EnvOptions(num_envs=2))
    yield env
    env.close()


def still(env):
    return np.zeros((env.num_envs, env.spec.spaces.action_dim))


def test_it_is_an_env(lift):
    assert isinstance(lift, Env)


@pytest.mark.parametrize("shape", [(7,), (1, 7), (2, 6), (2, 1, 7)])
def test_a_wrong_action_shape_is_refused(lift, shape):
    lift.reset([0, 1])
    with pytest.raises(RefusedError, match=r"\(2, 7\)"):
        lift.step(np.zeros(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_moves_nothing(lift, bad):
    lift.reset([0, 1])
    before = [d.qpos.copy() for d in lift._simulators.datas]
    action = still(lift)
    action[1, 3] = bad
    with pytest.raises(RefusedError, match="environment 1 is not finite"):
        lift.step(action)
    assert all(np.array_equal(d.qpos, q) for d, q in zip(lift._simulators.datas, before, strict=True))


def test_stepping_before_the_first_reset_is_refused(lift):
    with pytest.raises(RefusedError, match="Environment 0 must be reset"):
        lift.step(still(lift))
    lift.reset([0, 0], mask=np.array([True, False]))
    with pytest.raises(RefusedError, match="Environment 1 must be reset"):
        lift.step(still(lift))


@pytest.mark.parametrize("seeds", [[1], [0.5, 1.5], [[1, 2]], [-1, 0], [0, 2**32]])
def test_seeds_that_are_not_seeds_are_refused(lift, seeds):
    with pytest.raises(RefusedError, match=r"[Ss]eed"):
        lift.reset(seeds)


def test_a_mask_of_numbers_is_refused(lift):
    with pytest.raises(RefusedError, match="bool"):
        lift.reset([0, 1], mask=np.array([1, 0]))


def test_an_unknown_camera_is_refused_with_the_nearest():
    with pytest.raises(RefusedError, match="'agentview'"):
        make_env("lift", EnvOptions(cameras=("agentvew",)))


def test_a_masked_reset_leaves_the_others_alone(lift):
    lift.reset([0, 1])
    lift.step(still(lift))
    before = lift._simulators.datas[0].qpos.copy()
    # The seed of an environment that is not reset is ignored, even an impossible one.
    observation = lift.reset([-1, 5], mask=np.array([False, True]))
    assert np.array_equal(lift._simulators.datas[0].qpos, before)
    other = make_env("lift", EnvOptions(num_envs=1)).reset([5])
    assert np.array_equal(observation[STATE][1], other[STATE][0])


def test_an_ended_environment_repeats_its_last_result(lift):
    lift.reset([0, 1])
    cube = lift._simulators.models[0].joint("cube_joint0").qposadr[0] + 2
    lift._simulators.datas[0].qpos[cube] = 1.2
    solved = lift.step(still(lift))
    assert solved.success.tolist() == [True, False]
    assert solved.reward.tolist() == [1.0, 0.0]
    assert solved.terminated.tolist() == [True, False]
    later = lift.step(still(lift) + 0.5)
    assert later.success.tolist() == [True, False]
    assert np.array_equal(later.observation[STATE][0], solved.observation[STATE][0])
    assert not np.array_equal(later.observation[STATE][1], solved.observation[STATE][1])
    again = lift.reset([0, 0], mask=np.array([True, False]))
    assert np.array_equal(again[STATE][0], make_env("lift", EnvOptions()).reset([0])[STATE][0])
    assert not lift.step(still(lift)).terminated.any()


def test_an_episode_is_cut_at_its_last_step(lift):
    lift.reset([0, 1])
    steps = [lift.step(still(lift)) for _ in range(200)]
    assert not any(s.truncated.any() for s in steps[:-1])
    assert steps[-1].truncated.all()
    assert not steps[-1].terminated.any()


def test_divergence_is_reported_and_never_papered_over(lift, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warnings to MUJOCO_LOG.TXT
    lift.reset([0, 1])
    before = lift.step(still(lift))
    lift._simulators.datas[0].qvel[0] = np.nan
    step = lift.step(still(lift))
    assert step.terminated.tolist() == [True, False]
    assert step.success.tolist() == [False, False]
    assert step.truncated.tolist() == [False, False]
    assert np.array_equal(step.observation[STATE][0], before.observation[STATE][0])
    assert np.isfinite(step.observation[STATE]).all()
    lift.reset([0, 0], mask=np.array([True, False]))
    assert not lift.step(still(lift)).terminated.any()


def test_a_singular_controller_is_divergence_too(lift, tmp_path, monkeypatch):
    # Clipping by min and max once turned a NaN torque into the lowest allowed one, and the arm went on.
    monkeypatch.chdir(tmp_path)
    lift.reset([0, 1])
    lift._simulators.slots.stale[0, 0, kernel.MASS :] = 0.0
    step = lift.step(still(lift))
    assert step.terminated.tolist() == [True, False]
    assert not step.success.any()


def test_every_door_stands_where_its_own_seed_put_it():
    env = make_env("door", EnvOptions(num_envs=2))
    observation = env.reset([0, 1])[ENVIRONMENT_STATE]
    assert not np.allclose(observation[0, :3], observation[1, :3], atol=1e-4)
    names = env.spec.spaces.observation[ENVIRONMENT_STATE].names
    assert names[:3] == ("door_pos_x", "door_pos_y", "door_pos_z")
    assert names[-2:] == ("hinge_angle", "handle_angle")
    # Drawing the second door must not have moved the first.
    alone = make_env("door", EnvOptions(num_envs=1)).reset([0])[ENVIRONMENT_STATE]
    assert np.array_equal(alone[0], observation[0])


def test_observation_of_two_arms_is_in_the_order_of_its_names():
    env = make_env("two_arm_lift", EnvOptions(num_envs=1))
    observation = env.reset([4])
    spaces = env.spec.spaces
    assert spaces.robot == "panda_pair"
    assert spaces.action.names[7:] == tuple(f"robot1_{n}" for n in ("dx", "dy", "dz", "drx", "dry", "drz", "gripper"))
    state = dict(zip(spaces.observation[STATE].names, observation[STATE][0], strict=True))
    world = dict(zip(spaces.observation[ENVIRONMENT_STATE].names, observation[ENVIRONMENT_STATE][0], strict=True))
    for axis in "xyz":
        # handle1 belongs to the second arm, pot and handle0 to the first.
        assert world[f"handle1_to_eef_{axis}"] == pytest.approx(
            world[f"handle1_pos_{axis}"] - state[f"robot1_eef_pos_{axis}"], abs=1e-6
        )
        assert world[f"pot_to_eef_{axis}"] == pytest.approx(world[f"pot_pos_{axis}"] - state[f"robot0_eef_pos_{axis}"], abs=1e-6)
    assert state["robot0_eef_pos_y"] < 0 < state["robot1_eef_pos_y"]


def test_pictures_follow_the_environment_that_is_drawn():
    env = make_env("door", EnvOptions(num_envs=2, cameras=("agentview",), image_size=48))
    images = env.reset([0, 1])["observation.images.agentview"]
    assert images.shape == (2, 48, 48, 3)
    assert images.std() > 10
    # The two doors stand in different places, which only the models' body poses tell.
    assert not np.array_equal(images[0], images[1])
    assert np.array_equal(env.render(0, "agentview", 48, 48), images[0])
    with pytest.raises(RefusedError, match="'agentview'"):
        env.render(0, "agentvew", 48, 48)
    env.close()


def test_drawing_before_the_first_reset_is_refused(lift):
    with pytest.raises(RefusedError, match="must have been reset"):
        lift.render(0, "agentview", 32, 32)
