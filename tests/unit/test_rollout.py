import os
import signal
from dataclasses import replace

import numpy as np
import pytest
from reach_env import NoisyReacher, ReachEnv, reach_spaces

from robolearn.core.errors import RefusedError
from robolearn.core.seeding import TEST_SEED_BLOCK
from robolearn.core.types import ENVIRONMENT_STATE, STATE, ActionChunk, FeatureSpec
from robolearn.deploy.executor import ExecutorConfig
from robolearn.evaluate.result import EvaluationResult, RolloutConfig
from robolearn.evaluate.rollout import evaluate
from robolearn.policies import config_class, make_policy
from sim_envs.task import EnvOptions, get_task, make_env

QUICK = RolloutConfig(ExecutorConfig(exec_horizon=2), timed_decisions=0)
SEEDS = range(100, 117)


def test_one_episode_worked_by_hand():
    # goal = default_rng(100).uniform(.5, 1.5) = 1.33498...; full speed: success at the first n with |0.1 n - goal| <= 0.06.
    goal = np.random.default_rng(100).uniform(0.5, 1.5)
    n = int(np.ceil((goal - 0.06) / 0.1))
    result = evaluate(ReachEnv(1), NoisyReacher(), [100], QUICK)
    (episode,) = result.episodes
    assert (episode.seed, episode.success, episode.length, episode.episode_return) == (100, True, n, 1.0)
    assert (episode.mean_action_change, episode.mean_squared_jerk, episode.safety_hits) == (0.0, 0.0, {})
    assert (result.successes, result.env_steps, result.partial) == (1, n, False)


def test_smoothness_worked_by_hand():
    # Goal 1.3 for seed 3 is far away at speed 0.2: the sent actions are the noise-free 0.2 except where the test perturbs them.
    class Shaky(NoisyReacher):
        def predict(self, observation, rng):
            chunk = super().predict(observation, rng)
            chunk.actions[:] = np.float32([0.0, 1.0, 0.0, 1.0, 1.0])[None, :, None]
            return chunk

    result = evaluate(
        ReachEnv(1, max_episode_steps=5), Shaky(pred_horizon=5), [3], RolloutConfig(ExecutorConfig(5), timed_decisions=0)
    )
    (episode,) = result.episodes
    assert episode.length == 5
    # |changes| are 1 1 1 0; third differences d - 3c + 3b - a of 0 1 0 1 and 1 0 1 1: 1 - 0 + 3 - 0 = 4, 1 - 3 + 0 - 1 = -3.
    # (16 + 9) / 2 = 12.5
    assert episode.mean_action_change == pytest.approx(0.75)
    assert episode.mean_squared_jerk == pytest.approx(12.5)


@pytest.mark.parametrize("num_envs", [1, 3, 5, 40])
def test_results_do_not_depend_on_the_number_of_environments(num_envs):
    policy = NoisyReacher(noise=2.0, speed=0.4)
    one = evaluate(ReachEnv(1), policy, SEEDS, QUICK)
    many = evaluate(ReachEnv(num_envs), policy, SEEDS, QUICK)
    assert one.episodes == many.episodes
    assert 0 < one.successes < len(SEEDS)  # otherwise equality would say little


def test_results_do_not_depend_on_the_order_of_the_seeds():
    policy = NoisyReacher(noise=2.0, speed=0.4)
    forward = evaluate(ReachEnv(4), policy, SEEDS, QUICK)
    backward = evaluate(ReachEnv(4), policy, list(SEEDS)[::-1], QUICK)
    assert forward.episodes == backward.episodes[::-1]
    assert forward.seeds == tuple(SEEDS)


def test_another_policy_seed_gives_other_episodes():
    policy = NoisyReacher(noise=2.0, speed=0.4)
    first = evaluate(ReachEnv(4), policy, SEEDS, QUICK)
    assert first.episodes != evaluate(ReachEnv(4), policy, SEEDS, replace(QUICK, policy_seed=1)).episodes


def test_no_environment_idles_while_seeds_are_left():
    env = ReachEnv(3)
    evaluate(env, NoisyReacher(), SEEDS, QUICK)
    assert env.resets[0] == [100, 101, 102]
    assert sorted(seed for resets in env.resets for seed in resets) == list(SEEDS)
    assert all(resets for resets in env.resets)


def test_finished_rows_are_not_sent_to_the_policy():
    policy = NoisyReacher()
    result = evaluate(ReachEnv(17), policy, SEEDS, QUICK)
    # Every row asks once per 2 steps of its own episode and never afterwards.
    assert sum(policy.batches) == sum(-(-e.length // 2) for e in result.episodes)


def test_commands_pass_the_safety_filter():
    class Wild(NoisyReacher):
        def predict(self, observation, rng):
            chunk = super().predict(observation, rng)
            chunk.actions[:] = np.float32([5.0, np.nan])[None, :, None]
            return chunk

    env = ReachEnv(2, max_episode_steps=6)
    result = evaluate(env, Wild(pred_horizon=2), [1, 2], QUICK)
    sent = np.array(env.received)[:, 0, 0]
    assert sent.tolist() == [1, 0, 1, 0, 1, 0]  # 5 is clipped to the bound; NaN becomes rest, which is 0 for a rate
    assert [e.safety_hits for e in result.episodes] == [{"non_finite": 3, "position": 3}] * 2
    assert result.safety_hits == {"non_finite": 6, "position": 6}


def test_saved_results_are_read_back_equal(tmp_path):
    result = evaluate(ReachEnv(4), NoisyReacher(noise=1.0), SEEDS, RolloutConfig(ExecutorConfig(2), timed_decisions=4))
    result = result.described(policy="reacher", provenance={"seed": 3, "git": {"commit": None}})
    path = result.save(tmp_path / "run")
    assert EvaluationResult.load(path) == EvaluationResult.load(path.parent) == result
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]


def test_malformed_evaluations_are_refused(tmp_path):
    with pytest.raises(RefusedError, match="No evaluation at"):
        EvaluationResult.load(tmp_path / "none.json")
    result = evaluate(ReachEnv(1), NoisyReacher(), [1], QUICK)
    with pytest.raises(RefusedError, match="format"):
        EvaluationResult.from_json({**result.to_json(), "format": "other/1"})
    with pytest.raises(RefusedError, match=r"Malformed evaluation.*bogus"):
        EvaluationResult.from_json({**result.to_json(), "bogus": 1})
    with pytest.raises(RefusedError, match="Malformed evaluation"):
        EvaluationResult.from_json({k: v for k, v in result.to_json().items() if k != "episodes"})


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(RefusedError, match=r"Cannot write .*file/evaluation\.json"):
        evaluate(ReachEnv(1), NoisyReacher(), [1], QUICK).save(blocker)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (NoisyReacher(spaces=reach_spaces(robot="arm")), "made for robot 'arm', but 'point'"),
        (NoisyReacher(spaces=replace(reach_spaces(), observation={"observation.depth": FeatureSpec((1,))})), "observation.depth"),
        (NoisyReacher(spaces=replace(reach_spaces(), observation={STATE: FeatureSpec((2,))})), "observation.state"),
        (NoisyReacher(spaces=replace(reach_spaces(), action_high=(2.0,))), "action_high"),
        (NoisyReacher(pred_horizon=1), "exec_horizon=2 must lie in \\[1, 1\\]"),
    ],
)
def test_policies_that_do_not_fit_are_refused_before_the_first_step(policy, words):
    env = ReachEnv(2)
    with pytest.raises(RefusedError, match=words):
        evaluate(env, policy, SEEDS, QUICK)
    assert env.resets == env.received == []


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_bad_seeds_are_refused(seeds):
    with pytest.raises(RefusedError, match=r"[Ss]eed"):
        evaluate(ReachEnv(2), NoisyReacher(), seeds, QUICK)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_finished_episodes(number):
    done = []

    def progress(episode):
        done.append(episode)
        if len(done) == 5:
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    result = evaluate(ReachEnv(2), NoisyReacher(), SEEDS, QUICK, progress=progress)
    assert result.partial
    assert result.interrupted_by == number
    assert sorted(e.seed for e in result.episodes) == sorted(e.seed for e in done)
    assert 5 <= len(result.episodes) < len(SEEDS)
    assert signal.getsignal(number) == before


def test_latency_is_what_the_clock_says():
    now = [0.0]

    class Slow(NoisyReacher):
        def predict(self, observation, rng):
            now[0] += 0.001 * len(observation[STATE]) + (0.05 if len(self.batches) < 3 else 0)
            return super().predict(observation, rng)

    config = RolloutConfig(ExecutorConfig(2), timed_decisions=10, timing_budget_s=1.0)
    result = evaluate(ReachEnv(5), Slow(), SEEDS, config, clock=lambda: now[0])
    # One row costs 1 ms; the three slow warm-up queries are not counted.
    assert result.single_latency.seconds == (0.001,) * 10
    assert result.single_latency.summary()["p99_ms"] == pytest.approx(1.0)
    assert max(result.batch_latency.seconds) == pytest.approx(0.005)
    assert result.wall_s == pytest.approx(sum(result.batch_latency.seconds))


def test_timing_stops_at_its_budget():
    now = [0.0]

    class Slow(NoisyReacher):
        def predict(self, observation, rng):
            now[0] += 1.0
            return super().predict(observation, rng)

    config = RolloutConfig(ExecutorConfig(2), timed_decisions=100, timing_budget_s=5.5)
    result = evaluate(ReachEnv(1), Slow(), [1], config, clock=lambda: now[0])
    # Queries begin at 0, 1, 2 (warm-up), 3, 4, 5; the next would begin at 6 > 5.5.
    assert len(result.single_latency.seconds) == 3


def test_the_native_task_gives_the_same_episodes_for_any_number_of_environments():
    results = []
    for num_envs in (1, 3, 8):
        env = make_env("native_lift", EnvOptions(num_envs=num_envs))
        policy = make_policy("random", config_class("random")(), env.spec.spaces, None)
        seeds = [TEST_SEED_BLOCK + i for i in range(5)]
        results.append(evaluate(env, policy, seeds, RolloutConfig(ExecutorConfig(8), timed_decisions=0)))
        env.close()
    assert results[0].episodes == results[1].episodes == results[2].episodes
    assert len({e.mean_action_change for e in results[0].episodes}) == 5  # every episode drew its own actions
    assert results[0].task == "native_lift"


class Replay:
    """Looks an observed state up in recorded episodes and returns the actions that were sent from it on."""

    obs_horizon, pred_horizon = 2, 16

    def __init__(self, spaces, states, actions):
        self.spaces, self.states, self.actions = spaces, states, actions
        self.farthest = 0.0

    def predict(self, observation, rng):
        chunks = []
        for row in np.concatenate([observation[key][:, -1] for key in (STATE, ENVIRONMENT_STATE)], axis=1):
            distances = [np.abs(states - row).max(axis=1) for states in self.states]
            episode = int(np.argmin([d.min() for d in distances]))
            step = int(distances[episode].argmin())
            self.farthest = max(self.farthest, float(distances[episode].min()))
            actions = self.actions[episode]
            chunks.append(actions[np.minimum(np.arange(step, step + self.pred_horizon), len(actions) - 1)])
        return ActionChunk(np.stack(chunks))


def test_recorded_demonstrations_run_through_the_evaluator_step_by_step():
    """Chunk row 0 belongs to the newest observation: replayed in chunks, an expert's episodes come out as they were recorded."""
    seeds, task = list(range(6)), get_task("native_lift")
    env = make_env("native_lift", EnvOptions(num_envs=6))
    expert = task.make_expert(6, 1.0)
    observation = env.reset(seeds)
    expert.reset(seeds)
    states, actions, ends, running = [], [], np.zeros(6, int), np.ones(6, bool)
    while running.any():
        sent = np.float32(expert.act(observation)[0])
        states.append(np.concatenate([observation[key] for key in (STATE, ENVIRONMENT_STATE)], axis=1))
        actions.append(sent)
        step = env.step(sent)
        ends += running
        solved, running, observation = step.success, running & ~step.ended, step.observation
    recorded = [(np.array(states)[:end, i], np.array(actions)[:end, i]) for i, end in enumerate(ends)]
    policy = Replay(env.spec.spaces, *map(list, zip(*recorded, strict=True)))
    small = make_env("native_lift", EnvOptions(num_envs=4))
    result = evaluate(small, policy, seeds, RolloutConfig(ExecutorConfig(8), timed_decisions=0))
    assert [e.length for e in result.episodes] == ends.tolist()
    assert [e.success for e in result.episodes] == solved.tolist()
    assert policy.farthest == 0.0
    assert sum(solved) >= 5
