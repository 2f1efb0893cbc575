"""Best of N: critics learn to value the base's chunks, and the best of several proposals is executed.

The policy itself never moves: every executed chunk is one that the frozen base proposed, so critics that know nothing choose at
random, which is the base. What is valued is what acts (SARSA, on chunks of k control steps, returns over n): with ``d`` the
discount per control step and ``p_n`` the chunk that was planned at ``s_n``,

- critics: ``(Q_i(s, a) - y)^2``, ``y = sum_j d^j reward_j + d^n mean_i Q'_i(s_n, p_n)``
- acting: ``argmax_n mean_i Q_i(s, D(s, w_n)) - pessimism std_i Q_i``, ``w_n`` from N(0, I), n = 1..N

Many proposals find the errors of young critics rather than good chunks, few waste what old ones know: N grows from 1 to
``candidates`` over the ``online.ramp_steps`` after the warm-up.

No update decodes anything, so this is by far the cheapest method. IDQL (Hansen-Estruch et al. 2023) and Q-chunking (Li et al.
2025) choose the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.policies import selected
from robolearn.refine.base import (
    Behaviour,
    Critics,
    LearnerConfig,
    bootstrapped_rows,
    module_tensors,
    restore_modules,
    wrap,
)
from robolearn.refine.recorded import recorded
from robolearn.train.online import Phase


@dataclass(frozen=True)
class Config(LearnerConfig):
    """Hyper-parameters of best of N."""

    chunk_steps: int = 4
    """k, control steps of the chunk that is valued; equal to ``evaluate.exec_horizon``."""
    candidates: int = 16
    """Chunks proposed per decision once the ramp is over."""
    pessimism: float = 0.5
    """Standard deviations between the critics that are taken off each candidate's value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.chunk_steps <= self.window_steps:
            raise RefusedError(f"chunk_steps={self.chunk_steps} must lie in [1, window_steps={self.window_steps}].")


class Refiner:
    """Learns the critics of a :class:`robolearn.policies.selected.Policy`; its slow copy chooses and is the target."""

    latent_size, ramps = 0, True

    def __init__(self, policy: selected.Policy, config: Config) -> None:
        self._policy, self._config = policy, config
        self.window_steps, self.discount, self.plan_steps = config.window_steps, config.discount, config.chunk_steps
        self._critics = Critics(policy.critics, config)
        self._learn_critics = recorded(self._update_critics, policy.device, config.cuda_graph)

    def behaviour(self) -> Behaviour:
        """Return the exploring policy: sampling N proposals explores by itself."""
        return Behaviour(self._policy)

    def policy(self) -> selected.Policy:
        """Return the refined policy."""
        return self._policy

    def update(self, batch: ReplayBatch, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Make one critic update; the critics begin to choose when the actor phase does, among ever more."""
        if phase.actor:
            self._policy.candidates.fill_(max(1, round(self._config.candidates * phase.reach)))
        return self._learn_critics(batch, rng)

    def _update_critics(self, batch: ReplayBatch, rng: torch.Generator) -> dict[str, Tensor]:
        del rng
        following = torch.zeros_like(batch.returns)
        rows = bootstrapped_rows(batch, self._config.outcome_weight)
        with torch.no_grad(), self._config.autocast(following.device):
            values = self._critics.slow(batch.following["condition"][rows], batch.following["plan"][rows])
            following[rows] = values.float().mean(dim=0)
        return self._critics.learn(batch, batch.actions[:, : self.plan_steps].flatten(1), following)

    def tensors(self) -> dict[str, Tensor]:
        """Return networks and optimiser."""
        return module_tensors({"critics": self._critics.online}, {"critics": self._critics.optimizer})

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, {"critics": self._critics.online}, {"critics": self._critics.optimizer})


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the selecting policy around a loaded ``base``; it equals the base exactly until the critics have learned."""
    settings = selected.Config(
        critic=config.critic, candidates=config.candidates, valued_steps=config.chunk_steps, pessimism=config.pessimism
    )
    return wrap(base, "selected", settings)
