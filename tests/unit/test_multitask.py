"""Joined tasks: columns, statistics and batches worked by hand; a policy of several tasks does each from its own streams."""

import numpy as np
import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.core.multitask import TASK, TaskColumns, join_spaces, task_spaces, tasks_of
from robolearn.core.observation import flat_streams
from robolearn.core.protocols import ContinuingPolicy, LatentPolicy
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, Episode, FeatureSpec, Spaces
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.hindsight import GOAL, HindsightWindows, with_goal
from robolearn.data.joined import JoinedDataset, joined_statistics
from robolearn.data.normalizer import Normalizer
from robolearn.data.store import EpisodeStore
from robolearn.evaluate.goal_env import GoalEnv
from robolearn.policies import config_class, make_policy
from robolearn.policies.edm_transformer import GoalConfig
from robolearn.policies.loading import load_policy, save_policy
from robolearn.policies.one_task import one_task
from sim_envs.task import EnvOptions, make_env


def spaces(*objects):
    names = tuple(objects)
    return Spaces(
        robot="panda",
        observation={STATE: FeatureSpec((2,), names=("x", "y")), ENVIRONMENT_STATE: FeatureSpec((len(names),), names=names)},
        action=FeatureSpec((2,), names=("dx", "dy")),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        control_rate_hz=20.0,
    )


LIFT, STACK = spaces("cube"), spaces("cube", "lid")


def store(path, own, lengths, *, start):
    """Episodes whose every number says where it is from: state and objects count up from ``start`` by one a step."""
    made = EpisodeStore.create(path, own, task="t", fidelity="native", extra={})
    count = start
    for n in lengths:
        rows = np.arange(count, count + n, dtype=np.float32)[:, None]
        data = {
            STATE: rows.repeat(2, 1),
            ENVIRONMENT_STATE: rows.repeat(own.observation[ENVIRONMENT_STATE].shape[0], 1),
            ACTION: rows.repeat(2, 1),
        }
        made.append(Episode(data, success=True))
        count += n
    made.close()
    return EpisodeStore.open(path)


@pytest.fixture
def tasks(tmp_path):
    config = WindowConfig(obs_horizon=2, pred_horizon=3)
    lift = WindowDataset(store(tmp_path / "a", LIFT, [2, 3], start=0), config, episodes=[0, 1])
    stack = WindowDataset(store(tmp_path / "b", STACK, [4], start=100), config, episodes=[0])
    return {"lift": lift, "stack": stack}


def joined(tasks, **options):
    space = join_spaces({"lift": LIFT, "stack": STACK})
    statistics = joined_statistics({name: windows.statistics() for name, windows in tasks.items()}, space)
    modes = {key: "identity" if key == TASK else "min_max" for key in flat_streams(space)}
    normalizer = Normalizer(flat_streams(space), modes).fit(statistics)
    return JoinedDataset(tasks, space, normalizer, **options)


def test_a_stream_that_differs_becomes_one_block_a_task_and_the_space_says_so():
    space = join_spaces({"lift": LIFT, "stack": STACK})
    assert space.observation[ENVIRONMENT_STATE].names == ("lift/cube", "stack/cube", "stack/lid")
    assert space.observation[STATE] == LIFT.observation[STATE]
    assert tasks_of(space) == ("lift", "stack")
    assert tasks_of(LIFT) == ()
    assert task_spaces(space, "lift") == LIFT
    assert task_spaces(space, "stack") == STACK


def test_a_task_is_laid_out_in_its_own_columns():
    columns = TaskColumns.of(join_spaces({"lift": LIFT, "stack": STACK}), "stack")
    own = {STATE: np.ones((1, 2, 2), np.float32), ENVIRONMENT_STATE: np.array([[[3, 4], [5, 6]]], np.float32)}
    placed = columns.place(own, {ENVIRONMENT_STATE: np.array([-1.0, -2.0, -3.0], np.float32)})
    np.testing.assert_array_equal(placed[ENVIRONMENT_STATE], [[[-1, 3, 4], [-1, 5, 6]]])
    np.testing.assert_array_equal(placed[TASK], [[[0, 1], [0, 1]]])
    np.testing.assert_array_equal(placed[STATE], own[STATE])


def test_tasks_that_cannot_share_a_policy_are_refused_by_name():
    unnamed = Spaces("panda", {STATE: FeatureSpec((3,))}, LIFT.action, (-1, -1), (1, 1), 20.0)
    other = Spaces("panda", {STATE: FeatureSpec((2,))}, LIFT.action, (-1, -1), (1, 1), 20.0)
    with pytest.raises(RefusedError, match="elements are named"):
        join_spaces({"a": unnamed, "b": other})
    with pytest.raises(RefusedError, match="'a' and 'b' cannot share a policy: they observe"):
        join_spaces({"a": LIFT, "b": other})
    with pytest.raises(RefusedError, match="robot is panda and ur5e"):
        join_spaces({"a": LIFT, "b": Spaces("ur5e", LIFT.observation, LIFT.action, (-1, -1), (1, 1), 20.0)})
    with pytest.raises(RefusedError, match=r"not trained for task 'stak'.*stack"):
        task_spaces(join_spaces({"lift": LIFT, "stack": STACK}), "stak")


def test_statistics_of_blocks_stand_side_by_side_and_shared_streams_are_pooled(tasks):
    made = joined_statistics({n: w.statistics() for n, w in tasks.items()}, join_spaces({"lift": LIFT, "stack": STACK}))
    # lift counts 0..4 (mean 2, variance 2), stack 100..103 (mean 101.5, variance 1.25).
    assert made[ENVIRONMENT_STATE].minimum == (0, 100, 100)
    assert made[ENVIRONMENT_STATE].mean == (2, 101.5, 101.5)
    everything = np.array([0, 1, 2, 3, 4, 100, 101, 102, 103.0])
    assert made[STATE].mean == pytest.approx((everything.mean(),) * 2)
    assert made[STATE].std == pytest.approx((everything.std(),) * 2)
    assert (made[STATE].minimum, made[STATE].maximum, made[STATE].count) == ((0, 0), (103, 103), 9)


def test_batches_keep_the_asked_order_and_absent_numbers_are_zero_to_the_network(tasks):
    source = joined(tasks)
    assert len(source) == 9
    batch = source.batch(torch.tensor([8, 1, 5]))  # stack's last step, lift's second, stack's first
    np.testing.assert_array_equal(batch[STATE][:, -1, 0], [103, 1, 100])
    np.testing.assert_array_equal(batch[TASK][:, -1], [[0, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(batch[ACTION][:, 0, 0], [103, 1, 100])
    # Centres: lift's cube (0 + 4) / 2, stack's (100 + 103) / 2.
    np.testing.assert_array_equal(batch[ENVIRONMENT_STATE][:, -1], [[2, 103, 103], [1, 101.5, 101.5], [2, 100, 100]])
    assert batch["action_is_pad"].shape == (3, 3)
    assert set(batch) == {key + tail for key in (STATE, ENVIRONMENT_STATE, TASK, ACTION) for tail in ("", "_is_pad")}


def test_balanced_sampling_draws_every_task_equally_often(tasks):
    weights = joined(tasks).window_weights
    # 5 windows of lift share one half of the draws, 4 of stack the other.
    np.testing.assert_allclose(weights, [0.2] * 5 + [0.25] * 4)
    assert joined(tasks, balanced=False).window_weights is None


def policy_of(name, source, **settings):
    config = config_class(name)(obs_horizon=2, pred_horizon=3, observation_keys=tuple(source.spaces.observation), **settings)
    torch.manual_seed(0)
    modes = {key: "identity" if key == TASK else "min_max" for key in flat_streams(source.spaces)}
    normalizer = Normalizer(flat_streams(source.spaces), modes).fit(source.statistics())
    return make_policy(name, config, source.spaces, normalizer).eval()


@pytest.mark.parametrize("name", ["diffusion", "moe_diffusion", "chunk_bc"])
def test_a_saved_policy_does_each_task_from_its_own_streams(name, tasks, tmp_path):
    source = joined(tasks)
    policy = policy_of(name, source)
    if name == "moe_diffusion":  # its output starts at zero
        torch.nn.init.normal_(policy.denoiser.net.out.weight, generator=torch.Generator().manual_seed(1))
    save_policy(tmp_path / "p", policy, averaged=policy.state_dict())
    batch = source.batch(torch.tensor([8]))
    whole = policy.predict({k: batch[k].numpy() for k in source.spaces.observation}, np.random.default_rng(3)).actions
    stack = load_policy(tmp_path / "p", spaces=STACK, task="stack")
    own = {STATE: batch[STATE].numpy(), ENVIRONMENT_STATE: np.array([[[102, 102], [103, 103]]], np.float32)}
    np.testing.assert_array_equal(stack.predict(own, np.random.default_rng(3)).actions, whole)
    lift = load_policy(tmp_path / "p", spaces=LIFT, task="lift")
    seen = {STATE: own[STATE], ENVIRONMENT_STATE: own[ENVIRONMENT_STATE][..., :1]}
    assert not np.array_equal(lift.predict(seen, np.random.default_rng(3)).actions, whole)
    assert isinstance(lift, LatentPolicy) == isinstance(policy, LatentPolicy)
    assert isinstance(lift, ContinuingPolicy) == isinstance(policy, ContinuingPolicy)


def test_a_task_that_was_not_trained_or_not_said_is_refused_by_name(tasks, tmp_path):
    policy = policy_of("chunk_bc", joined(tasks))
    save_policy(tmp_path / "p", policy, averaged=policy.state_dict())
    with pytest.raises(RefusedError, match=r"trained for the tasks \['lift', 'stack'\]; say which"):
        load_policy(tmp_path / "p", spaces=LIFT)
    with pytest.raises(RefusedError, match="not trained for task 'door'"):
        load_policy(tmp_path / "p", spaces=LIFT, task="door")
    with pytest.raises(RefusedError, match="needs FeatureSpec"):
        load_policy(tmp_path / "p", spaces=LIFT, task="stack")
    with pytest.raises(RefusedError, match=r"environment_state must have shape \(1, 2, 1\)"):
        one_task(policy, "lift").predict(
            {STATE: np.zeros((1, 2, 2), np.float32), ENVIRONMENT_STATE: np.zeros((1, 2, 2), np.float32)}, np.random.default_rng(0)
        )


def test_goals_in_hindsight_are_later_states_of_the_same_episode(tasks):
    windows = HindsightWindows(tasks["lift"], [ENVIRONMENT_STATE], per_window=40, furthest=None, seed=0)
    assert len(windows) == 200
    batch = windows.batch(torch.arange(200))
    now, goal = batch[ENVIRONMENT_STATE][:, -1, 0].view(40, 5), batch[GOAL][:, -1, 0].view(40, 5)
    # Episodes are the steps 0, 1 and 2, 3, 4; ends are their own goals.
    wanted = [{1}, {1}, {3, 4}, {4}, {4}]
    assert [set(column.tolist()) for column in goal.T] == wanted
    assert torch.equal(now[0], torch.arange(5.0))
    again = HindsightWindows(tasks["lift"], [ENVIRONMENT_STATE], per_window=40, furthest=None, seed=0)
    assert torch.equal(again.batch(torch.arange(200))[GOAL], batch[GOAL])
    near = HindsightWindows(tasks["lift"], [ENVIRONMENT_STATE], per_window=40, furthest=1, seed=0)
    assert set(near.batch(torch.arange(2, 200, 5))[GOAL][:, -1, 0].tolist()) == {3}
    assert windows.spaces.observation[GOAL].names == ("goal_cube",)


def test_goals_that_cannot_be_made_are_refused_by_name(tasks):
    with pytest.raises(RefusedError, match=r"Goals cannot be made of 'observation.stat'"):
        with_goal(LIFT, ["observation.stat"])
    with pytest.raises(RefusedError, match="per_window=0"):
        HindsightWindows(tasks["lift"], [STATE], per_window=0, furthest=None, seed=0)


def test_an_episode_is_asked_for_a_goal_that_its_seed_chooses():
    goals = np.arange(36, dtype=np.float32).reshape(3, 12)
    env = GoalEnv(make_env("native_lift", EnvOptions(num_envs=2)), [ENVIRONMENT_STATE], goals)
    first = env.reset([1, 2])[GOAL]
    assert all(row.tolist() in goals.tolist() for row in first)
    after = env.step(np.zeros((2, 7), np.float32)).observation[GOAL]
    np.testing.assert_array_equal(after, first)
    changed = [env.reset([9, seed], np.array([False, True]))[GOAL] for seed in range(20)]
    assert all((row[0] == first[0]).all() for row in changed)
    assert len({row[1].tobytes() for row in changed}) == 3
    np.testing.assert_array_equal(env.reset([1, 2])[GOAL], first)
    with pytest.raises(RefusedError, match=r"must have shape \(n, 12\), n > 0; got \(3, 11\)"):
        GoalEnv(env.env, [ENVIRONMENT_STATE], goals[:, :11])
    env.close()


def test_a_goal_of_another_size_is_refused_by_the_policy(tasks):
    windows = HindsightWindows(tasks["stack"], [ENVIRONMENT_STATE], per_window=1, furthest=None, seed=0)
    keys = (STATE, GOAL)
    chosen = {key: windows.spaces.observation[key] for key in keys}
    own = Spaces("panda", chosen, STACK.action, (-1, -1), (1, 1), 20.0)
    config = config_class("beso")(pred_horizon=3, observation_keys=keys, goal=GoalConfig(key=GOAL))
    policy = make_policy("beso", config, own, Normalizer(flat_streams(own)).fit(windows.statistics()))
    seen = {STATE: np.zeros((1, 2, 2), np.float32), GOAL: np.zeros((1, 2, 3), np.float32)}
    with pytest.raises(RefusedError, match=r"observation.goal must have shape \(1, 2, 2\)"):
        policy.predict(seen, np.random.default_rng(0))
