"""What one tick of the command gate costs, without ROS: a UR5e at 500 Hz that follows chunks of 50 ms rows.

Run: OMP_NUM_THREADS=1 .venv/bin/python tests/bench/bench_gate.py
"""

import argparse
import time
from dataclasses import replace

import numpy as np

from hardware import load_robot
from robolearn.deploy.chunk import Chunk
from robolearn.deploy.gate import CommandGate
from robolearn.deploy.gate_config import GateConfig
from robolearn.deploy.kinematics import WorkspaceGuard

RATE_HZ = 500.0


def tick_us(*, guarded, ticks=5000, pause_s=0.0):
    """Return the time of each tick while the gate runs; ``pause_s`` lets the caches go cold in between, as a robot does."""
    spec = replace(load_robot("ur5e"), control_rate_hz=RATE_HZ)
    gate = CommandGate.for_robot(spec, GateConfig(estop_timeout_s=None), guard=WorkspaceGuard(spec) if guarded else None)
    home = position = np.array(spec.home)
    gate.arm()
    took = []
    for k in range(ticks):
        now_s = k / RATE_HZ
        gate.on_measured(position, stamp_s=now_s, now_s=now_s)
        if k == 10:
            gate.reset(now_s=now_s)
        if k > 10 and k % 25 == 0:
            rows = home + 0.1 * np.sin(now_s + 0.05 * np.arange(1, 9)[:, None])
            gate.on_chunk(Chunk(gate.names, rows, now_s, 0.05), now_s=now_s)
        time.sleep(pause_s)
        begin = time.perf_counter_ns()
        command = gate.tick(now_s)
        took.append((time.perf_counter_ns() - begin) / 1e3)
        position = command.position if command.send else position
    return took[50:]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    for guarded in (False, True):
        for pause_s in (0.0, 0.0015):
            took = np.concatenate([tick_us(guarded=guarded, ticks=2000, pause_s=pause_s) for _ in range(rounds)])
            what = f"{'with' if guarded else 'without'} the workspace check, {pause_s * 1e3:.1f} ms between ticks"
            print(f"tick {what}: p50 {np.median(took):.0f}, p99 {np.quantile(took, 0.99):.0f} us")


if __name__ == "__main__":
    main()
