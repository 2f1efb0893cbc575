"""Steps per CPU-second with two 84 x 84 cameras: stock robosuite, our fast path, the native task; interleaved in one process.

Run: OMP_NUM_THREADS=1 .venv/bin/python tests/bench/bench_render.py [--rounds 7] [--task lift]
"""

import argparse
import time

import numpy as np

from sim_envs.graphics import graphics_backend

CAMERAS = ("agentview", "robot0_eye_in_hand")
ROBOSUITE_NAMES = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare", "stack": "Stack", "door": "Door"}


class Stock:
    """robosuite as it ships, drawing both cameras as observations."""

    def __init__(self, name):
        import robosuite

        self.env = robosuite.make(
            name,
            robots="Panda",
            has_renderer=False,
            has_offscreen_renderer=True,
            use_camera_obs=True,
            camera_names=list(CAMERAS),
            camera_heights=84,
            camera_widths=84,
            hard_reset=False,
        )
        self.rng = np.random.default_rng(0)

    def rate(self, steps=15):
        self.env.reset()
        begin = time.process_time()
        for action in self.rng.uniform(-1, 1, (steps, 7)):
            self.env.step(action)
        return steps / (time.process_time() - begin)


class Ours:
    """One of our tasks with the same cameras."""

    def __init__(self, name, num_envs):
        from sim_envs.task import EnvOptions, make_env

        self.env = make_env(name, EnvOptions(num_envs=num_envs, cameras=CAMERAS, image_size=84))
        self.rng = np.random.default_rng(0)

    def rate(self, steps=15):
        n = self.env.num_envs
        self.env.reset(range(n))
        begin = time.process_time()
        for action in self.rng.uniform(-1, 1, (steps, n, 7)):
            self.env.step(action)
        return steps * n / (time.process_time() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--task", default="lift", choices=sorted(ROBOSUITE_NAMES))
    arguments = parser.parse_args()
    backend = graphics_backend()
    stock = f"stock robosuite {ROBOSUITE_NAMES[arguments.task]}"
    runners = {
        stock: Stock(ROBOSUITE_NAMES[arguments.task]),
        f"{arguments.task} (exact), 1 env": Ours(arguments.task, 1),
        f"{arguments.task} (exact), 4 envs": Ours(arguments.task, 4),
        "native_lift, 4 envs": Ours("native_lift", 4),
    }
    rates = {name: [] for name in runners}
    for runner in runners.values():
        runner.rate()
    for _ in range(arguments.rounds):
        for name, runner in runners.items():
            rates[name].append(runner.rate())
    print(f"Two cameras 84 x 84, {backend}, steps per CPU-second, median of {arguments.rounds} rounds\n")
    print("| runner | steps per CPU-s | ratio to stock: median [min..max] |\n|---|---|---|")
    for name, values in rates.items():
        ratio = np.array(values) / np.array(rates[stock])
        print(f"| {name} | {np.median(values):.1f} | {np.median(ratio):.1f} [{ratio.min():.1f}..{ratio.max():.1f}] |")


if __name__ == "__main__":
    main()
