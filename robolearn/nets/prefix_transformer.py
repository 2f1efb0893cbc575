"""Transformer denoiser whose observation tokens never see the actions, so that a sampler computes them once per decision.

Tokens are [noise, goal, observations, actions]. Attention is conditioned on the noise level by adding its features to the
normalised tokens, and the experts are routed by it (MoDE, Reuss et al. 2025, section 4). Other than there, the residual stream
is textbook pre-norm, and with ``prefix: clean`` goal and observation tokens are conditioned on a learned "clean" level instead
of the sampler's: their keys and values then serve all noise levels, and those of the noise token do not depend on the
observation at all.

Two paths give the same numbers: :meth:`PrefixTransformer.forward` computes all tokens at once (training; the plain path), while
:meth:`prepare_levels`, :meth:`prepare_prefix` and :meth:`denoise` do what depends on the weights, on the observation and on the
step only once for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from robolearn.core.errors import RefusedError
from robolearn.nets.blocks import LevelEmbedding, attention, unit_norm
from robolearn.nets.moe import Experts, Fused, MoeConfig, Route, Router, apply_fused

LEVEL_SCALE = 100.0
"""log(sigma) / 4 times this is the position that the sinusoid of the noise level is given."""


@dataclass(frozen=True)
class PrefixTransformerConfig:
    """Size of the transformer."""

    width: int = 64
    """Features per token."""
    layers: int = 3
    """Layers of attention and experts."""
    heads: int = 4
    """Attention heads; must divide ``width``."""
    moe: MoeConfig = field(default_factory=MoeConfig)
    """The experts."""
    prefix: Literal["clean", "noise"] = "clean"
    """What conditions goal and observation tokens: a learned clean level (computed once per decision) or, as published, the noise
    level of each step (computed once per decision for all levels together)."""
    causal_actions: bool = True
    """An action token sees only the earlier ones; else all of them."""
    dropout: float = 0.0
    """Share of features dropped from each layer's updates in training."""

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads or self.layers < 1 or self.width % 2 or self.width < 4:
            raise RefusedError(f"Prefix transformer: heads must divide an even width >= 4, layers be >= 1; got {self}.")
        self.moe.hidden(self.width)


class Working(NamedTuple):
    """The experts of one layer that work at one level, as one, with the scale of the norm before them inside its matrix."""

    fused: Fused
    """Levels with the same experts share it."""
    scale: Tensor | None
    """(H,) factors of its hidden features; None for 1."""


class LayerLevels(NamedTuple):
    """What the weights alone decide about one layer at ``n`` noise levels, then at the clean one where the prefix has it."""

    w_in: Tensor
    """(3 width, width): queries, keys and values, with the scale of the norm before them."""
    b_in: Tensor
    """(n or n + 1, 3 width): their bias, with what the level's features add."""
    norm: Tensor
    """(2, 1, 1, 1, d): scales of the norms of queries and of keys."""
    working: list[Working]
    """[level]."""
    noise: tuple[Tensor, Tensor] | None
    """Keys and values (n, heads, 1, d) of the noise token; None where they depend on the observation."""


class Levels(NamedTuple):
    """What the weights alone decide about ``n`` noise levels."""

    features: Tensor
    """(n, width)."""
    layers: list[LayerLevels]
    w_out: Tensor
    """(a, width): the output's matrix, with the scale of the norm before it."""
    bias: Tensor | None
    """(h, t): 0 where an action token sees a prefix token or another action, else -inf; None for 0."""


class Prefix(NamedTuple):
    """What an observation decides: per layer keys and values (n, b, heads, p, d) of all prefix tokens at each of n levels."""

    keys: list[Tensor]
    values: list[Tensor]


class PrefixTransformer(nn.Module):
    """Denoiser with ``len(tokens)`` prefix tokens beside the noise token and one token per action step.

    Attributes:
        routers: one per layer; empty without experts to choose from.
    """

    def __init__(
        self,
        config: PrefixTransformerConfig,
        *,
        tokens: Sequence[tuple[str, Sequence[int]]],
        shape: tuple[int, int],
        known_actions: bool = False,
    ) -> None:
        """Build with fresh weights.

        Args:
            config: sizes.
            tokens: kind and elements of the condition for each prefix token; tokens of one kind share their embedding. Those of
                kind ``goal`` come first and can be hidden.
            shape: (pred_horizon, action_dim).
            known_actions: whether actions may be given clean.
        """
        super().__init__()
        width, self.config, self.shape = config.width, config, shape
        self.kinds = [kind for kind, _ in tokens]
        self.goal_tokens = self.kinds.count("goal")
        for i, (_, indices) in enumerate(tokens):
            self.register_buffer(f"elements_{i}", torch.tensor(list(indices)), persistent=False)
        sizes = {kind: len(indices) for kind, indices in tokens}
        self.token_in = nn.ModuleDict({kind: nn.Linear(size, width) for kind, size in sizes.items()})
        self.token_position = nn.Parameter(0.02 * torch.randn(len(tokens), width))
        if self.goal_tokens:
            self.no_goal = nn.Parameter(torch.zeros(self.goal_tokens, width))
        self.level_embedding = LevelEmbedding(width, nn.SiLU)
        if config.prefix == "clean":
            self.clean_level = nn.Parameter(torch.zeros(width))
        if known_actions:
            self.known_action = nn.Parameter(0.02 * torch.randn(width))
        self.action_in = nn.Linear(shape[1], width)
        self.action_position = nn.Parameter(0.02 * torch.randn(shape[0], width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        routed = config.moe.routed
        self.routers = nn.ModuleList(Router(width, config.moe) for _ in range(config.layers if routed else 0))
        self.norm = nn.RMSNorm(width)
        self.out = nn.Linear(width, shape[1])
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embed_levels(self, noise: Tensor) -> Tensor:
        """Map log(sigma) / 4 (n,) to level features (n, width)."""
        return self.level_embedding(LEVEL_SCALE * noise)

    def routes(self, features: Tensor, rng: torch.Generator | None = None) -> list[Route]:
        """Return each layer's choice for level features (n, width)."""
        return [router(features, rng) for router in self.routers]

    def forward(
        self, noisy: Tensor, features: Tensor, condition: Tensor, *, routes: list[Route], hide_goal: Tensor | None = None,
        known: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return (b, h, a), all tokens computed together.

        Args:
            noisy: (b, h, a) scaled chunks.
            features: (b, width) of :meth:`embed_levels`.
            condition: (b, c).
            routes: of :meth:`routes` for the same rows.
            hide_goal: (b,) bool, rows whose goal is not shown; None shows all.
            known: (b, h) bool, actions that are given clean; None if none is.
        """
        rows, horizon = len(noisy), self.shape[0]
        prefix = self._prefix_tokens(condition, hide_goal)
        x = torch.cat((features[:, None], prefix, self._action_tokens(noisy, known)), dim=1)
        clean = self.config.prefix == "clean"
        before = self.clean_level.expand_as(prefix) if clean else features[:, None].expand_as(prefix)
        level = torch.cat((features[:, None], before, features[:, None].expand(-1, horizon, -1)), dim=1)
        clean_routes = self.routes(self.clean_level[None]) if clean else routes
        bias = self._bias(x.shape[1] - horizon, x.device)
        for index, block in enumerate(self._blocks()):
            weights = None
            if routes:
                own = routes[index].weights[:, None]
                other = (
                    clean_routes[index].weights[:, None].expand(rows, prefix.shape[1], -1)
                    if clean
                    else own.expand(-1, prefix.shape[1], -1)
                )
                weights = torch.cat((own, other, own.expand(-1, horizon, -1)), dim=1)
            x = block(x, level, bias, weights)
        return self.out(self.norm(x[:, -horizon:]))

    @torch.no_grad()
    def prepare_levels(self, noise: Tensor) -> Levels:
        """Compute what does not depend on any observation for the levels log(sigma) / 4 ``noise`` (n,)."""
        features, clean = self.embed_levels(noise), self.config.prefix == "clean"
        known = torch.cat((features, self.clean_level[None])) if clean else features
        routes = self.routes(known)
        keys = self._noise_keys(features) if clean else [None] * len(self.blocks)
        layers = []
        for index, block in enumerate(self._blocks()):
            working = block.working(routes[index].weights if routes else None, len(known))
            layers.append(LayerLevels(*block.folded(known), working, keys[index]))
        bias = self._bias(1 + len(self.kinds), noise.device)[-self.shape[0] :] if self.config.causal_actions else None
        w_out = self.out.weight * self.norm.weight * len(self.norm.weight) ** 0.5
        return Levels(features, layers, w_out, bias)

    def _noise_keys(self, features: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values (n, heads, 1, d) of the noise token, which sees itself alone."""
        routes, x, keys = self.routes(features), features[:, None], []
        for index, block in enumerate(self._blocks()):
            query, key, value = block.project(x, features[:, None])
            keys.append((key, value))
            x = block.feed(block.attend(x, query, key, value), routes[index].weights[:, None] if routes else None)
        return keys

    def prepare_prefix(self, condition: Tensor, levels: Levels, hide_goal: Tensor | None = None) -> Prefix:
        """Compute the prefix of conditions (b, c) for all levels in one pass."""
        n, rows = len(levels.features), len(condition)
        tokens = self._prefix_tokens(condition, hide_goal)
        if self.config.prefix == "clean":
            keys = self._run_clean_prefix(tokens, levels)
            joined = [
                tuple(torch.cat((own[:, None].expand(-1, rows, -1, -1, -1), given.expand(n, -1, -1, -1, -1)), dim=3)
                      for own, given in zip(layer.noise or (), pair, strict=True))
                for layer, pair in zip(levels.layers, keys, strict=True)
            ]  # fmt: skip
        else:
            features = levels.features
            first = features[:, None, None].expand(n, rows, 1, -1)
            x = torch.cat((first, tokens.expand(n, -1, -1, -1)), dim=2).flatten(0, 1)
            routes = self.routes(features)
            weights = [r.weights.repeat_interleave(rows, dim=0)[:, None].expand(-1, x.shape[1], -1) for r in routes]
            keys = self._run_prefix(x, features.repeat_interleave(rows, dim=0)[:, None], weights)
            joined = [tuple(part.unflatten(0, (n, rows)) for part in pair) for pair in keys]
        return Prefix([pair[0] for pair in joined], [pair[1] for pair in joined])

    def denoise(self, noisy: Tensor, index: int, prefix: Prefix, levels: Levels, *, known: Tensor | None = None) -> Tensor:
        """Return (b, h, a) of scaled chunks (b, h, a) at level number ``index``: only the action tokens are computed."""
        x = self._action_tokens(noisy, known)
        for i, (block, layer) in enumerate(zip(self._blocks(), levels.layers, strict=True)):
            query, key, value = block.project_folded(x, layer, index)
            key = torch.cat((prefix.keys[i][index], key), dim=2)
            value = torch.cat((prefix.values[i][index], value), dim=2)
            x = block.attend(x, query, key, value, levels.bias)
            x = x + apply_fused(unit_norm(x), *layer.working[index])
        return functional.linear(unit_norm(x), levels.w_out, self.out.bias)

    def _blocks(self) -> list[Block]:
        return cast("list[Block]", list(self.blocks))

    def _run_prefix(self, x: Tensor, level: Tensor, weights: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Return each layer's keys and values; behind the last layer's nothing is needed of the prefix."""
        bias = _as_bias(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril())
        keys = []
        for index, block in enumerate(self._blocks()):
            query, key, value = block.project(x, level)
            keys.append((key, value))
            if index < len(self.blocks) - 1:
                x = block.feed(block.attend(x, query, key, value, bias), weights[index] if weights else None)
        return keys

    def _run_clean_prefix(self, x: Tensor, levels: Levels) -> list[tuple[Tensor, Tensor]]:
        """As :meth:`_run_prefix` at the clean level, which is the last of ``levels``, with its experts fused."""
        bias = _as_bias(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).tril())
        keys = []
        for index, (block, layer) in enumerate(zip(self._blocks(), levels.layers, strict=True)):
            query, key, value = block.project_folded(x, layer, -1)
            keys.append((key, value))
            if index < len(self.blocks) - 1:
                x = block.attend(x, query, key, value, bias)
                x = x + apply_fused(unit_norm(x), *layer.working[-1])
        return keys

    def _prefix_tokens(self, condition: Tensor, hide_goal: Tensor | None) -> Tensor:
        elements = [self.get_buffer(f"elements_{i}") for i in range(len(self.kinds))]
        tokens = torch.stack([self.token_in[k](condition[:, e]) for k, e in zip(self.kinds, elements, strict=True)], dim=1)
        if self.goal_tokens and hide_goal is not None:
            shown = torch.where(hide_goal[:, None, None], self.no_goal, tokens[:, : self.goal_tokens])
            tokens = torch.cat((shown, tokens[:, self.goal_tokens :]), dim=1)
        return tokens + self.token_position

    def _action_tokens(self, noisy: Tensor, known: Tensor | None) -> Tensor:
        x = self.action_in(noisy) + self.action_position
        return x if known is None else x + known[..., None] * self.known_action

    def _bias(self, before: int, device: torch.device) -> Tensor:
        """Return (t, t), 0 where a token (row) sees another (column), else -inf; ``before`` tokens precede the actions."""
        size = before + self.shape[0]
        mask = torch.ones(size, size, dtype=torch.bool, device=device).tril()
        if self.config.prefix == "clean":
            mask[1:before, 0] = False  # what is seen of the noise would differ from level to level
        if not self.config.causal_actions:
            mask[before:, before:] = True
        return _as_bias(mask)


class Block(nn.Module):
    """Attention conditioned on the noise level, then the experts."""

    def __init__(self, config: PrefixTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm, self.experts_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.query_norm, self.key_norm = nn.RMSNorm(width // config.heads), nn.RMSNorm(width // config.heads)
        self.attention_out = nn.Linear(width, width)
        self.experts = Experts(width, config.moe)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, level: Tensor, bias: Tensor, weights: Tensor | None) -> Tensor:
        """Map tokens (b, t, width) to their own shape; ``weights`` (b, t, experts) are the routes."""
        query, key, value = self.project(x, level)
        return self.feed(self.attend(x, query, key, value, bias), weights)

    def project(self, x: Tensor, level: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values (b, heads, t, d) of tokens (b, t, width) with level features added."""
        split = self.query_key_value(self.attention_norm(x) + level).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.query_norm(split[0]), self.key_norm(split[1]), split[2]

    def folded(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``w_in``, ``b_in`` and ``norm`` of :class:`LayerLevels` for level features (n, width)."""
        given, scale = self.query_key_value, self.attention_norm.weight * len(self.attention_norm.weight) ** 0.5
        norm = torch.stack((self.query_norm.weight, self.key_norm.weight))[:, None, None, None]
        return given.weight * scale, features @ given.weight.T + given.bias, norm * norm.shape[-1] ** 0.5

    def project_folded(self, x: Tensor, layer: LayerLevels, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return what :meth:`project` does for tokens (b, t, width) at level number ``index``, with fewer operators."""
        split = functional.linear(unit_norm(x), layer.w_in, layer.b_in[index])
        split = split.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query, key = (unit_norm(split[:2]) * layer.norm).unbind()
        return query, key, split[2]

    def working(self, weights: Tensor | None, levels: int) -> list[Working]:
        """Return the experts that work at each of ``levels`` levels, chosen by ``weights`` (levels, experts) or all alike."""
        experts, norm = self.experts, self.experts_norm.weight * len(self.experts_norm.weight) ** 0.5

        def fuse(chosen: tuple[int, ...]) -> Fused:
            made = experts.fuse(chosen)
            return made._replace(w_in=made.w_in * norm)

        if weights is None:
            return [Working(fuse((0,)), None)] * levels
        sets = [tuple(row.nonzero()[:, 0].tolist()) for row in weights]
        made = {chosen: fuse(chosen) for chosen in set(sets)}
        alone = len(sets[0]) == 1 and not experts.shared
        scales = [None if alone else experts.fused_scale(w[list(c)]) for w, c in zip(weights, sets, strict=True)]
        return [Working(made[chosen], scale) for chosen, scale in zip(sets, scales, strict=True)]

    def attend(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``x`` (b, t, width) plus what its queries find."""
        found = attention(query, key, value, bias)
        return x + self.dropout(self.attention_out(found.transpose(1, 2).flatten(2)))

    def feed(self, x: Tensor, weights: Tensor | None) -> Tensor:
        """Return ``x`` (b, t, width) plus its experts' output."""
        rows = self.experts_norm(x).flatten(0, 1)
        out = self.experts(rows, None if weights is None else weights.reshape(len(rows), -1))
        return x + self.dropout(out.unflatten(0, x.shape[:2]))


def _as_bias(seen: Tensor) -> Tensor:
    """Return 0 where ``seen`` is true, else -inf."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
