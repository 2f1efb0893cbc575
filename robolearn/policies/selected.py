"""A frozen generative policy proposes several chunks, critics choose one (best of N; IDQL, Hansen-Estruch et al. 2023).

With an editor every proposal is also there in a second, edited form (EXPO, Dong et al. 2025): the same offset on the actions of
all valued steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.nets.actors import ActorConfig, make_actor
from robolearn.nets.critics import CriticConfig, make_critics
from robolearn.policies import config_class
from robolearn.policies.refined import RefinedPolicy, require_latent


@dataclass(frozen=True)
class Config:
    """Who proposes, who chooses, and among how many."""

    base: Any = variant("diffusion", config_class)
    """The frozen policy."""
    critic: CriticConfig = field(default_factory=lambda: CriticConfig(members=5, layers=2))
    """The critics."""
    candidates: int = 16
    """Chunks proposed per decision, at most."""
    valued_steps: int = 4
    """Leading steps of a chunk that the critics see; as many as are executed."""
    pessimism: float = 0.0
    """Standard deviations between the critics that are taken off each candidate's value."""
    edit_scale: float = 0.0
    """Largest edit of an action element, in normalised action units (half the range between its bounds); 0 has no editor."""
    editor: ActorConfig = field(default_factory=lambda: ActorConfig(layers=2))
    """The network that edits."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.valued_steps < 1 or self.pessimism < 0:
            raise RefusedError(f"candidates and valued_steps must be >= 1 and pessimism >= 0; got {self}.")
        if not 0.0 <= self.edit_scale <= 2.0:
            raise RefusedError(f"edit_scale={self.edit_scale} must lie in [0, 2]: 0 edits nothing, 2 spans every action.")


class Policy(RefinedPolicy):
    """Decodes several chunks and returns the one of the highest value.

    Attributes:
        critics: maps a condition and normalised actions (b, valued_steps * a) to values (e, b).
        candidates: () int64, how many are proposed: 1 until critics have learned, so that the policy equals its base exactly.
        editor: maps a condition and normalised actions (b, valued_steps * a) to an offset (b, a) before its bound, or None.
    """

    candidates: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        require_latent(self.base, config.base.name)
        if config.valued_steps > self.pred_horizon:
            raise RefusedError(
                f"valued_steps={config.valued_steps} must not exceed {self.pred_horizon}, the base's pred_horizon."
            )
        self.critics = make_critics(self.encoder, config.valued_steps * spaces.action_dim, config.critic)
        self.register_buffer("candidates", torch.tensor(1))
        self.editor: nn.Module | None = None
        if config.edit_scale:
            self.editor = make_actor(self.encoder, config.valued_steps * spaces.action_dim, spaces.action_dim, config.editor)

    def edit(self, condition: Tensor, valued: Tensor, editor: nn.Module) -> Tensor:
        """Return the editor's offset (b, a), normalised units, within +-edit_scale, for valued actions (b, valued_steps * a)."""
        return self.config.edit_scale * torch.tanh(editor(condition, valued).float())

    def moved(self, valued: Tensor, offset: Tensor) -> Tensor:
        """Return normalised actions (b, valued_steps * a) plus an offset (b, a) on every step, both inside their bounds."""
        scale = self.config.edit_scale
        return (valued + offset.clamp(-scale, scale).repeat(1, self.config.valued_steps)).clamp(-1.0, 1.0)

    def replaced(self, chunks: Tensor, valued: Tensor) -> Tensor:
        """Return chunks (b, h, a), raw units, with other ``valued`` actions (b, valued_steps * a), normalised, at their start."""
        steps = self.config.valued_steps
        first = valued.unflatten(1, (steps, -1)) * self.action_half_range + self.action_centre
        return torch.cat((first, chunks[:, steps:]), dim=1)

    def choose(self, condition: Tensor, noise: Tensor, explored: Tensor | float = 0.0) -> Tensor:
        """Return the best chunk (b, h, a), raw units, of the candidates that ``noise`` (b, n, *latent_shape) proposes.

        Args:
            condition: (b, c).
            noise: one latent per proposal.
            explored: (b * n, a) added to the edits, normalised units.
        """
        rows, candidates = noise.shape[:2]
        chunks = self.base.decode_condition(condition.repeat_interleave(candidates, dim=0), noise.flatten(0, 1))
        valued = self.valued(chunks)
        if self.editor is not None:
            offset = self.edit(condition.repeat_interleave(candidates, dim=0), valued, self.editor)
            edited = self.moved(valued, offset + explored)
            chunks, valued = torch.cat((chunks, self.replaced(chunks, edited))), torch.cat((valued, edited))
        versions = len(chunks) // (rows * candidates)
        values = self.critics(condition.repeat_interleave(candidates, dim=0).repeat(versions, 1), valued)
        score = values.mean(dim=0)
        if self.config.pessimism:
            score = score - self.config.pessimism * values.std(dim=0)
        best = score.view(versions, rows, candidates).transpose(0, 1).flatten(1).argmax(dim=1)
        version, proposal = best // candidates, best % candidates
        at = torch.arange(rows, device=best.device)
        return chunks.view(versions, rows, candidates, *chunks.shape[1:])[version, at, proposal]

    def valued(self, chunks: Tensor) -> Tensor:
        """Return what critics see of chunks (b, h, a): (b, valued_steps * a), normalised and inside the bounds."""
        return self.normalize_action(chunks[:, : self.config.valued_steps]).flatten(1)

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a chosen chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        condition = self.condition(observation)
        shape = (len(condition), int(self.candidates), *self.base.latent_shape)
        return self.choose(condition, torch.randn(shape, generator=rng, device=condition.device))

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        rows = len(next(iter(observation.values()), ()))
        # The base's own noise comes first, and alone until critics choose: the same draws, the same chunk.
        first = standard_normal(rng, (rows, *self.base.latent_shape))
        candidates = int(self.candidates)
        if candidates == 1:
            return self.base.decode(observation, first)
        more = standard_normal(rng, (rows, candidates - 1, *self.base.latent_shape))
        noise = np.concatenate((first[:, None], more), axis=1)
        with torch.inference_mode():
            condition = self.condition(self.encoder.read(observation, self.device))
            return ActionChunk(self.choose(condition, torch.as_tensor(noise, device=self.device)).float().cpu().numpy())
