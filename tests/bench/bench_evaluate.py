"""What evaluation costs beside simulation and policy, and what one tick of the safety filter costs on a 7-joint arm.

Run: OMP_NUM_THREADS=1 .venv/bin/python tests/bench/bench_evaluate.py
"""

import argparse
import time

import numpy as np

from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.limits import SafetyLimits
from robolearn.deploy.safety import SafetyFilter
from robolearn.evaluate.result import RolloutConfig
from robolearn.evaluate.rollout import evaluate
from robolearn.policies import config_class, make_policy
from sim_envs.task import EnvOptions, make_env

# Franka FR3 (libfranka's rate_limiting.h): 2.62 rad/s, 10 rad/s^2, 5000 rad/s^3; position bounds of the middle of its range.
ARM = SafetyLimits(
    dim=7,
    control_rate_hz=500.0,
    position_low=(-2.0,) * 7,
    position_high=(2.0,) * 7,
    max_velocity=(2.6,) * 7,
    max_acceleration=(10.0,) * 7,
    max_jerk=(5000.0,) * 7,
)


def safety_tick_us(commands):
    """Mean CPU time of one call."""
    safety = SafetyFilter(ARM, num_rows=1)
    safety.reset(np.zeros((1, 7)))
    begin = time.process_time()
    for command in commands:
        safety.apply(command, now_s=0.0)
    return 1e6 * (time.process_time() - begin) / len(commands)


def rollout_rate(env, policy, seeds):
    """Control steps per CPU-second of the whole evaluation."""
    begin = time.process_time()
    result = evaluate(env, policy, seeds, RolloutConfig(ExecutorConfig(8), timed_decisions=0))
    return result.env_steps / (time.process_time() - begin)


def env_rate(env, seeds):
    """Control steps per CPU-second of the same environments with the same kind of actions and nothing around them."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (env.spec.max_episode_steps, env.num_envs, env.spec.spaces.action_dim)).astype(np.float32)
    steps, begin = 0, time.process_time()
    for start in range(0, len(seeds), env.num_envs):
        env.reset(seeds[start : start + env.num_envs])
        for action in actions:
            env.step(action)
        steps += len(actions) * env.num_envs
    return steps / (time.process_time() - begin)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    t = np.arange(1000) / 500
    blend = np.clip(t, 0, 1) ** 4 * (35 - 84 * np.clip(t, 0, 1) + 70 * np.clip(t, 0, 1) ** 2 - 20 * np.clip(t, 0, 1) ** 3)
    smooth = (0.5 * blend * np.sin(t))[:, None, None] * np.ones((1, 1, 7))
    jumps = np.repeat(np.random.default_rng(0).uniform(-3, 3, (40, 1, 7)), 25, axis=0)
    env = make_env("native_lift", EnvOptions(num_envs=25))
    policy = make_policy("random", config_class("random")(), env.spec.spaces, None)
    seeds = list(range(100_000_000, 100_000_050))
    rows = {name: [] for name in ("safety, feasible commands [us/tick]", "safety, jumps [us/tick]", "env alone", "evaluate")}
    for _ in range(rounds):
        for row, value in zip(
            rows.values(),
            (safety_tick_us(smooth), safety_tick_us(jumps), env_rate(env, seeds), rollout_rate(env, policy, seeds)),
            strict=True,
        ):
            row.append(value)
    for name, values in rows.items():
        unit = "" if "[" in name else " [control steps per CPU-second]"
        print(f"{name}{unit}: median {np.median(values):,.0f}, {min(values):,.0f} to {max(values):,.0f}")
    print(f"evaluation reaches {np.median(rows['evaluate']) / np.median(rows['env alone']):.0%} of the environment's own rate")


if __name__ == "__main__":
    main()
