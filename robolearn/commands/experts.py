"""``robolearn experts``: which experts of a mixture work at which noise level, as a heat map, and whether some never do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console

from robolearn.commands.policy_reference import run_folder
from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn.diffusion.edm import training_sigmas
from robolearn.policies.loading import load_policy
from robolearn.train.checkpoint import find_checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_FILE = "experts.png"
COLLAPSED_SHARE = 0.01
"""An expert with a smaller share of the work than this, over the noise levels of training, counts as collapsed."""
_LEVELS = 64
_QUANTILES = 2048


@dataclass(frozen=True)
class ExpertUsage:
    """Who works when."""

    sigmas: Array
    """(n,) noise levels, ascending, equal ratios."""
    shares: Array
    """(layers, n, experts) weight of each expert at each of them."""
    training_shares: Array
    """(layers, experts) mean weight over the noise levels that training draws."""

    def collapsed(self) -> list[tuple[int, int]]:
        """Return (layer, expert) of those that hardly ever work."""
        return [(int(layer), int(e)) for layer, e in np.argwhere(self.training_shares < COLLAPSED_SHARE)]


def expert_usage(policy: Any) -> ExpertUsage:
    """Measure a policy's experts.

    Raises:
        RefusedError: the policy has none to choose from.
    """
    denoiser: Any = getattr(policy, "denoiser", None)
    if not hasattr(denoiser, "expert_shares") or not len(denoiser.net.routers):
        raise RefusedError(f"{type(policy).__module__} has no experts to choose from (one expert, or a dense twin).")
    edm, device = denoiser.config, denoiser.table.device
    levels = torch.logspace(np.log10(edm.sigma_min), np.log10(edm.sigma_max), _LEVELS, device=device)
    uniform = (torch.arange(_QUANTILES, device=device) + 0.5) / _QUANTILES
    drawn = training_sigmas(uniform, median=edm.median, spread=edm.spread, low=edm.sigma_min, high=edm.sigma_max)
    return ExpertUsage(
        levels.cpu().numpy(),
        denoiser.expert_shares(levels).cpu().numpy(),
        denoiser.expert_shares(drawn).mean(dim=1).cpu().numpy(),
    )


def experts(reference: str, out: Path | None) -> None:
    """Print the experts' shares, name collapsed ones, and draw the heat map."""
    checkpoint = find_checkpoint(Path(reference))
    usage = expert_usage(load_policy(checkpoint))
    console = Console()
    for layer, row in enumerate(usage.training_shares):
        shares = "  ".join(f"expert {e} {share:.2f}" for e, share in enumerate(row))
        console.print(f"layer {layer}: {shares}", highlight=False)
    collapsed = usage.collapsed()
    words = ", ".join(f"layer {layer} expert {expert}" for layer, expert in collapsed)
    console.print(f"Collapsed: {words}." if collapsed else f"No expert has collapsed (share below {COLLAPSED_SHARE}).")
    figure = out or (run_folder(Path(reference)) or checkpoint) / FIGURE_FILE
    figure.parent.mkdir(parents=True, exist_ok=True)
    heat_map(usage).savefig(figure, dpi=110)
    console.print(f"heat map: {figure}", soft_wrap=True)


def heat_map(usage: ExpertUsage) -> Figure:
    """Return the heat map, one panel per layer: experts against noise levels."""
    from matplotlib.figure import Figure  # costs seconds at import

    layers, _, count = usage.shares.shape
    figure = Figure(figsize=(2.6 * layers + 1.2, 2.8), layout="constrained")
    ticks = np.geomspace(usage.sigmas[0], usage.sigmas[-1], 4)  # a logarithmic axis labels too many of less than two decades
    edges = np.append(usage.sigmas, usage.sigmas[-1] ** 2 / usage.sigmas[-2])
    for layer in range(layers):
        axes = figure.add_subplot(1, layers, layer + 1)
        image = axes.pcolormesh(edges, np.arange(count + 1) - 0.5, usage.shares[layer].T, vmin=0, vmax=1, cmap="viridis")
        axes.set(xscale="log", xlabel="noise level sigma", title=f"layer {layer}", yticks=range(count))
        axes.set_xticks(ticks, [f"{tick:.2g}" for tick in ticks])
        axes.minorticks_off()
        if layer == 0:
            axes.set_ylabel("expert")
    figure.colorbar(image, ax=figure.axes, label="weight")
    return figure
