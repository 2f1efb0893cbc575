"""Training speed of the whole loop (data and update), beside lerobot 0.6.1's in the same run; prints Markdown tables.

    OMP_NUM_THREADS=1 python tests/bench/bench_train.py [--rounds N]

One thread. CPU time of this process, rounds of the candidates interleaved, medians over the rounds. Data: 50 episodes of 200
steps, state 11 + environment state 12, action 7, in an EpisodeStore and, written by lerobot, in a LeRobotDataset.

- Ours: WindowDataset, gradient clipping, AdamW, weight average, metrics: ``Learner.update``, which ``train`` calls at each step.
- lerobot's: the parts and order of ``lerobot_train.train``: EpisodeAwareSampler, DataLoader without workers (their processes
  would escape this process's CPU clock), preprocessor, ``update_policy`` with the policy's own optimiser; no weight average.
"""

import argparse
import contextlib
import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.append(str(Path(__file__).parents[1] / "unit"))

import numpy as np
import torch
from bench_data import PANDA, smooth_episode
from lerobot_samples import write_lerobot

from robolearn.core.observation import flat_streams
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.normalizer import Normalizer
from robolearn.data.store import EpisodeStore
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.nets.unet import UnetConfig
from robolearn.policies import make_policy
from robolearn.policies.diffusion import Config
from robolearn.train.config import TrainConfig
from robolearn.train.learner import Learner
from robolearn.train.processes import Processes

DOWN_DIMS = (64, 128, 256)
BATCH = 64
CPU = torch.device("cpu")


def learner(dataset: WindowDataset, denoiser: DenoiserConfig, *, batch_size: int, precision: str = "fp32") -> Learner:
    normalizer = Normalizer(flat_streams(PANDA)).fit(dataset.statistics())
    policy = make_policy("diffusion", Config(pred_horizon=16, denoiser=denoiser), PANDA, normalizer)
    config = TrainConfig(batch_size=batch_size, device="cpu", precision=precision)
    return Learner(policy, dataset, config, CPU, Processes(None))


def millions(module: torch.nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


def interleaved(candidates: dict[str, Callable[[], None]], *, updates: int, rounds: int) -> dict[str, list[float]]:
    """Return CPU seconds per update of each candidate, one number per round."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds + 1):
        for name, call in candidates.items():
            begun = time.process_time()
            for _ in range(updates):
                call()
            times[name].append((time.process_time() - begun) / updates)
    return {name: values[1:] for name, values in times.items()}  # the first round warms up


def loop_overhead(dataset: WindowDataset, rounds: int) -> None:
    """Compare an update of the loop with the bare loss, backward and fused AdamW step of the same policy on one fixed batch."""
    print("\n| diffusion-mlp, batch 256 | parameters | bare loss, backward, step [ms] | loop's update [ms] | overhead |")
    print("|---|---|---|---|---|")
    for width in (128, 512):
        denoiser = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=width))
        ours, bare = (learner(dataset, denoiser, batch_size=256) for _ in range(2))
        optimizer = torch.optim.AdamW(bare.policy.parameters(), lr=1e-4, fused=True)
        batch, rng = dataset.batch(torch.arange(256)), torch.Generator()

        def bare_update(policy=bare.policy, optimizer=optimizer, batch=batch, rng=rng) -> None:
            policy.loss(batch, rng)[0].backward()
            optimizer.step()
            optimizer.zero_grad()

        times = interleaved({"bare": bare_update, "loop": ours.update}, updates=10, rounds=3 * rounds)
        ratio = statistics.median(loop / bare for loop, bare in zip(times["loop"], times["bare"], strict=True))
        ms = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        size = millions(bare.policy)
        print(f"| width {width} | {size:.2f} M | {ms['bare']:.2f} | {ms['loop']:.2f} | {ratio - 1:.1%} |", flush=True)


class Lerobot:
    """lerobot 0.6.1's training, one update at a time."""

    def __init__(self, root: Path) -> None:
        from accelerate import Accelerator
        from lerobot.configs.policies import PreTrainedConfig
        from lerobot.datasets import EpisodeAwareSampler
        from lerobot.datasets.factory import resolve_delta_timestamps
        from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
        from lerobot.policies import make_policy as make_lerobot_policy
        from lerobot.policies import make_pre_post_processors
        from lerobot.policies.factory import make_policy_config
        from lerobot.scripts.lerobot_train import update_policy
        from lerobot.utils.logging_utils import AverageMeter, MetricsTracker
        from lerobot.utils.utils import cycle

        meta = LeRobotDatasetMetadata("local/sample", root=root)
        config: PreTrainedConfig = make_policy_config(
            "diffusion", horizon=16, n_action_steps=8, down_dims=DOWN_DIMS, device="cpu"
        )
        dataset = LeRobotDataset("local/sample", root=root, delta_timestamps=resolve_delta_timestamps(config, meta))
        accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=True)
        policy = make_lerobot_policy(cfg=config, ds_meta=dataset.meta)
        self._preprocessor, _ = make_pre_post_processors(policy_cfg=config, dataset_stats=dataset.meta.stats)
        optimizer = config.get_optimizer_preset().build(policy.get_optim_params())
        scheduler = config.get_scheduler_preset().build(optimizer, 20_000)
        first, last = (dataset.meta.episodes[f"dataset_{end}_index"] for end in ("from", "to"))
        drop = config.drop_n_last_frames
        sampler = EpisodeAwareSampler(first, last, drop_n_last_frames=drop, shuffle=True, seed=0)
        loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, sampler=sampler, num_workers=0)
        self.policy, self._optimizer, loader, self._scheduler = accelerator.prepare(policy, optimizer, loader, scheduler)
        self._accelerator, self._update_policy, self._batches = accelerator, update_policy, cycle(loader)
        self._clip = config.get_optimizer_preset().grad_clip_norm
        meters = {name: AverageMeter(name, ":.3f") for name in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
        self._tracker = MetricsTracker(BATCH, len(dataset), 50, meters, initial_step=0, accelerator=accelerator)
        self.policy.train()

    def batch(self) -> dict:
        return self._preprocessor(next(self._batches))

    def update(self, batch: dict | None = None) -> None:
        batch = self.batch() if batch is None else batch
        self._tracker, _ = self._update_policy(
            self._tracker, self.policy, batch, self._optimizer, self._clip, self._accelerator, self._scheduler
        )


def whole_loop(dataset: WindowDataset, root: Path, rounds: int) -> None:
    """Compare samples per second with lerobot's, the same UNet sizes on the same data."""
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        theirs = Lerobot(root)
    unet = DenoiserConfig(kind="unet", unet=UnetConfig(down_dims=DOWN_DIMS))
    ours, ours_bf16 = (learner(dataset, unet, batch_size=BATCH, precision=precision) for precision in ("fp32", "bf16"))
    fixed = theirs.batch()
    candidates = {
        "robolearn, whole loop": ours.update,
        "robolearn, whole loop, bf16": ours_bf16.update,
        "lerobot 0.6.1, whole loop": theirs.update,
        "robolearn, data only": lambda: ours.batch() and None,
        "lerobot 0.6.1, data only": lambda: theirs.batch() and None,
        "lerobot 0.6.1, update only": lambda: theirs.update(fixed),
    }
    times = interleaved(candidates, updates=3, rounds=rounds)
    sizes = f"ours {millions(ours.policy):.2f} M, lerobot's {millions(theirs.policy):.2f} M parameters"
    print(f"\nUNet {DOWN_DIMS}, batch {BATCH}: {sizes}")
    print("\n| diffusion-unet training | ms per update | samples/s | against lerobot's whole loop (rounds) |\n|---|---|---|---|")
    base = times["lerobot 0.6.1, whole loop"]
    for name, values in times.items():
        ratios = sorted(theirs / own for theirs, own in zip(base, values, strict=True))
        speed = f"{1e3 * statistics.median(values):.2f} | {BATCH / statistics.median(values):,.0f}"
        against = f"{statistics.median(ratios):.1f}x ({ratios[0]:.1f}x to {ratios[-1]:.1f}x)"
        print(f"| {name} | {speed} | {against if 'whole' in name else ''} |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "lerobot", "diffusers", "accelerate"))
    print(f"{os.cpu_count()} CPUs, one thread used; {versions}")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        with EpisodeStore.create(Path(folder) / "store", PANDA, task="bench", fidelity="native") as store:
            for _ in range(50):
                store.append(smooth_episode(PANDA, 200, rng))
        dataset = WindowDataset(store, WindowConfig(2, 16), episodes=range(50))
        loop_overhead(dataset, rounds)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            write_lerobot(store, Path(folder) / "lerobot")
        whole_loop(dataset, Path(folder) / "lerobot", rounds)


if __name__ == "__main__":
    main()
