"""Control steps per CPU-second of every task and fidelity against stock robosuite, measured in turns in one process.

Run: ``OMP_NUM_THREADS=1 python tests/bench/bench_sim.py [task ...] [--rounds 9]``; prints markdown tables.

A control step is 50 ms of simulation with what a user gets of it: for stock robosuite its ``env.step`` (observables and reward,
no cameras, default configuration), for ours ``env.step`` of a batch with observations, success and reward. ``bare mj_step`` is
the 25 physics substeps of the ``exact`` model from the states that ``exact`` is in, with controls held and nothing around them.
Every round runs all variants one after another; a ratio is the median of the per-round ratios, so a busy machine cancels out.
"""

import argparse
import copy
import importlib
import time

import mujoco
import numpy as np

from sim_envs.robosuite_model import build_robosuite, reset_robosuite
from sim_envs.task import EnvOptions, get_task, make_env, task_names

BATCH = 16
STOCK_STEPS = 30
OWN_STEPS = 20
THREAD_BATCH = 32


def cpu_rate(steps, work):
    """Steps per CPU-second of calling ``work``."""
    start = time.process_time()
    work()
    return steps / (time.process_time() - start)


def bare_rate(env):
    """Bare physics from the current states of an ``exact`` environment."""
    simulators = env._simulators
    copies = [copy.copy(data) for data in simulators.datas]

    def work():
        for model, data in zip(simulators.models, copies, strict=True):
            for _ in range(4):
                mujoco.mj_step(model, data, 25)

    return cpu_rate(4 * len(copies), work)


def measure(task, rounds):
    """Rates and reset times of one robosuite task: name -> (rounds,) array."""
    definition = importlib.import_module(f"sim_envs.tasks.{task}").ROBOSUITE
    stock = build_robosuite(definition)
    own = {fidelity: make_env(task, EnvOptions(num_envs=BATCH, fidelity=fidelity)) for fidelity in ("exact", "turbo")}
    if task == "lift":
        own["native"] = make_env("native_lift", EnvOptions(num_envs=BATCH))
    size = own["exact"].spec.spaces.action_dim
    rows = {name: [] for name in ("stock", *own, "bare mj_step", "stock reset", "exact reset")}
    for number in range(rounds + 1):
        actions = np.random.default_rng(number).uniform(-1, 1, (STOCK_STEPS, BATCH, size))
        seeds = [number * BATCH + i for i in range(BATCH)]
        rows["stock reset"].append(1e3 / cpu_rate(1, lambda s=seeds: reset_robosuite(stock, s[0])))
        rows["stock"].append(cpu_rate(STOCK_STEPS, lambda a=actions: [stock.step(x[0]) for x in a]))
        for name, env in own.items():
            rate = cpu_rate(BATCH, lambda e=env, s=seeds: e.reset(s))
            if name == "exact":
                rows["exact reset"].append(1e3 / rate)
            rows[name].append(cpu_rate(OWN_STEPS * BATCH, lambda e=env, a=actions: [e.step(x) for x in a[:OWN_STEPS]]))
        rows["bare mj_step"].append(bare_rate(own["exact"]))
    # The first round compiles and warms caches.
    return {name: np.array(values[1:]) for name, values in rows.items()}


def thread_gain(task, rounds):
    """Per round: wall time of one thread over two, the cores that two threads got, CPU time of one thread over two."""
    size = make_env(task, EnvOptions()).spec.spaces.action_dim
    envs = [make_env(task, EnvOptions(num_envs=THREAD_BATCH, num_threads=n)) for n in (1, 2)]
    rows = []
    for number in range(rounds + 1):
        actions = np.random.default_rng(number).uniform(-1, 1, (OWN_STEPS, THREAD_BATCH, size))
        walls, cpus = [], []
        for env in envs:
            env.reset(range(THREAD_BATCH))
            start, cpu = time.perf_counter(), time.process_time()
            for action in actions:
                env.step(action)
            walls.append(time.perf_counter() - start)
            cpus.append(time.process_time() - cpu)
        rows.append((walls[0] / walls[1], cpus[1] / walls[1], cpus[0] / cpus[1]))
    return np.array(rows[1:]).T


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    robosuite_tasks = [name for name in task_names() if "exact" in get_task(name).fidelities]
    parser.add_argument("tasks", nargs="*", default=robosuite_tasks)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    columns = ("stock", "exact", "turbo", "native", "bare mj_step")
    print("Control steps per CPU-second (ratio to stock robosuite: median of per-round ratios [least, greatest])\n")
    print("| task | " + " | ".join(columns) + " | reset stock / exact, CPU-ms |")
    print("|---|" + "---|" * (len(columns) + 1))
    for task in options.tasks:
        rows = measure(task, options.rounds)
        cells = []
        for name in columns:
            if name not in rows:
                cells.append("")
                continue
            ratio = rows[name] / rows["stock"]
            spread = f" (x{np.median(ratio):.1f} [{ratio.min():.1f}, {ratio.max():.1f}])" if name != "stock" else ""
            cells.append(f"{np.median(rows[name]):.0f}{spread}")
        resets = f"{np.median(rows['stock reset']):.1f} / {np.median(rows['exact reset']):.1f}"
        print(f"| {task} | " + " | ".join(cells) + f" | {resets} |", flush=True)
    print(
        "\n`exact`, batch of 32, 1 thread against 2 threads. CPU time 1.0 means that the second thread costs nothing, so that two"
    )
    print("free cores give twice the speed; the wall speed-up is bounded by the cores that the machine gave.\n")
    print("| task | wall speed-up: median [least, greatest] | cores got | CPU time 1 thread / 2 threads |")
    print("|---|---|---|---|")
    for task in options.tasks:
        gains, cores, cpu = thread_gain(task, options.rounds)
        spread = f"x{np.median(gains):.2f} [{gains.min():.2f}, {gains.max():.2f}]"
        print(f"| {task} | {spread} | {np.median(cores):.2f} | {np.median(cpu):.2f} |", flush=True)


if __name__ == "__main__":
    main()
