"""Control steps per CPU-second: stock robosuite Lift, native lift, bare mj_step of the native model; interleaved in one process.

Run: OMP_NUM_THREADS=1 .venv/bin/python tests/bench/bench_native.py
"""

import argparse
import time

import mujoco
import numpy as np
import robosuite

from sim_envs.experts.native_lift import NativeLiftExpert
from sim_envs.native_model import native_scene
from sim_envs.task import EnvOptions, make_env


class Stock:
    """robosuite's Lift as it ships, random actions; resets are not timed."""

    def __init__(self):
        self.env = robosuite.make("Lift", robots="Panda", has_renderer=False, has_offscreen_renderer=False, use_camera_obs=False)
        self.rng = np.random.default_rng(0)

    def rate(self, steps=60):
        self.env.reset()
        actions = self.rng.uniform(-1, 1, (steps, 7))
        begin = time.process_time()
        for action in actions:
            self.env.step(action)
        return steps / (time.process_time() - begin)


class Native:
    """The native task, random or scripted actions; only steps of running episodes count, the expert's own time does not."""

    def __init__(self, num_envs, threads, scripted):
        self.env = make_env("native_lift", EnvOptions(num_envs=num_envs, num_threads=threads))
        self.expert = NativeLiftExpert(num_envs) if scripted else None
        self.rng = np.random.default_rng(0)
        self.seed = 0

    def rate(self):
        n = self.env.num_envs
        seeds = np.arange(self.seed, self.seed + n)
        self.seed += n
        observation = self.env.reset(seeds)
        if self.expert:
            self.expert.reset(seeds)
        steps, spent, ended = 0, 0.0, np.zeros(n, bool)
        while not ended.all():
            action = self.expert.act(observation)[0] if self.expert else self.rng.uniform(-1, 1, (n, 7))
            steps += int((~ended).sum())
            begin = time.process_time()
            step = self.env.step(action)
            spent += time.process_time() - begin
            observation, ended = step.observation, step.ended
        return steps / spent


class Bare:
    """mj_step of the native model, ten to a control step, servo targets changing at random: the limit."""

    def __init__(self):
        self.model = native_scene().model
        self.data = mujoco.MjData(self.model)
        self.rng = np.random.default_rng(0)

    def rate(self, steps=2000):
        scene = native_scene()
        mujoco.mj_resetData(self.model, self.data)
        self.data.qpos[:] = scene.home_qpos
        targets = scene.home_ctrl + np.pad(self.rng.uniform(-0.1, 0.1, (steps, 7)), ((0, 0), (0, 2)))
        begin = time.process_time()
        for target in targets:
            self.data.ctrl[:] = target
            mujoco.mj_step(self.model, self.data, nstep=scene.kernel.substeps)
        return steps / (time.process_time() - begin)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    runners = {
        "stock robosuite Lift, random": Stock(),
        "native, 64 envs, 1 thread, random": Native(64, 1, scripted=False),
        "native, 64 envs, 2 threads, random": Native(64, 2, scripted=False),
        "native, 64 envs, 1 thread, scripted grasps": Native(64, 1, scripted=True),
        "native, 1 env, random": Native(1, 1, scripted=False),
        "bare mj_step of the native model": Bare(),
    }
    for runner in runners.values():
        runner.rate()
    rates = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            rates[name].append(runner.rate())
    stock = np.array(rates["stock robosuite Lift, random"])
    print(f"| runner | control steps per CPU-s (median of {rounds}) | ratio to stock: median [min..max] |\n|---|---|---|")
    for name, values in rates.items():
        ratio = np.array(values) / stock
        print(f"| {name} | {np.median(values):.0f} | {np.median(ratio):.1f} [{ratio.min():.1f}..{ratio.max():.1f}] |")


if __name__ == "__main__":
    main()
