"""What every file of ``sim_envs/tasks`` keeps: walks the folder, so a new task is held to it without being named here."""

import re
import zlib

import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from sim_envs.task import EnvOptions, get_task, make_env, task_names

EXPERT_EPISODES = 20
EXPERT_SUCCESSES = 18

every_task = pytest.mark.parametrize("name", task_names())


def random_actions(env, seeds, step):
    """One action per environment that depends on its seed and the step alone."""
    size = env.spec.spaces.action_dim
    return np.stack([np.random.default_rng([seed, step]).uniform(-1, 1, size) for seed in seeds]).astype(np.float32)


def roll(name, options, seeds, steps):
    """Observations and results of ``steps`` random control steps, one list entry per step."""
    env = make_env(name, options)
    records = [dict(env.reset(seeds))]
    for i in range(steps):
        step = env.step(random_actions(env, seeds, i))
        records.append(dict(step.observation, reward=step.reward, terminated=step.terminated, success=step.success))
    env.close()
    return records


def still_action(env, observation):
    """No motion, fingers left where they are: rates 0, and positions as they are measured."""
    spaces = env.spec.spaces
    action = np.zeros((env.num_envs, spaces.action_dim), dtype=np.float32)
    for key, feature in spaces.observation.items():
        for i, name in enumerate(feature.names):
            if name in spaces.action.names:
                action[:, spaces.action.names.index(name)] = observation[key][:, i]
    return action


@every_task
def test_definition(name):
    task = get_task(name)
    assert task.name == name
    assert re.fullmatch(r"([A-Z][a-z0-9]*)+", task.env_id)
    assert task.summary.endswith(".")
    assert task.fidelities
    assert task.max_episode_steps > 0
    with pytest.raises(RefusedError, match="faithful"):
        make_env(name, EnvOptions(fidelity="faithful"))


def test_environment_ids_are_unique():
    ids = [get_task(name).env_id for name in task_names()]
    assert len(set(ids)) == len(ids)


@every_task
def test_observations_match_the_spaces(name):
    env = make_env(name, EnvOptions(num_envs=3))
    assert isinstance(env, Env)
    spaces = env.spec.spaces
    assert spaces.control_rate_hz == 20.0
    observations = [env.reset([0, 1, 2]), env.step(random_actions(env, [0, 1, 2], 0)).observation]
    for observation in observations:
        assert set(observation) == set(spaces.observation)
        for key, feature in spaces.observation.items():
            assert observation[key].shape == (3, *feature.shape), key
            assert observation[key].dtype == np.dtype(feature.dtype), key
            assert np.isfinite(observation[key]).all(), key
            assert len(feature.names) == feature.shape[0], key
    # What was handed out is the caller's: a later step does not write into it.
    kept = {key: value.copy() for key, value in observations[1].items()}
    env.step(random_actions(env, [0, 1, 2], 1))
    for key, value in kept.items():
        assert np.array_equal(observations[1][key], value), key
    env.close()


@every_task
def test_a_seed_decides_the_episode_whatever_the_batch_order_and_threads(name):
    one = roll(name, EnvOptions(num_envs=3), [5, 6, 7], 15)
    other = roll(name, EnvOptions(num_envs=2, num_threads=2), [7, 5], 15)
    for a, b in zip(one, other, strict=True):
        for key, value in a.items():
            assert np.array_equal(value[2], b[key][0]), key
            assert np.array_equal(value[0], b[key][1]), key
    assert any(not np.array_equal(one[0][key][0], one[0][key][1]) for key in one[0])


@every_task
def test_a_second_episode_of_the_same_environment_is_the_first_again(name):
    env = make_env(name, EnvOptions(num_envs=1))
    episodes = []
    for _ in range(2):
        env.reset([3])
        env.step(random_actions(env, [1], 0))
        observation = env.reset([9])
        episodes.append([observation] + [env.step(random_actions(env, [9], i)).observation for i in range(5)])
    for a, b in zip(*episodes, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
    env.close()


@every_task
def test_standing_still_fails_and_is_cut_at_the_last_step(name):
    env = make_env(name, EnvOptions(num_envs=2))
    limit = env.spec.max_episode_steps
    assert limit == get_task(name).max_episode_steps
    still = still_action(env, env.reset([20, 21]))
    for i in range(1, limit + 1):
        step = env.step(still)
        assert not step.success.any()
        assert not step.terminated.any()
        assert step.truncated.all() == (i == limit)
        assert step.truncated.any() == (i == limit)
    assert np.array_equal(step.reward, np.zeros(2, dtype=np.float32))
    env.close()


@every_task
def test_random_control_raises_no_mujoco_warning(name, tmp_path, monkeypatch, capfd):
    # MuJoCo writes each warning to the standard output and to MUJOCO_LOG.TXT in the working directory.
    monkeypatch.chdir(tmp_path)
    env = make_env(name, EnvOptions(num_envs=4))
    seeds = [zlib.crc32(name.encode()) % 1000 + i for i in range(4)]
    env.reset(seeds)
    for i in range(min(100, env.spec.max_episode_steps)):
        step = env.step(random_actions(env, seeds, i))
        assert not (step.terminated & ~step.success).any()
        assert not (step.terminated & step.truncated).any()
    env.close()
    assert not (tmp_path / "MUJOCO_LOG.TXT").exists()
    assert "WARNING" not in capfd.readouterr().out


@pytest.mark.slow
@every_task
def test_the_expert_solves_nine_in_ten(name):
    env = make_env(name, EnvOptions(num_envs=EXPERT_EPISODES))
    expert = get_task(name).make_expert(EXPERT_EPISODES, 1.0)
    seeds = list(range(EXPERT_EPISODES))
    observation = env.reset(seeds)
    expert.reset(seeds)
    for _ in range(env.spec.max_episode_steps):
        executed, intended = expert.act(observation)
        assert executed.shape == intended.shape == (EXPERT_EPISODES, env.spec.spaces.action_dim)
        spaces = env.spec.spaces
        assert ((executed >= spaces.action_low) & (executed <= spaces.action_high)).all()
        step = env.step(executed)
        assert not (step.terminated & step.truncated).any()
        observation = step.observation
        if step.ended.all():
            break
    env.close()
    assert step.ended.all()
    assert step.success.sum() >= EXPERT_SUCCESSES, f"solved {step.success.sum()} of {EXPERT_EPISODES}"
