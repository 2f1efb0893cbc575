"""Decision latency at batch 1 with DDIM 10: our diffusion policy against lerobot's with the same UNet, in turns in one process.

Run: ``OMP_NUM_THREADS=1 python tests/bench/bench_policy.py [--rounds 15]``; prints a markdown table. Neither side normalises
(lerobot's processors are outside its policy, ours gets an identity normaliser): what is timed is conditioning, ten network passes
and sampling.
"""

import argparse
import os
import statistics
import time
import warnings

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from bench_data import PANDA

from robolearn.core.observation import flat_streams
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from robolearn.data.normalizer import Normalizer
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.nets.unet import UnetConfig
from robolearn.policies import make_policy
from robolearn.policies.diffusion import Config

SIZES = {"64-128-256": (64, 128, 256), "256-512-1024": (256, 512, 1024)}


def lerobot_policy(down_dims):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lerobot.configs.types import FeatureType, PolicyFeature
        from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    features = (PANDA.observation[STATE], PANDA.observation[ENVIRONMENT_STATE], PANDA.action)
    state, env, action = (feature.shape[0] for feature in features)
    config = DiffusionConfig(
        horizon=16,
        n_action_steps=8,
        down_dims=down_dims,
        noise_scheduler_type="DDIM",
        num_inference_steps=10,
        device="cpu",
        input_features={
            STATE: PolicyFeature(FeatureType.STATE, (state,)),
            ENVIRONMENT_STATE: PolicyFeature(FeatureType.ENV, (env,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (action,))},
    )
    return DiffusionPolicy(config).eval()


def our_policy(denoiser):
    policy = make_policy("diffusion", Config(denoiser=denoiser), PANDA, Normalizer(flat_streams(PANDA), "identity"))
    return policy.eval()


def measure(candidates, rounds):
    """Return name -> CPU-milliseconds per call, one per round; every round calls all candidates once."""
    times = {name: [] for name in candidates}
    for _ in range(rounds + 2):
        for name, call in candidates.items():
            start = time.process_time()
            call()
            times[name].append(1e3 * (time.process_time() - start))
    return {name: values[2:] for name, values in times.items()}  # the first rounds warm up


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    observation = {k: rng.random((1, 2, *PANDA.observation[k].shape), np.float32) for k in (STATE, ENVIRONMENT_STATE)}
    tensors = {key: torch.from_numpy(value) for key, value in observation.items()}
    print("| network | ours, ms | lerobot, ms | ratio, median of rounds [min, max] |\n|---|---|---|---|")
    for label, dims in SIZES.items():
        ours, theirs = our_policy(DenoiserConfig("unet", unet=UnetConfig(down_dims=dims))), lerobot_policy(dims)

        def lerobot_decision(policy=theirs):
            with torch.inference_mode():
                policy.diffusion.generate_actions(tensors)

        calls = {"ours": lambda policy=ours: policy.predict(observation, rng), "lerobot": lerobot_decision}
        times = measure(calls, rounds)
        ratios = [a / b for a, b in zip(times["ours"], times["lerobot"], strict=True)]
        ms = {name: statistics.median(values) for name, values in times.items()}
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        print(f"| UNet {label} | {ms['ours']:.1f} | {ms['lerobot']:.1f} | {spread} |", flush=True)
    for width in (256, 512):
        policy = our_policy(DenoiserConfig("mlp", mlp=MlpConfig(width)))
        ms = statistics.median(measure({"ours": lambda policy=policy: policy.predict(observation, rng)}, rounds)["ours"])
        print(f"| MLP 3 x {width} | {ms:.1f} | | |", flush=True)


if __name__ == "__main__":
    main()
