"""Q-chunking: critics choose among proposals of a policy that learns from its own successes.

After QC (Li et al. 2025, "Reinforcement Learning with Action Chunking"): a generative policy is cloned from the data so far, and
the best of N of its chunks by critics over whole chunks is executed. :mod:`robolearn.refine.best_of_n` is that with a policy that
never moves, which can choose only what the base proposes. Here the proposals come from a copy of the base that is trained as in
:mod:`robolearn.refine.filtered_bc`. Difference from the paper: what is cloned are the successes alone, and the base's weights
are the start; the base itself stays as it was.

- critics, acting: as in ``best_of_n``
- proposals: ``E_{(s, a) from E} L(theta; s, a)``, every ``tune_every``-th update, E the episodes that succeeded
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.data.store import EpisodeStore
from robolearn.policies import selected
from robolearn.refine import best_of_n
from robolearn.refine.base import wrap
from robolearn.refine.cloning import CloningConfig, SelfCloning
from robolearn.train.lanes import Outcome
from robolearn.train.refiner import Phase


@dataclass(frozen=True)
class Config(best_of_n.Config):
    """Hyper-parameters of Q-chunking."""

    cloning: CloningConfig = field(default_factory=CloningConfig)
    """How the proposing copy learns."""
    tune_every: int = 4
    """Updates of the critics per update of the copy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tune_every < 1:
            raise RefusedError(f"tune_every={self.tune_every} must be >= 1.")


class Refiner(best_of_n.Refiner):
    """Learns the critics of a :class:`robolearn.policies.selected.Policy` and its proposing copy of the base."""

    def __init__(self, policy: selected.Policy, config: Config) -> None:
        super().__init__(policy, config)
        self._tune_every, self._updates = config.tune_every, 0
        # Critics read the base's condition, so the copy keeps the base's encoder.
        self._cloning = SelfCloning(policy.proposer, config.cloning, frozen=("encoder",))

    def imitate(self, store: EpisodeStore, episodes: Sequence[int]) -> None:
        """Let the copy learn from the successes among the demonstrations ``episodes`` too."""
        self._cloning.imitate(store, episodes)

    def observe(self, outcome: Outcome, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Keep the episodes that succeeded with this step; learns nothing by itself."""
        del rng, phase
        self._cloning.remember(outcome)
        return {}

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one update of the critics and, when due, one of the copy."""
        metrics = dict(super().update(batch, rng, phase))
        self._updates += 1
        if phase.actor and self._updates % self._tune_every == 0 and len(self._cloning):
            # Means are over all updates of a row of metrics, and this one happens at every tune_every-th.
            metrics["cloning_loss"] = self._cloning.update(rng) * self._tune_every
        return metrics

    def tensors(self) -> dict[str, Tensor]:
        """Return networks, optimisers and the kept episodes."""
        cloning = {f"cloning/{name}": value for name, value in self._cloning.tensors().items()}
        return super().tensors() | cloning | {"updates": torch.tensor(self._updates)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        super().restore(tensors)
        start = "cloning/"
        self._cloning.restore({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
        self._updates = int(tensors["updates"])


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the selecting policy around a loaded ``base`` and a copy of it; it equals the base exactly until it has learned."""
    settings = selected.Config(
        critic=config.critic,
        candidates=config.candidates,
        valued_steps=config.chunk_steps,
        pessimism=config.pessimism,
        tuned=True,
    )
    policy = wrap(base, "selected", settings)
    policy.proposer.load_state_dict(base.state_dict())
    return policy
