"""The tasks as Gymnasium environments: its checker passes, and our vector environment equals Gymnasium's own over single ones."""

import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from robolearn.core.errors import RefusedError
from sim_envs.gymnasium_env import TaskEnv, TaskVectorEnv
from sim_envs.registration import gymnasium_id, register_environments
from sim_envs.task import EnvOptions, get_task, make_env, task_names

IDS = [i for i in gymnasium.registry if i.startswith("robolearn/")]
NATIVE = "robolearn/NativeLift-v0"


def test_every_task_and_fidelity_has_an_id() -> None:
    wanted = {gymnasium_id(get_task(n), f) for n in task_names() for f in get_task(n).fidelities}
    assert wanted == set(IDS)
    assert {"robolearn/Lift-v0", "robolearn/LiftTurbo-v0", "robolearn/LiftReference-v0", NATIVE} <= wanted
    before = dict(gymnasium.registry)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        register_environments()  # a second call changes nothing and warns of nothing
    assert dict(gymnasium.registry) == before


def test_import_is_light() -> None:
    code = "import sim_envs, sys; print([m for m in ('mujoco', 'robosuite', 'numba', 'torch', 'OpenGL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_make_works_with_the_module_prefix_alone() -> None:
    code = "import gymnasium; print(type(gymnasium.make('sim_envs:robolearn/NativeLift-v0').unwrapped).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "TaskEnv"


# robosuite untouched is slow to check, and the same adapter for every task: once is enough.
@pytest.mark.parametrize("env_id", [i for i in IDS if "Reference" not in i or i == "robolearn/LiftReference-v0"])
@pytest.mark.filterwarnings("ignore:.*infinity.*:UserWarning")
def test_gymnasium_checker_passes(env_id: str) -> None:
    environment = gymnasium.make(env_id, disable_env_checker=True)
    check_env(environment.unwrapped, skip_render_check=env_id != NATIVE)
    environment.close()


def single() -> gymnasium.Env:
    return gymnasium.make(NATIVE)


def end_soon(vector: gymnasium.vector.VectorEnv) -> None:
    """Bring the end of episodes near: one row after 6 steps, the other after 9."""
    batches = [e.unwrapped._batch for e in vector.envs] if isinstance(vector, SyncVectorEnv) else [vector._batch]
    rows = [batch._elapsed for batch in batches]
    for row, left in zip(np.arange(2), (6, 9), strict=True):
        rows[row if len(rows) > 1 else 0][row if len(rows) == 1 else 0] = 100 - left


def assert_equal(ours: object, theirs: object) -> None:
    if isinstance(ours, dict):
        assert isinstance(theirs, dict)
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            assert_equal(value, theirs[key])
    elif isinstance(ours, tuple) or (isinstance(ours, np.ndarray) and ours.dtype == object):
        for mine, other in zip(ours, theirs, strict=True):  # type: ignore[call-overload]
            assert_equal(mine, other)
    else:
        np.testing.assert_array_equal(ours, theirs)  # type: ignore[arg-type]
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype  # type: ignore[attr-defined]


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_environment_equals_gymnasiums_own(mode: AutoresetMode) -> None:
    ours = gymnasium.make_vec(NATIVE, num_envs=2, autoreset_mode=mode)
    theirs = SyncVectorEnv([single, single], autoreset_mode=mode)
    assert isinstance(ours, TaskVectorEnv)
    assert ours.single_observation_space == theirs.single_observation_space
    assert ours.action_space == theirs.action_space
    assert ours.metadata["autoreset_mode"] is mode
    assert_equal(ours.reset(seed=7), theirs.reset(seed=7))
    end_soon(ours)
    end_soon(theirs)
    ends = 0
    for action in np.random.default_rng(0).uniform(-1, 1, (14, 2, 7)).astype(np.float32):
        mine, other = ours.step(action), theirs.step(action)
        assert_equal(mine[:4], other[:4])
        assert_equal(mine[4], other[4])
        ends += int((mine[2] | mine[3]).sum())
        assert ours.observation_space.contains(mine[0])
    assert ends == 2
    assert_equal(ours.reset(), theirs.reset())  # unseeded: both draw the same next episodes


def test_same_step_hands_over_the_final_observation() -> None:
    env = gymnasium.make_vec(NATIVE, num_envs=3, autoreset_mode="SameStep")
    env.reset(seed=0)
    env._batch._elapsed[1] = 99
    observation, _, terminated, truncated, infos = env.step(np.ones((3, 7), np.float32))
    assert truncated.tolist() == [False, True, False]
    assert not terminated.any()
    assert infos["_final_obs"].tolist() == [False, True, False]
    final = infos["final_obs"][1]["observation.state"]
    assert np.abs(final - observation["observation.state"][1]).max() > 1e-3
    assert infos["final_obs"][0] is None
    assert infos["final_info"]["_success"].tolist() == [False, True, False]


def test_disabled_autoreset_takes_a_mask() -> None:
    env = gymnasium.make_vec(NATIVE, num_envs=2, autoreset_mode=AutoresetMode.DISABLED)
    env.reset(seed=0)
    env._batch._elapsed[0] = 99
    observation, _, _, truncated, _ = env.step(np.zeros((2, 7), np.float32))
    assert truncated.tolist() == [True, False]
    with pytest.raises(RefusedError, match=r"\[0\] have ended"):
        env.step(np.zeros((2, 7), np.float32))
    again, infos = env.reset(options={"reset_mask": truncated})
    np.testing.assert_array_equal(again["observation.state"][1], observation["observation.state"][1])
    assert infos["_success"].tolist() == [True, False]
    env.step(np.zeros((2, 7), np.float32))


def test_success_is_reported_and_seeds_mean_the_same_everywhere() -> None:
    env, batch = gymnasium.make(NATIVE), make_env("native_lift", EnvOptions(num_envs=1))
    expert = get_task("native_lift").make_expert(1, 1.0)
    observation, info = env.reset(seed=5)
    assert info == {"success": False}
    assert_equal(observation, {k: v[0] for k, v in batch.reset([5]).items()})
    expert.reset([5])
    done = False
    while not done:
        action = expert.act({k: v[None] for k, v in observation.items()})[0][0]
        observation, reward, terminated, truncated, info = env.step(action)
        done = terminated or truncated
    assert info["success"]
    assert terminated
    assert reward == 1.0


def test_pictures() -> None:
    env = gymnasium.make(NATIVE, render_mode="rgb_array", cameras=("agentview",), image_size=32, render_camera="frontview")
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation["observation.images.agentview"].shape == (32, 32, 3)
    assert env.render().shape == (256, 256, 3)
    vector = gymnasium.make_vec(NATIVE, num_envs=2, render_mode="rgb_array")
    vector.reset(seed=0)
    assert [p.shape for p in vector.render()] == [(256, 256, 3)] * 2


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(RefusedError, match="rgb_array"):
        TaskEnv("native_lift", render_mode="human")
    with pytest.raises(RefusedError, match="Did you mean 'frontview'"):
        TaskEnv("native_lift", render_camera="fontview")
    with pytest.raises(RefusedError, match="Did you mean 'SameStep'"):
        TaskVectorEnv("native_lift", autoreset_mode="SamStep")
    env = TaskVectorEnv("native_lift", num_envs=2)
    with pytest.raises(RefusedError, match="3 seeds for 2"):
        env.reset(seed=[1, 2, 3])
    with pytest.raises(RefusedError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(2, bool)})
    with pytest.raises(RefusedError, match="nonsense"):
        env.reset(options={"nonsense": 1})
    with pytest.raises(RefusedError, match="nonsense"):
        TaskEnv("native_lift").reset(options={"nonsense": 1})
