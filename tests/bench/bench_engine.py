"""What a decision costs: floating-point operations counted at the operators, and CPU time, of the policies' paths in turns.

    robolearn bench engine [--rounds 7] [--width 256] [--layers 6] [--hidden-ratio 4] [--horizon 16] [--observations 2]

Mixture of experts, batch 1, ten noise levels: the *plain* path computes all tokens with separate experts at every level (what a
forward pass in training is); the *fused, cached* path computes the prefix once and the experts that work at a level as one;
*traced* is that path as a decision function runs it. The dense transformers are of equal total and of equal active size.
Operations are torch's FlopCounterMode's (matrix products and attention, whoever calls them; a multiply-add counts two). Times
are CPU-milliseconds of this process, medians of rounds in which all run in turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from dataclasses import replace

import numpy as np
import torch
from bench_data import PANDA
from torch.utils.flop_counter import FlopCounterMode

from robolearn.core.observation import flat_streams
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from robolearn.data.normalizer import Normalizer
from robolearn.diffusion.samplers import euler
from robolearn.nets.moe import MoeConfig
from robolearn.nets.prefix_transformer import PrefixTransformerConfig
from robolearn.policies import make_policy
from robolearn.policies.diffusion import Config as DiffusionConfig
from robolearn.policies.moe_diffusion import Config

KEYS = (STATE, ENVIRONMENT_STATE)


def build(transformer, moe, options):
    torch.manual_seed(0)
    config = Config(options.observations, options.horizon, transformer=replace(transformer, moe=moe))
    policy = make_policy("moe_diffusion", config, PANDA, Normalizer(flat_streams(PANDA), "identity"))
    # A new network returns 0: nothing could be seen to differ.
    torch.nn.init.normal_(policy.denoiser.net.out.weight, std=0.1)
    return policy.eval().requires_grad_(False)


def plain(policy, condition, latent):
    """Every token and every expert anew at every level."""

    def denoise(noisy, index):
        return policy.denoiser.denoised(noisy, torch.full((len(noisy),), index), condition)

    return euler(denoise, policy.sigmas, latent)


class Decode(torch.nn.Module):
    """What is traced."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy

    def forward(self, condition, latent):
        return self.policy.decode_condition(condition, latent)


def traced(policy, condition, latent):
    """The fused, cached path as :class:`robolearn.deploy.decision.DecisionFunction` records it."""
    policy.decode_condition(condition, latent)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        made = torch.jit.freeze(torch.jit.trace(Decode(policy).eval(), (condition, latent), check_trace=False))
    return lambda: made(condition, latent)


def flops(call):
    """Operations of one call, in units of 10^6."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e6


def medians(calls, rounds):
    """Return name -> median CPU-ms and name -> [min, median, max] of the ratio to the first name."""
    times = {name: [] for name in calls}
    for _ in range(rounds + 2):
        for name, call in calls.items():
            start = time.process_time()
            with torch.inference_mode():
                call()
            times[name].append(1e3 * (time.process_time() - start))
    times = {name: values[2:] for name, values in times.items()}
    first = times[next(iter(times))]
    ratios = {name: sorted(f / v for f, v in zip(first, values, strict=True)) for name, values in times.items()}
    return {n: statistics.median(v) for n, v in times.items()}, {
        n: (r[0], statistics.median(r), r[-1]) for n, r in ratios.items()
    }


def compare(label, moe, transformer, options):
    """Print one block of rows."""
    policies = {"moe": build(transformer, moe, options)}
    for twin in ("dense_total", "dense_active"):
        policies[twin] = build(transformer, replace(moe, twin=twin), options)
    latent = torch.randn(1, *policies["moe"].latent_shape, generator=torch.Generator().manual_seed(1))
    condition = torch.randn(1, policies["moe"].encoder.condition_dim, generator=torch.Generator().manual_seed(2))
    calls = {f"{n} plain": lambda p=p: plain(p, condition, latent) for n, p in policies.items()}
    calls |= {f"{n} fused, cached": lambda p=p: p.decode_condition(condition, latent) for n, p in policies.items()}
    counted = dict(calls)
    calls |= {f"{n} traced": traced(p, condition, latent) for n, p in policies.items()}
    with torch.inference_mode():
        wanted = calls["moe plain"]()
        gaps = [(calls[f"moe {path}"]() - wanted).abs().max().item() for path in ("fused, cached", "traced")]
    total = flops(calls["dense_total plain"])
    ms, ratio = medians(calls, options.rounds) if options.rounds else ({}, {})
    for name in calls:
        count = flops(counted[name.replace("traced", "fused, cached")])
        times = ""
        if options.rounds:
            low, middle, high = ratio[name]
            times = f" {ms[name]:.1f} | {middle:.2f} [{low:.2f}, {high:.2f}] |"
        print(f"| {label} | {name} | {count:.0f} | {100 * (1 - count / total):.1f} % |{times}", flush=True)
    sizes = {name: sum(p.numel() for p in policy.parameters()) / 1e6 for name, policy in policies.items()}
    print(f"(parameters, millions: {sizes}; largest difference to moe plain: {max(gaps):.1e})", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=7, help="0 counts operations only")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--hidden-ratio", type=float, default=4.0)
    parser.add_argument("--prefix", choices=("clean", "noise"), nargs="+", default=("clean", "noise"))
    parser.add_argument("--horizon", type=int, default=16)
    parser.add_argument("--observations", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| experts | path | MFLOP a decision | below dense_total plain | CPU ms | times faster than moe plain |")
    print("|---|---|---|---|---|---|")
    for prefix in options.prefix:
        transformer = PrefixTransformerConfig(options.width, options.layers, options.heads, prefix=prefix)
        for experts, top_k in ((4, 2), (8, 1)):
            compare(
                f"{experts}/top-{top_k}, {prefix} prefix", MoeConfig(experts, top_k, options.hidden_ratio), transformer, options
            )
    if not options.rounds:
        return
    rng = np.random.default_rng(0)
    seen = {k: rng.random((1, 2, *PANDA.observation[k].shape), np.float32) for k in KEYS}
    steps = {10: "ddim", 1: "one_step"}
    teacher = {
        f"diffusion MLP, {n} step(s)": make_policy(
            "diffusion", DiffusionConfig(sampler=name), PANDA, Normalizer(flat_streams(PANDA), "identity")
        ).eval()
        for n, name in steps.items()
    }
    ms, ratio = medians({n: lambda p=p: p.predict(seen, rng) for n, p in teacher.items()}, 5 * options.rounds)
    for name in teacher:
        print(f"{name}: {ms[name]:.2f} CPU ms, {ratio[name][1]:.2f} times faster than the first")


if __name__ == "__main__":
    main()
