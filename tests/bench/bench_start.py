"""Which demonstrated chunks a sampler prefers when it starts from plain noise, with the best denoiser there is: no network.

    robolearn bench start <episode store> [states]

Sampling starts from ``sigma_max * N(0, 1)``, while a noisy chunk of training is ``clean + sigma_max * noise``. Where
``sigma_max`` is not large against the *whole* chunk the start says something about the chunk: that it is small, for
``log p(x | clean) = -|x - clean|^2 / (2 sigma^2)`` and x is not correlated with any chunk. For each of some states the 20 windows
of the most similar observations are taken as equally likely chunks; their denoiser is a softmax. Printed is the rank of the
norm of the chunk that is nearest to the sampled one, 0 for the smallest of the 20 and 1 for the largest; 0.5 is unbiased.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.store import EpisodeStore
from robolearn.diffusion import samplers
from robolearn.diffusion.edm import sigma_steps

HORIZON, NEIGHBOURS, DRAWS = 16, 20, 40
SCHEDULES = (
    ("linear", 3, 0.05, 1.0),
    ("linear", 10, 0.05, 1.0),
    ("exponential", 3, 0.1, 4.0),
    ("exponential", 5, 0.1, 5.0),
    ("exponential", 3, 0.1, 10.0),
    ("exponential", 3, 0.1, 40.0),
    ("exponential", 30, 0.05, 80.0),
)


def candidates(store, states):
    """Return (states, 20, h * a): normalised chunks of the windows with the nearest observations."""
    windows = WindowDataset(store, WindowConfig(1, HORIZON), episodes=range(len(store.lengths)), keys=[STATE, ENVIRONMENT_STATE])
    batch = windows.batch(torch.arange(len(windows)))
    seen = torch.cat([batch[key][:, 0] for key in (STATE, ENVIRONMENT_STATE)], dim=1)
    seen = (seen - seen.mean(dim=0)) / (seen.std(dim=0) + 1e-6)
    low, high = batch[ACTION].amin(dim=(0, 1)), batch[ACTION].amax(dim=(0, 1))
    chunks = (2 * (batch[ACTION] - low) / (high - low) - 1).flatten(1)
    chosen = np.random.default_rng(0).choice(len(seen), states, replace=False)
    nearest = torch.cdist(seen[chosen], seen).topk(NEIGHBOURS, largest=False).indices
    return chunks[nearest]


def norm_rank(chunks, sigmas, rng):
    """Return the mean rank in [0, 1] of the chosen chunks' norms among ``chunks`` (20, d)."""

    def denoise(noisy, index):
        gap = (noisy.flatten(1)[:, None] - chunks).square().sum(dim=-1)
        return ((-gap / (2 * sigmas[index] ** 2)).softmax(dim=-1) @ chunks).view(noisy.shape)

    latent = torch.randn(DRAWS, 1, HORIZON, chunks.shape[1] // HORIZON, generator=rng)
    sampled = samplers.euler(denoise, sigmas, latent).flatten(1)
    chosen = torch.cdist(sampled, chunks).argmin(dim=1)
    return (chunks.square().sum(dim=1).argsort().argsort()[chosen].float() / (NEIGHBOURS - 1)).mean().item()


def main() -> None:
    """Print one row per schedule."""
    torch.set_num_threads(1)
    with EpisodeStore.open(Path(sys.argv[1])) as store:
        chunks = candidates(store, int(sys.argv[2]) if len(sys.argv) > 2 else 150)
    print("| schedule | steps | sigma_min | sigma_max | rank of the norm |\n|---|---|---|---|---|")
    for name, steps, low, high in SCHEDULES:
        rng = torch.Generator().manual_seed(0)
        ranks = np.array([norm_rank(part, sigma_steps(name, steps, low=low, high=high), rng) for part in chunks])
        print(f"| {name} | {steps} | {low} | {high} | {ranks.mean():.3f} +- {ranks.std() / len(ranks) ** 0.5:.3f} |", flush=True)


if __name__ == "__main__":
    main()
