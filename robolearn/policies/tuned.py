"""A policy whose copy is trained on: the copy acts, the frozen original is the fallback."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from robolearn.core.config import variant
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, RandomSource
from robolearn.core.types import ActionChunk, Array, Observation, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.policies import config_class, make_policy
from robolearn.policies.refined import RefinedPolicy


@dataclass(frozen=True)
class Config:
    """What is trained on."""

    base: Any = variant("diffusion", config_class)
    """The frozen original."""


class Policy(RefinedPolicy):
    """Acts as the trained copy once :attr:`acting` is set.

    Attributes:
        tuned: the copy, a policy of the base's kind.
        acting: () bool; while it is not set the policy equals its base exactly.
    """

    acting: Tensor

    def __init__(self, config: Config, spaces: Spaces, normalizer: Normalizer) -> None:
        super().__init__(config, spaces, normalizer)
        if not hasattr(self.base, "loss"):
            raise RefusedError(f"Policy {config.base.name!r} cannot be trained on: it has no supervised loss.")
        # Its normaliser is its own: tensors that two modules share cannot be saved twice.
        tuned: Any = make_policy(config.base.name, config.base.config, spaces, copy.deepcopy(normalizer))
        self.tuned = tuned.requires_grad_(False)
        self.register_buffer("acting", torch.tensor(False))
        if isinstance(self.base, ContinuingPolicy):
            self.continue_chunk = self._continue_chunk

    @property
    def _active(self) -> Any:
        return self.tuned if bool(self.acting) else self.base

    def predict_tensor(self, observation: Mapping[str, Tensor], rng: torch.Generator) -> Tensor:
        """Return a chunk (b, h, a) for tensors on the policy's device, where ``rng`` must be too."""
        return self._active.predict_tensor(observation, rng)

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        return self._active.predict(observation, rng)

    def _continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """See :class:`ContinuingPolicy`: that of the copy or, while it does not act, of the original."""
        return self._active.continue_chunk(observation, rng, committed, delay=delay, method=method)
