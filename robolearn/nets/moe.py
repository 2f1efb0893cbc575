"""Mixture of experts that is routed by the noise level alone: what is chosen for a level is known before anything is observed.

Experts are gated MLPs (SwiGLU, Shazeer 2020). k experts whose outputs are added with weights are one wider expert, so the choice
for a known level is *fused* into one pair of matrices (MoDE, Reuss et al. 2025, section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from robolearn.core.errors import RefusedError


@dataclass(frozen=True)
class MoeConfig:
    """Experts of every layer."""

    experts: int = 4
    """Experts to choose from."""
    top_k: int = 2
    """Experts that work at one noise level."""
    hidden_ratio: float = 4.0
    """Hidden features of one expert over the transformer's width."""
    shared_expert: bool = False
    """One more expert that works at every level."""
    twin: Literal["moe", "dense_active", "dense_total"] = "moe"
    """``dense_active`` and ``dense_total``: one MLP without router, as wide as the working experts together or as all of them."""
    balance_weight: float = 0.01
    """Weight of the load-balancing loss."""
    z_weight: float = 0.001
    """Weight of the router's z-loss, which keeps its logits small (Zoph et al. 2022)."""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts:
            raise RefusedError(f"Mixture of experts: top_k={self.top_k} must lie in [1, experts={self.experts}].")
        if self.hidden_ratio <= 0 or self.balance_weight < 0 or self.z_weight < 0:
            raise RefusedError(f"Mixture of experts: hidden_ratio must be positive, loss weights not negative; got {self}.")
        if self.twin not in ("moe", "dense_active", "dense_total"):
            raise RefusedError(f"Mixture of experts: twin {self.twin!r} is unknown. Allowed: moe, dense_active, dense_total.")

    def hidden(self, width: int) -> int:
        """Return the hidden features of one expert of a transformer of ``width``.

        Raises:
            RefusedError: ``hidden_ratio * width`` is no whole number.
        """
        hidden = self.hidden_ratio * width
        if hidden != int(hidden):
            raise RefusedError(f"Mixture of experts: hidden_ratio={self.hidden_ratio} times width={width} is no whole number.")
        return int(hidden)

    @property
    def routed(self) -> bool:
        """Whether there is anything to choose."""
        return self.twin == "moe" and self.experts > 1


class Route(NamedTuple):
    """A router's answer for (n,) noise levels."""

    weights: Tensor
    """(n, experts): 0 for experts that do not work; the others sum to 1."""
    probabilities: Tensor
    """(n, experts) before the choice."""
    logits: Tensor
    """(n, experts)."""


class Router(nn.Module):
    """Chooses ``top_k`` experts from the features of the noise level."""

    def __init__(self, width: int, config: MoeConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        head = nn.Linear(2 * width, config.experts)
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), head)
        # Nearly equal probabilities at the start: every expert gets its share of the first updates.
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    def forward(self, level: Tensor, rng: torch.Generator | None = None) -> Route:
        """Route level features (n, width).

        Args:
            level: features.
            rng: draws the experts without replacement, each with its probability (the Gumbel top-k trick, Kool et al. 2019), so
                that all of them are tried in training; None takes the most probable ones.
        """
        logits = self.net(level).float()
        probabilities = logits.softmax(dim=-1)
        order = logits
        if rng is not None:
            uniform = torch.rand(logits.shape, generator=rng, device=logits.device).clamp(1e-9, 1.0 - 1e-7)
            order = logits - (-uniform.log()).log()
        chosen = order.topk(self.top_k, dim=-1).indices
        kept = torch.zeros_like(probabilities).scatter(-1, chosen, probabilities.gather(-1, chosen))
        return Route(kept / kept.sum(dim=-1, keepdim=True), probabilities, logits)


def balance_loss(route: Route) -> Tensor:
    """Return ``experts * sum_e f_e p_e``: f the share of the choices, p the mean probability (Switch, Fedus et al. 2022, eq. 4).

    It is 1 where both are uniform and ``experts`` where one expert takes everything.
    """
    chosen = (route.weights > 0).float()
    share = chosen.mean(dim=0) / chosen.sum(dim=-1).mean()
    return route.weights.shape[-1] * (share * route.probabilities.mean(dim=0)).sum()


def z_loss(route: Route) -> Tensor:
    """Return the mean squared log-sum-exp of the logits (Zoph et al. 2022, eq. 5)."""
    return route.logits.logsumexp(dim=-1).square().mean()


class Fused(NamedTuple):
    """Experts that work together, as one gated MLP: ``(scale * p * silu(g)) @ w_out`` with ``[p, g] = w_in @ x + b_in``."""

    w_in: Tensor
    """(2 H, width): all p rows, then all g rows."""
    b_in: Tensor
    """(2 H,)."""
    w_out: Tensor
    """(H, width): the way round that is faster for the few rows of a decision."""


class Experts(nn.Module):
    """``count`` gated MLPs with stacked weights; the shared expert, if any, is the last."""

    def __init__(self, width: int, config: MoeConfig) -> None:
        super().__init__()
        together = {"moe": 1, "dense_active": config.top_k, "dense_total": config.experts}[config.twin]
        if config.twin != "moe":
            together += config.shared_expert
        self.hidden = together * config.hidden(width)
        self.routed = config.experts if config.routed else 1
        self.shared = config.shared_expert and config.twin == "moe"
        count = self.routed + self.shared
        self.w_in = nn.Parameter(torch.empty(count, 2 * self.hidden, width).uniform_(-1, 1) / width**0.5)
        self.b_in = nn.Parameter(torch.zeros(count, 2 * self.hidden))
        self.w_out = nn.Parameter(torch.empty(count, width, self.hidden).uniform_(-1, 1) / self.hidden**0.5)

    def forward(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Return the weighted sum of the experts' outputs for rows ``x`` (n, width).

        Args:
            x: rows.
            weights: (n, experts); None where there is nothing to choose.
        """
        if weights is None:
            out = self._expert(x, 0)
        elif x.is_cpu:
            out = self.of_chosen(x, weights)
        else:
            out = self.of_all(x, weights)
        return out + self._expert(x, self.routed) if self.shared else out

    def of_chosen(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the weighted sum, each row computed by the experts with a weight only.

        How many rows those are a GPU would have to tell the host, expert by expert.
        """
        out = torch.zeros_like(x)
        for index in range(self.routed):
            rows = weights[:, index].nonzero()[:, 0]
            if len(rows):
                part = self._expert(x[rows], index) * weights[rows, index, None].to(x.dtype)
                out = out.index_add(0, rows, part.to(out.dtype))
        return out

    def of_all(self, x: Tensor, weights: Tensor) -> Tensor:
        """Return the same with every row computed by every expert in one batched product."""
        w_in, b_in, w_out = self.w_in[: self.routed], self.b_in[: self.routed, None], self.w_out[: self.routed]
        value, gate = torch.baddbmm(b_in, x.expand(self.routed, -1, -1), w_in.mT).chunk(2, dim=-1)
        return torch.einsum("enw,ne->nw", torch.bmm(value * functional.silu(gate), w_out.mT), weights.to(x.dtype))

    def _expert(self, x: Tensor, index: int) -> Tensor:
        value, gate = functional.linear(x, self.w_in[index], self.b_in[index]).chunk(2, dim=-1)
        return functional.linear(value * functional.silu(gate), self.w_out[index])

    def fuse(self, chosen: tuple[int, ...]) -> Fused:
        """Return the experts ``chosen`` (and the shared one) as one."""
        members = [*chosen, *([self.routed] if self.shared else [])]
        halves = [w.chunk(2) for w in self.w_in[members].unbind()]
        biases = [b.chunk(2) for b in self.b_in[members].unbind()]
        w_in = torch.cat([half[part] for part in (0, 1) for half in halves])
        b_in = torch.cat([half[part] for part in (0, 1) for half in biases])
        return Fused(w_in, b_in, torch.cat([w.T for w in self.w_out[members].unbind()]))

    def fused_scale(self, weights: Tensor) -> Tensor:
        """Return the (H,) factors of a fused expert's hidden features for the chosen experts' ``weights`` (k,)."""
        shared = [torch.ones(1, device=weights.device)] if self.shared else []
        return torch.cat([weights, *shared]).repeat_interleave(self.hidden)


def apply_fused(x: Tensor, fused: Fused, scale: Tensor | None) -> Tensor:
    """Return a fused expert's output for ``x`` (..., width); ``scale`` (H,) are its hidden features' factors, None for 1."""
    value, gate = functional.linear(x, fused.w_in, fused.b_in).chunk(2, dim=-1)
    hidden = value * functional.silu(gate)
    return (hidden if scale is None else hidden * scale) @ fused.w_out
