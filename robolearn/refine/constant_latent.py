"""The best constant latent noise, found by Monte-Carlo rollouts: no network, no gradient ("golden ticket", arXiv 2603.15757).

K tensors ``w_k`` from N(0, I) are candidates. An episode of candidate k decodes every decision from ``w_k``. Which candidates get
more episodes is decided by successive halving (Karnin et al. 2013; Jamieson and Talwalkar 2016, algorithm 1): with a budget of B
episodes and R = ceil(log2 K) rounds, round r = 0..R-1 gives each of its S_r survivors ``max(1, floor(B / (S_r R)))`` further
episodes and keeps the ``ceil(S_r / 2)`` of the highest success rate

    p_k = (successes of k) / (episodes of k), over all rounds so far.

Only episodes that were started for a round's quota count when it ends: those that lanes began while they waited for the slowest
one count in the next round, whatever their length, so that quick successes are not preferred over slow failures. Equal rates keep
the candidate of the lower number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ActionChunk, Array, Observation
from robolearn.policies import constant_latent
from robolearn.refine.base import Behaviour, wrap
from robolearn.train.checkpoint import require_same_tensors
from robolearn.train.lanes import Outcome
from robolearn.train.refiner import Phase


@dataclass(frozen=True)
class Config:
    """Settings of the search."""

    candidates: int = 16
    """K, latents that are tried."""
    episodes: int = 240
    """B, episodes that the search may use, the warm-up's not counted."""
    repeat: bool = False
    """One latent vector for all steps of the chunk instead of one per step."""
    uses_demonstrations: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise RefusedError(f"candidates={self.candidates} must be at least 2: there is nothing to choose.")
        if self.episodes < self.candidates:
            raise RefusedError(f"episodes={self.episodes} must be at least one per candidate, {self.candidates}.")


class Halving:
    """Successive halving over Bernoulli arms; all state lies in tensors."""

    def __init__(self, candidates: int, episodes: int) -> None:
        self._budget, self._rounds = episodes, max(1, math.ceil(math.log2(candidates)))
        slots = sum(self._share(math.ceil(candidates / 2**r)) for r in range(self._rounds))
        # -1 unknown, 0 failure, 1 success of the n-th episode of candidate k, (candidates, slots).
        self._results = torch.full((candidates, slots), -1, dtype=torch.int8)
        self._started = torch.zeros(candidates, dtype=torch.int64)
        self._alive = torch.ones(candidates, dtype=torch.bool)
        self._quota = torch.tensor(self._share(candidates))

    def _share(self, survivors: int) -> int:
        """Return how many further episodes each survivor gets in a round."""
        return max(1, self._budget // (survivors * self._rounds))

    @property
    def survivors(self) -> list[int]:
        """Numbers of the candidates that are left, ascending."""
        return torch.nonzero(self._alive)[:, 0].tolist()

    def start(self) -> tuple[int, int]:
        """Return (candidate, slot) of a new episode: the survivor with the fewest episodes, ended or not."""
        survivors = self.survivors
        candidate = min(survivors, key=lambda k: int(self._started[k]))
        slot = int(self._started[candidate])
        self._started[candidate] += 1
        return candidate, slot

    def record(self, candidate: int, slot: int, *, success: bool) -> None:
        """Note how an episode ended; ends the round, and the next, when all that it waits for is known."""
        if slot < self._results.shape[1]:
            self._results[candidate, slot] = success
        while len(self.survivors) > 1 and bool((self._counted() >= 0).all()):
            self._halve()

    def rates(self) -> Tensor:
        """Return the success rate of each survivor over the known episodes of its quota, 0 where there is none."""
        counted = self._counted()
        return (counted == 1).sum(dim=1) / (counted >= 0).sum(dim=1).clamp_min(1)

    def _counted(self) -> Tensor:
        return self._results[self._alive, : int(self._quota)]

    def _halve(self) -> None:
        survivors = torch.nonzero(self._alive)[:, 0]
        order = torch.argsort(self.rates(), descending=True, stable=True)
        kept = survivors[order[: math.ceil(len(survivors) / 2)]]
        self._alive.zero_()
        self._alive[kept] = True
        if len(kept) > 1:
            self._quota += self._share(len(kept))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name; writing into these tensors restores it."""
        return {"results": self._results, "started": self._started, "alive": self._alive, "quota": self._quota}


class SearchBehaviour(Behaviour):
    """Decodes each episode from the candidate that it was started for.

    Attributes:
        candidate, slot: (lanes,) of the running episodes; -1 where the episode tries no candidate.
    """

    def __init__(self, policy: constant_latent.Policy, candidates: Tensor, halving: Halving) -> None:
        super().__init__(policy)
        self._candidates, self._halving = candidates, halving
        self.candidate: Array = np.zeros(0, np.int64)
        self.slot: Array = np.zeros(0, np.int64)

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return chunks of the lanes in ``asked``; an episode that begins is given its candidate."""
        policy = self._policy
        if self.warmup or bool(policy.found):
            return super().predict(observation, rng)
        for lane in self.asked[self.ages[self.asked] == 0]:
            self.assign(lane, *self._halving.start())
        noise = standard_normal(rng, (len(self.asked), *policy.latent.shape))
        trying = np.flatnonzero(self._of(self.asked) >= 0)
        chosen = self._candidates[torch.as_tensor(self._of(self.asked)[trying])]
        noise[trying] = chosen.expand(len(trying), *policy.latent.shape).cpu().numpy()
        return policy.base.decode(observation, noise)

    def assign(self, lane: int, candidate: int, slot: int) -> None:
        """Let the running episode of ``lane`` try ``candidate``."""
        missing = len(self.ages) - len(self.candidate)
        self.candidate = np.pad(self.candidate, (0, missing), constant_values=-1)
        self.slot = np.pad(self.slot, (0, missing), constant_values=-1)
        self.candidate[lane], self.slot[lane] = candidate, slot

    def _of(self, lanes: Array) -> Array:
        return self.candidate[lanes] if len(self.candidate) else np.full(len(lanes), -1)


class Refiner:
    """Searches the constant of a :class:`robolearn.policies.constant_latent.Policy`."""

    plan_steps, latent_size, ramps = 1, 0, False

    def __init__(self, policy: constant_latent.Policy, config: Config) -> None:
        self._policy = policy
        draws, horizon, action_dim = policy.latent.shape
        shape = (1, 1, action_dim) if config.repeat else (draws, horizon, action_dim)
        self._candidates = torch.randn(config.candidates, *shape).to(policy.device)
        self._halving = Halving(config.candidates, config.episodes)
        self._behaviour = SearchBehaviour(policy, self._candidates, self._halving)

    def behaviour(self) -> SearchBehaviour:
        """Return the policy that tries the candidates."""
        return self._behaviour

    def policy(self) -> constant_latent.Policy:
        """Return the refined policy."""
        return self._policy

    def observe(self, outcome: Outcome, rng: torch.Generator, phase: Phase) -> Mapping[str, Tensor]:
        """Count the episodes that ended; the last survivor becomes the policy's constant."""
        behaviour, halving = self._behaviour, self._halving
        ended = [i for i in np.flatnonzero(outcome.step.ended) if i < len(behaviour.candidate) and behaviour.candidate[i] >= 0]
        if not ended or bool(self._policy.found):
            return {}
        for lane in ended:
            success = bool(outcome.step.success[lane])
            halving.record(int(behaviour.candidate[lane]), int(behaviour.slot[lane]), success=success)
            behaviour.assign(lane, -1, -1)
        survivors = halving.survivors
        if len(survivors) == 1:
            self._policy.latent.copy_(self._candidates[survivors[0]].expand_as(self._policy.latent))
            self._policy.found.fill_(True)
        return {"survivors": torch.tensor(float(len(survivors))), "best_rate": halving.rates().max()}

    def tensors(self) -> dict[str, Tensor]:
        """Return candidates, counts, and who tries what."""
        lanes = {"lane/candidate": self._behaviour.candidate, "lane/slot": self._behaviour.slot}
        return self._fixed() | {name: torch.from_numpy(value) for name, value in lanes.items()}

    def _fixed(self) -> dict[str, Tensor]:
        return {"candidates": self._candidates} | {f"halving/{k}": v for k, v in self._halving.tensors().items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        own = self._fixed()
        found = {name: value for name, value in tensors.items() if not name.startswith("lane/")}
        require_same_tensors(own, found, where="checkpoint's search")
        for name, value in found.items():
            own[name].copy_(value)
        self._behaviour.candidate = tensors["lane/candidate"].numpy().copy()
        self._behaviour.slot = tensors["lane/slot"].numpy().copy()


def refined_policy(base: torch.nn.Module, config: Config) -> Any:
    """Return the policy of a constant latent around a loaded ``base``; it equals the base exactly until the search has ended."""
    return wrap(base, "constant_latent", constant_latent.Config())
