"""What one decision of a trained policy costs, from numpy observation to numpy actions: as it is, and as a decision function.

    robolearn bench decision <run or checkpoint folder> [--rounds 200] [--batch 1] [--compile] [--graph] [--bf16] [--device cpu]

All variants decide in turns on the same made-up observations (around the centre of the data), in one thread of one process. Times
are wall-clock and CPU milliseconds; operations are counted at the operators (a multiply-add counts two).
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from robolearn.core.types import is_image
from robolearn.deploy.decision import DecisionConfig, DecisionFunction
from robolearn.policies.loading import load_policy
from robolearn.train.checkpoint import find_checkpoint


def observation(policy, rows, rng):
    """Made-up observations of a joined or a single policy."""
    seen = {}
    for key, feature in policy.spaces.observation.items():
        shape = (rows, policy.obs_horizon, *feature.shape)
        if is_image(key):
            seen[key] = rng.integers(0, 256, shape, dtype=np.uint8)
        else:
            centre, scale = (getattr(policy.normalizer, name)(key).cpu().numpy() for name in ("centre", "scale"))
            seen[key] = (centre + rng.uniform(-1, 1, shape) / scale).astype(np.float32)
    return seen


def main() -> None:
    """Print one row per variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    for name in ("compile", "graph", "bf16"):
        parser.add_argument(f"--{name}", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    policy = load_policy(find_checkpoint(options.run), options.device)
    configs = {"eager": DecisionConfig(batch=options.batch, mode="eager", cuda_graph=options.graph)}
    if not options.graph:
        configs["traced"] = DecisionConfig(batch=options.batch)
    if options.compile:
        configs["compiled"] = DecisionConfig(batch=options.batch, mode="compiled", cuda_graph=options.graph)
    if options.bf16:
        configs["bf16"] = replace(configs["eager" if options.graph else "traced"], precision="bf16", tolerance=2.0)
    variants = {"policy": policy}
    for name, config in configs.items():
        begin = time.perf_counter()
        made = variants[name] = DecisionFunction(policy, config)
        print(f"{name}: built in {time.perf_counter() - begin:.1f} s, differs by {made.difference:.1e} half ranges", flush=True)
    rng = np.random.default_rng(0)
    wall, cpu = ({name: [] for name in variants} for _ in range(2))
    for _ in range(options.rounds):
        seen = observation(policy, options.batch, rng)
        for name, decide in variants.items():
            begin = time.perf_counter(), time.process_time()
            decide.predict(seen, rng)
            wall[name].append(1e3 * (time.perf_counter() - begin[0]))
            cpu[name].append(1e3 * (time.process_time() - begin[1]))
    flops = variants["eager"].operations() / 1e6
    print(f"{options.run}: {flops:.2f} MFLOP a decision of {options.batch} rows\n")
    print("| variant | p50 ms | p95 ms | p99 ms | CPU ms, median | times faster |\n|---|---|---|---|---|---|")
    for name in variants:
        quantiles = " | ".join(f"{q:.2f}" for q in np.percentile(wall[name], (50, 95, 99)))
        faster = np.median(np.array(cpu["policy"]) / np.array(cpu[name]))
        print(f"| {name} | {quantiles} | {np.median(cpu[name]):.2f} | {faster:.2f} |", flush=True)


if __name__ == "__main__":
    main()
