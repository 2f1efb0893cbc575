"""What ``moe_diffusion`` and ``beso`` share: a prefix transformer under EDM's preconditioning, with goals that can be hidden."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.diffusion import edm
from robolearn.diffusion.known_actions import clipped, with_known
from robolearn.diffusion.samplers import Denoise
from robolearn.nets.encoders import ObservationEncoder
from robolearn.nets.moe import balance_loss, z_loss
from robolearn.nets.prefix_transformer import Levels, PrefixTransformer, PrefixTransformerConfig


@dataclass(frozen=True)
class EdmConfig:
    """Noise levels of training and sampling; standard deviations are in normalised action units."""

    sigma_min: float = 0.01
    """Smallest noise level; MoDE's is 0.001."""
    sigma_max: float = 10.0
    """Largest noise level, from which sampling starts; MoDE's is 80, BESO's 1."""
    sigma_data: float = 0.5
    """Standard deviation of the actions."""
    median: float = 0.5
    """Median of the noise levels met in training (log-logistic)."""
    spread: float = 0.5
    """Scale of that distribution's logarithm."""
    schedule: Literal["exponential", "karras", "linear"] = "exponential"
    """How the sampler's levels are spaced."""
    rho: float = 7.0
    """Exponent of ``karras``."""
    sampler: Literal["ddim", "euler", "euler_ancestral", "heun", "dpmpp_2m", "one_step"] = "ddim"
    """How chunks are sampled; ``one_step`` is for distilled students."""
    sampler_steps: int = 10
    """Noise levels that the sampler visits."""
    clip: float = 1.0
    """Bound on the clean estimate, in normalised action units; 0 turns it off."""

    def __post_init__(self) -> None:
        self.sigmas()
        if self.sigma_data <= 0 or self.median <= 0 or self.spread <= 0 or self.clip < 0:
            raise RefusedError(f"EDM: sigma_data, median and spread must be positive, clip not negative; got {self}.")

    def sigmas(self) -> tuple[float, ...]:
        """Return the sampler's noise levels, then 0."""
        return edm.sigma_steps(self.schedule, self.sampler_steps, low=self.sigma_min, high=self.sigma_max, rho=self.rho)


@dataclass(frozen=True)
class GoalConfig:
    """What the policy is told to do."""

    key: str = ""
    """Observation stream that holds the goal: a task's one-hot, a wanted state, an embedded sentence. Its newest step is one
    token. Empty: no goal."""
    dropout: float = 0.1
    """Share of training samples whose whole goal is hidden, which teaches what is done without one."""
    guidance: float = 1.0
    """Classifier-free guidance: ``D(no goal) + guidance * (D(goal) - D(no goal))``; 1 is plain conditioning and costs nothing,
    0 ignores the goal, more than 1 exaggerates it."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.dropout < 1.0 or self.guidance < 0.0:
            raise RefusedError(f"Goal: dropout must lie in [0, 1), guidance not be negative; got {self}.")
        if self.guidance != 1.0 and not self.dropout:
            raise RefusedError(f"Goal: guidance={self.guidance} needs a model of acting without a goal, that is dropout > 0.")


class EdmTransformer(nn.Module):
    """A :class:`PrefixTransformer` as a denoiser in ``sigma``.

    Attributes:
        net: the transformer.
        sigmas: the sampler's noise levels, then 0.
    """

    table: Tensor

    def __init__(
        self, config: EdmConfig, goal: GoalConfig, transformer: PrefixTransformerConfig, *, encoder: ObservationEncoder,
        shape: tuple[int, int], known_actions: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        if goal.key and goal.key not in encoder.features:
            raise RefusedError(f"The goal's stream {goal.key!r} is not among observation_keys {sorted(encoder.features)}.")
        self.config, self.goal, self.sigmas = config, goal, config.sigmas()
        self.net = PrefixTransformer(transformer, tokens=_tokens(encoder, goal.key), shape=shape, known_actions=known_actions)
        self.register_buffer("table", torch.tensor(self.sigmas[:-1]), persistent=False)
        self._levels: dict[torch.dtype | None, tuple[object, Levels]] = {}

    def chunk_error(self, clean: Tensor, condition: Tensor, known: Tensor | None, rng: torch.Generator) -> tuple[Tensor, dict]:
        """See :meth:`GenerativePolicy.chunk_error`: errors of the network's own output, which weighs all levels alike."""
        config = self.config
        uniform = torch.rand(len(clean), generator=rng, device=clean.device)
        sigma = edm.training_sigmas(
            uniform, median=config.median, spread=config.spread, low=config.sigma_min, high=config.sigma_max
        )
        noisy = clean + sigma[:, None, None] * torch.randn(clean.shape, generator=rng, device=clean.device)
        hidden = None
        if self.goal.key and self.goal.dropout:
            hidden = torch.rand(len(clean), generator=rng, device=clean.device) < self.goal.dropout
        c = edm.scales(sigma, config.sigma_data)
        features = self.net.embed_levels(c.noise)
        routes = self.net.routes(features, rng if self.training else None)
        scaled = with_known(c.input[:, None, None] * noisy, clean / config.sigma_data, known)
        output = self.net(scaled, features, condition, routes=routes, hide_goal=hidden, known=known)
        target = (clean - c.skip[:, None, None] * noisy) / c.out[:, None, None]
        moe = self.net.config.moe
        extra = {}
        if routes:
            extra = {
                "load_balance": (moe.balance_weight, torch.stack([balance_loss(r) for r in routes]).mean()),
                "router_z": (moe.z_weight, torch.stack([z_loss(r) for r in routes]).mean()),
                "expert_min_share": (0.0, torch.stack([r.weights.mean(dim=0).min() for r in routes]).min()),
            }
        return (output.float() - target).square(), extra

    def denoised(self, noisy: Tensor, index: Tensor, condition: Tensor, known: Tensor | None = None) -> Tensor:
        """See :meth:`GenerativePolicy.denoised`: the plain path."""
        c = edm.scales(self.table[index], self.config.sigma_data)
        features = self.net.embed_levels(c.noise)
        routes = self.net.routes(features)
        # The network sees noisy actions at unit size, known ones as at noise level 0.
        scaled = with_known(c.input[:, None, None] * noisy, noisy / self.config.sigma_data, known)

        def output(hide: bool) -> Tensor:
            hidden = torch.full((len(noisy),), hide, device=noisy.device)
            f = self.net(scaled, features, condition, routes=routes, hide_goal=hidden, known=known).float()
            return c.skip[:, None, None] * noisy + c.out[:, None, None] * f

        if not self._guides:
            return clipped(output(False), self.config.clip)
        without = output(True)
        return clipped(without + self.goal.guidance * (output(False) - without), self.config.clip)

    def fast_denoiser(self, condition: Tensor, known: Tensor | None = None) -> Denoise:
        """See :meth:`GenerativePolicy.fast_denoiser`: fused experts, and the prefix of all noise levels computed here."""
        levels = self.levels()
        rows = len(condition)
        hidden = None
        if self._guides:
            condition = torch.cat((condition, condition))
            hidden = torch.arange(2 * rows, device=condition.device) >= rows
        prefix = self.net.prepare_prefix(condition, levels, hidden)
        c = edm.scales(torch.tensor(self.sigmas[:-1], dtype=torch.float64), self.config.sigma_data)
        skips, outs, inputs = c.skip.tolist(), c.out.tolist(), c.input.tolist()

        def denoise(noisy: Tensor, index: int) -> Tensor:
            scaled, flags = with_known(inputs[index] * noisy, noisy / self.config.sigma_data, known), known
            if self._guides:
                scaled, flags = scaled.repeat(2, 1, 1), None if known is None else known.repeat(2, 1)
            output = self.net.denoise(scaled, index, prefix, levels, known=flags).to(noisy.dtype)
            if self._guides:
                output = output[rows:] + self.goal.guidance * (output[:rows] - output[rows:])
            return clipped(skips[index] * noisy + outs[index] * output, self.config.clip)

        return denoise

    def levels(self) -> Levels:
        """Return what the weights alone decide about the sampler's levels; kept per arithmetic until a weight changes."""
        device = self.table.device
        # Who decides in bfloat16 must not leave rounded levels to those who do not.
        rounded = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        key = (device, *((p.data_ptr(), p._version) for p in self.net.parameters()))
        if rounded not in self._levels or self._levels[rounded][0] != key:
            # Gradients with respect to the chunk (guidance) may be asked for later, so these must not be inference tensors.
            with torch.inference_mode(False), torch.no_grad():
                self._levels[rounded] = key, self.net.prepare_levels(edm.scales(self.table, self.config.sigma_data).noise)
        return self._levels[rounded][1]

    def __deepcopy__(self, memo: dict) -> EdmTransformer:
        """Copy without the kept levels, which belong to the original's weights."""
        import copy

        kept, self._levels = self._levels, {}
        try:
            made = self.__class__.__new__(self.__class__)
            memo[id(self)] = made
            made.__dict__.update({name: copy.deepcopy(value, memo) for name, value in self.__dict__.items()})
        finally:
            self._levels = kept
        return made

    @torch.no_grad()
    def expert_shares(self, sigmas: Tensor) -> Tensor:
        """Return (layers, n, experts): the weight of each expert at noise levels ``sigmas`` (n,); (0, n, 0) without a router."""
        features = self.net.embed_levels(sigmas.log() / 4)
        routes = self.net.routes(features)
        return torch.stack([r.weights for r in routes]) if routes else torch.zeros(0, len(sigmas), 0)

    @property
    def _guides(self) -> bool:
        return bool(self.goal.key) and self.goal.guidance != 1.0


def _tokens(encoder: ObservationEncoder, goal_key: str) -> list[tuple[str, list[int]]]:
    """Lay the condition out as tokens: the goal's newest step, then per step one of all flat streams and one a camera."""
    tokens = [("goal", encoder.positions(goal_key)[-1])] if goal_key else []
    flat = [encoder.positions(key) for key in encoder.features if key not in encoder.cameras and key != goal_key]
    for step in range(encoder.obs_horizon):
        if flat:
            tokens.append(("state", [i for positions in flat for i in positions[step]]))
        tokens += [(f"camera_{i}", encoder.positions(key)[step]) for i, key in enumerate(encoder.cameras)]
    return tokens
