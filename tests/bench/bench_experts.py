"""Success, episode length and cost of the scripted experts, as a markdown table.

python tests/bench/bench_experts.py --tasks lift can --qualities 1 0.5 --episodes 200
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from robolearn.evaluate.statistics import clopper_pearson
from sim_envs.task import EnvOptions, get_task, make_env

TASKS = ("lift", "stack", "can", "square", "door", "two_arm_lift")


def roll(env, expert, seeds: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Return (success, length, CPU-seconds in the expert) of one episode per environment."""
    n = len(seeds)
    success, length, expert_s = np.zeros(n, bool), np.zeros(n, int), 0.0
    observation = env.reset(seeds)
    expert.reset(seeds)
    ended = np.zeros(n, bool)
    while not ended.all():
        start = time.process_time()
        executed, _ = expert.act(observation)
        expert_s += time.process_time() - start
        length += ~ended
        step = env.step(executed)
        observation = step.observation
        success |= step.success & ~ended
        ended |= step.ended
    return success, length, expert_s


def measure(env, task: str, quality: float, args: argparse.Namespace) -> None:
    expert = get_task(task).make_expert(args.batch, quality)
    seeds = args.first_seed + np.arange(args.episodes).reshape(-1, args.batch)
    start = time.process_time()
    results = [roll(env, expert, row) for row in seeds]
    cpu_s = time.process_time() - start
    success, length = (np.concatenate([r[i] for r in results]) for i in (0, 1))
    k, n = int(success.sum()), len(success)
    low, high = clopper_pearson(k, n)
    won = length[success]
    lengths = f"{won.mean():.0f} ({won.min()}/{np.percentile(won, 90):.0f}/{won.max()})" if k else "-"
    steps = length.max() if args.batch == 1 else sum(r[1].max() for r in results)
    act_us = sum(r[2] for r in results) / (steps * args.batch) * 1e6
    failed = seeds.ravel()[~success][:6].tolist()
    print(
        f"| {task} | {quality:g} | {k}/{n} | {k / n:.3f} [{low:.3f}, {high:.3f}] | {lengths} | {length.mean():.0f} |"
        f" {cpu_s / n:.2f} | {act_us:.0f} |" + (f" failed: {failed}" if args.failures else ""),
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--qualities", nargs="+", type=float, default=[1.0])
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--batch", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--fidelity", default="exact")
    parser.add_argument("--failures", action="store_true", help="name the first seeds that failed")
    args = parser.parse_args()
    if args.episodes % args.batch:
        parser.error(f"--episodes {args.episodes} must be a multiple of --batch {args.batch}")
    columns = ("task", "quality", "success", "rate, 95 % interval", "steps if solved, mean (min/p90/max)", "steps, all")
    print(f"| {' | '.join(columns)} | CPU-s/episode | expert us/env-step |")
    print("|---" * 8 + "|")
    for task in args.tasks:
        env = make_env(task, EnvOptions(num_envs=args.batch, fidelity=args.fidelity))
        for quality in args.qualities:
            measure(env, task, quality, args)
        env.close()


if __name__ == "__main__":
    main()
