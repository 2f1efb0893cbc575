"""The native lift task: determinism, refusal, freezing, grasp quality and the scripted expert."""

import mujoco
import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.rotations import matrix_from_quat_wxyz, rotation_6d_from_matrix
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from sim_envs.experts.native_lift import LIFT, NativeLiftExpert
from sim_envs.native_env import NativeLiftEnv
from sim_envs.native_model import native_scene
from sim_envs.task import EnvOptions, make_env


def make(num_envs: int = 1, threads: int = 1) -> NativeLiftEnv:
    env = make_env("native_lift", EnvOptions(num_envs=num_envs, num_threads=threads))
    assert isinstance(env, NativeLiftEnv)
    return env


def run_expert(env: NativeLiftEnv, quality: float, seeds: np.ndarray) -> np.ndarray:
    expert = NativeLiftExpert(env.num_envs, quality)
    observation = env.reset(seeds)
    expert.reset(seeds)
    while True:
        step = env.step(expert.act(observation)[0])
        observation = step.observation
        assert not (step.terminated & step.truncated).any()
        if step.ended.all():
            return step.success


def test_observation_matches_mujoco() -> None:
    env = make()
    observation = env.reset([5])
    for action in np.random.default_rng(0).uniform(-1, 1, (10, 1, 7)):
        observation = env.step(action).observation
    model = native_scene().model
    data = mujoco.MjData(model)
    data.qpos[:] = env.qpos()[0]
    mujoco.mj_kinematics(model, data)
    tool = np.r_[data.site("grip").xpos, rotation_6d_from_matrix(data.site("grip").xmat.reshape(3, 3)), data.qpos[7:9]]
    np.testing.assert_allclose(observation[STATE][0], tool, atol=1e-6)
    np.testing.assert_allclose(observation["observation.joint_position"][0], data.qpos[:7], atol=1e-6)
    rotation = rotation_6d_from_matrix(matrix_from_quat_wxyz(data.qpos[12:16]))
    cube = np.r_[data.qpos[9:12], rotation, data.qpos[9:12] - data.site("grip").xpos]
    np.testing.assert_allclose(observation[ENVIRONMENT_STATE][0], cube, atol=1e-6)


def test_a_seed_gives_the_same_episode_in_any_batch_order_and_thread_count() -> None:
    actions = np.random.default_rng(1).uniform(-1, 1, (15, 7))
    small, large = make(1), make(5, threads=2)
    small.reset([11])
    large.reset([3, 7, 11, 2, 9])
    for action in actions:
        alone = small.step(action[None]).observation
        among = large.step(np.tile(action, (5, 1))).observation
    for key, value in alone.items():
        np.testing.assert_array_equal(value[0], among[key][2])
    # A second use of the same simulator leaves no trace of the first.
    small.reset([11])
    for action in actions:
        again = small.step(action[None]).observation
    np.testing.assert_array_equal(again[STATE], alone[STATE])


def test_start_states_spread_over_the_table() -> None:
    env = make(64)
    cube = env.reset(range(64))[ENVIRONMENT_STATE]
    assert np.ptp(cube[:, 0]) > 0.12
    assert np.ptp(cube[:, 1]) > 0.18
    yaw = np.arctan2(cube[:, 4], cube[:, 3])
    assert np.ptp(yaw) > 5.0
    # The cube is at rest from the first step: its height changes by less than 0.1 mm.
    before = cube[:, 2].copy()
    after = env.step(np.zeros((64, 7))).observation[ENVIRONMENT_STATE][:, 2]
    assert np.abs(after - before).max() < 1e-4


def test_standing_still_is_truncated_and_then_frozen() -> None:
    env = make()
    env.reset([0])
    for _ in range(99):
        assert not env.step(np.zeros((1, 7))).ended[0]
    last = env.step(np.zeros((1, 7)))
    assert last.truncated[0]
    assert not last.terminated[0]
    frozen = env.step(np.ones((1, 7)))
    assert frozen.truncated[0]
    np.testing.assert_array_equal(frozen.observation[STATE], last.observation[STATE])
    # Standing still holds the arm: less than 2 mm of creep in 5 s.
    start = env.reset([0])[STATE][0, :3]
    assert np.abs(last.observation[STATE][0, :3] - start).max() < 2e-3


def test_partial_reset_leaves_the_other_rows() -> None:
    env = make(2)
    env.reset([1, 2])
    moved = env.step(np.ones((2, 7))).observation[STATE]
    observation = env.reset([1, 99], np.array([True, False]))[STATE]
    np.testing.assert_array_equal(observation[1], moved[1])
    assert np.abs(observation[0] - moved[0]).max() > 1e-3


def test_bad_input_is_refused_and_nothing_moves() -> None:
    env = make(2)
    with pytest.raises(RefusedError, match="before its first reset"):
        env.step(np.zeros((2, 7)))
    env.reset([1, 2])
    before = env.qpos()
    with pytest.raises(RefusedError, match=r"\(2, 7\), got \(2, 6\)"):
        env.step(np.zeros((2, 6)))
    bad = np.zeros((2, 7))
    bad[1, 3] = np.nan
    with pytest.raises(RefusedError, match=r"action\[1, 3\] is nan"):
        env.step(bad)
    with pytest.raises(RefusedError, match=r"shape \(3,\) for 2"):
        env.reset([1, 2, 3])
    with pytest.raises(RefusedError, match="float64 seeds"):
        env.reset([1.5, 2.0])
    with pytest.raises(RefusedError, match="mask must be bool"):
        env.reset([1, 2], np.array([1, 0]))
    with pytest.raises(RefusedError, match="agentview"):
        make_env("native_lift", EnvOptions(cameras=("agentveiw",)))
    np.testing.assert_array_equal(env.qpos(), before)


def test_a_diverged_simulation_ends_without_success_and_without_nan(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes its warning to MUJOCO_LOG.TXT in the working folder
    env = make(2)
    env.reset([1, 2])
    env._data[0].qvel[3] = np.nan
    step = env.step(np.zeros((2, 7)))
    assert step.terminated.tolist() == [True, False]
    assert not step.success.any()
    assert all(np.isfinite(v).all() for v in step.observation.values())
    assert env.render(0, "agentview", 32, 32).shape == (32, 32, 3)  # garbage in the scene does not stop a recording
    # The next episode of that row is sound.
    env.reset([1, 2], np.array([True, False]))
    assert not env.step(np.zeros((2, 7))).ended.any()


def test_random_control_raises_no_warning() -> None:
    env = make(8)
    env.reset(range(8))
    for action in np.random.default_rng(2).uniform(-1, 1, (100, 8, 7)):
        env.step(action)
    assert not env._buffers.diverged.any()
    assert all(d.warning.number.sum() == 0 for d in env._data)


def slip_after_grasp(shake: float) -> np.ndarray:
    """Return (16,) how far [m] the cube moves in the hand from the closed grasp to 40 steps after it was raised by 8 cm."""
    n = 16
    env, expert = make(n), NativeLiftExpert(n)
    observation = env.reset(np.arange(n))
    expert.reset(np.arange(n))
    rng = np.random.default_rng(3)
    start, worst = np.full((n, 3), np.nan), np.zeros(n)
    held = np.zeros(n, int)
    while (held < 40).any():
        env._buffers.ended[:] = False  # go on after success
        env._elapsed[:] = 0
        action = expert.act(observation)[1]
        action[held > 0, :3] = rng.uniform(-shake, shake, (int((held > 0).sum()), 3))
        observation = env.step(action).observation
        state, cube = observation[STATE], observation[ENVIRONMENT_STATE]
        tool = np.stack([state[:, 3:6], state[:, 6:9], np.cross(state[:, 3:6], state[:, 6:9])], axis=1)
        in_hand = np.einsum("bij,bj->bi", tool, cube[:, 9:12])
        closed = (expert._phase == LIFT) & np.isnan(start[:, 0])
        start[closed] = in_hand[closed]
        held += (held > 0) | (cube[:, 2] > 0.9)
        slip = np.linalg.norm(in_hand - start, axis=1)
        worst = np.fmax(worst, np.where(held <= 40, slip, 0.0))
    return worst


def test_scripted_grasp_holds_without_slip() -> None:
    assert slip_after_grasp(shake=0.0).max() < 3e-3
    # MuJoCo's friction holds velocities, not positions: a shaken grasp creeps a little at any physics step.
    assert np.median(slip_after_grasp(shake=0.3)) < 3e-3


def test_expert_succeeds_and_quality_lowers_success() -> None:
    env = make(64)
    seeds = np.arange(64)
    assert run_expert(env, 1.0, seeds).mean() >= 0.95
    # The share of careful episodes is the quality: 0.5 gives 32 +- 8 of 64 (two standard deviations of Binomial(64, 0.5)).
    assert 0.3 <= run_expert(env, 0.5, seeds).mean() <= 0.65
    assert run_expert(env, 0.0, seeds).mean() <= 0.1


def test_expert_styles_differ_and_are_reproducible() -> None:
    env = make(2)
    observation = env.reset([4, 4])
    first, second = NativeLiftExpert(2), NativeLiftExpert(2)
    first.reset([1, 2])
    second.reset([1, 2])
    executed, intended = first.act(observation)
    np.testing.assert_array_equal(executed, second.act(observation)[0])
    assert np.abs(executed[0] - executed[1]).max() > 0.01
    assert np.abs(executed - intended).max() > 0.0
    with pytest.raises(RefusedError, match="quality"):
        NativeLiftExpert(1, 1.5)
    with pytest.raises(RefusedError, match="before its reset"):
        NativeLiftExpert(1).act(observation)
