"""Best of N with edits (EXPO): beside each of the base's proposals stands an edited one, and critics choose among all.

After EXPO (Dong et al. 2025, "EXPO: Stable Reinforcement Learning with Expressive Policies"): the expressive policy proposes, a
small network moves a proposal where the critics' gradient points, and what acts is the better of the two. Two things differ. The
base stays frozen, so the fallback is exact. And an edit is one offset ``e`` over all k valued steps of the chunk: an offset of a
single step hardly changes an outcome, and what critics say of its direction is noise. With ``a`` the executed chunk:

- critics: ``best_of_n``'s, on what acts, edits included
- editor: ``-(mean_i A_i - pessimism std_i A_i) / mean|Q| + penalty mean((e / edit_scale)^2)``,
  ``A_i = Q_i(s, clip(a + e(s, a))) - Q_i(s, a)``
- acting: ``argmax over n and both forms of mean_i Q_i - pessimism std_i Q_i``, edits explored with normal noise
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Observation
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import follow
from robolearn.policies import selected
from robolearn.refine import best_of_n
from robolearn.refine.base import Behaviour, cautious_gain, critic_autocast, descend, module_tensors, restore_modules, wrap
from robolearn.train.online import Phase


@dataclass(frozen=True)
class Config(best_of_n.Config):
    """Hyper-parameters of best of N with edits."""

    edit_scale: float = 0.3
    """Bound of the edit of every action element, in normalised action units."""
    editor: ActorConfig = field(default_factory=lambda: ActorConfig(layers=2))
    """The network that edits."""
    editor_learning_rate: float = 1.0e-4
    """Adam's, of the editor."""
    editor_average: float = 0.02
    """How fast the deployed editor follows the one that learns."""
    edit_pessimism: float = 1.0
    """Standard deviations between the critics that are taken off an edit's advantage; critics that disagree move nothing."""
    penalty: float = 0.03
    """Weight of the mean squared edit, relative to its bound, against the normalised value."""
    exploration: float = 0.1
    """Standard deviation of the noise on explored edits, normalised action units; around the base's chunks in the warm-up."""
    explored_share: float = 0.1
    """Share of the decisions that are explored. An episode has dozens, and few tasks forgive noise on all of them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.edit_scale <= 0:
            raise RefusedError(f"edit_scale={self.edit_scale} must be above 0; best_of_n is the method without edits.")
        if not 0 < self.editor_average <= 1 or not 0 < self.explored_share < 1 or min(self.exploration, self.penalty) < 0:
            raise RefusedError("editor_average must lie in (0, 1], explored_share in (0, 1); exploration and penalty be >= 0.")


class EditingBehaviour(Behaviour):
    """Explores with noise on the edits, held as long as they are."""

    def __init__(self, policy: selected.Policy, config: Config) -> None:
        super().__init__(policy)
        self._exploration = config.exploration
        self._threshold = NormalDist().inv_cdf(1.0 - config.explored_share)

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return explored chunks of the lanes that were asked."""
        policy: selected.Policy = self._policy
        rows = len(next(iter(observation.values())))
        count = 1 if self.warmup else int(policy.candidates)
        noise = torch.as_tensor(standard_normal(rng, (rows, count, *policy.base.latent_shape)), device=self.device)
        drawn = standard_normal(rng, (rows, count, policy.spaces.action_dim + 1))
        offset = self._exploration * drawn[..., 1:] * (drawn[:, :1, :1] > self._threshold)
        explored = torch.as_tensor(offset, device=self.device).flatten(0, 1)
        with torch.inference_mode():
            condition = policy.condition(policy.encoder.read(observation, self.device))
            if self.warmup:
                chunks = policy.base.decode_condition(condition, noise[:, 0])
                chunks = policy.replaced(chunks, policy.moved(policy.valued(chunks), explored))
            else:
                chunks = policy.choose(condition, noise, explored)
            return ActionChunk(chunks.float().cpu().numpy())


class Refiner(best_of_n.Refiner):
    """Learns critics and editor of a :class:`robolearn.policies.selected.Policy`; their slow copies act."""

    def __init__(self, policy: selected.Policy, config: Config) -> None:
        super().__init__(policy, config)
        self._settings = config
        assert policy.editor is not None
        self._deployed = policy.editor.requires_grad_(False)
        self._editor = copy.deepcopy(self._deployed).requires_grad_(True)
        self._editor_optimizer = torch.optim.Adam(self._editor.parameters(), config.editor_learning_rate, fused=True)

    def behaviour(self) -> Behaviour:
        """Return the exploring policy."""
        return EditingBehaviour(self._policy, self._settings)

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one update of the critics and, once the actor phase has begun, one of the editor."""
        metrics = dict(super().update(batch, rng, phase))
        if phase.actor:
            metrics |= self._update_editor(batch)
            follow(self._deployed, self._editor, self._settings.editor_average)
        return metrics

    def _update_editor(self, batch: ReplayBatch) -> dict[str, Tensor]:
        config = self._settings
        done = batch.actions[:, : self.plan_steps].flatten(1)
        with critic_autocast(config.bf16, done.device):
            offset = self._policy.edit(batch.condition, done, self._editor)
            values = self._critics.online(batch.condition, self._policy.moved(done, offset)).float()
            with torch.no_grad():
                usual = self._critics.online(batch.condition, done).float()
        size = (offset / config.edit_scale).square().mean()
        gain = cautious_gain(values, usual, config.edit_pessimism)
        loss = config.penalty * size - gain / usual.abs().mean().clamp_min(1e-3)
        descend(loss, self._editor, self._editor_optimizer, config.max_gradient_norm)
        return {"edit_rms": size.detach().sqrt() * config.edit_scale, "actor_loss": loss.detach(), "advantage": gain.detach()}

    def tensors(self) -> dict[str, Tensor]:
        """Return networks and optimisers."""
        return super().tensors() | module_tensors({"editor": self._editor}, {"editor": self._editor_optimizer})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        super().restore(tensors)
        restore_modules(tensors, {"editor": self._editor}, {"editor": self._editor_optimizer})


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the selecting and editing policy around a loaded ``base``; it equals the base exactly until it has learned."""
    settings = selected.Config(
        critic=config.critic,
        candidates=config.candidates,
        valued_steps=config.chunk_steps,
        pessimism=config.pessimism,
        edit_scale=config.edit_scale,
        editor=config.editor,
    )
    return wrap(base, "selected", settings)
