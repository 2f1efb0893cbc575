"""A copy of the base is trained, with its own supervised loss, on the episodes that succeeded while it acted."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, Array
from robolearn.data.dataset import Batch
from robolearn.data.episode_memory import EpisodeMemory
from robolearn.data.store import EpisodeStore
from robolearn.nets.critics import follow
from robolearn.refine.base import descend, module_tensors, restore_modules
from robolearn.train.lanes import Outcome


@dataclass(frozen=True)
class CloningConfig:
    """Hyper-parameters of learning from one's own successes."""

    learning_rate: float = 1.0e-4
    """Adam's."""
    batch_size: int = 256
    """Windows per update."""
    average_rate: float = 0.005
    """How fast the weights that act follow the trained ones."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this norm."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 < self.average_rate <= 1:
            raise RefusedError(f"batch_size must be >= 1 and average_rate in (0, 1]; got {self}.")


class SelfCloning:
    """Keeps the successful episodes and trains a copy on them: ``E_{(s, a) from E} L(theta; s, a)``, one Adam step at a time.

    What acts is the slow average ``theta' <- theta' + average_rate (theta - theta')``. Successes weigh 1 and failures 0:
    reward-weighted regression (Peters and Schaal 2007).
    """

    def __init__(self, acting: Any, config: CloningConfig, *, frozen: Iterable[str] = ()) -> None:
        """Prepare to train a copy of ``acting``, the module that acts; its submodules ``frozen`` stay as they are."""
        self._acting, self._config = acting, config
        self._learner = copy.deepcopy(acting).requires_grad_(True)
        for name in frozen:
            self._learner.get_submodule(name).requires_grad_(False)
        trained = [p for p in self._learner.parameters() if p.requires_grad]
        self._optimizer = torch.optim.Adam(trained, config.learning_rate, fused=True)
        horizons = (int(acting.obs_horizon), int(acting.pred_horizon))
        self._device = next(iter(acting.state_dict().values())).device
        self._own, self._given = (EpisodeMemory(*horizons, self._device) for _ in ("own", "given"))
        self._log: list[dict[str, Array]] = []
        """The newest steps of all lanes, as many as the oldest running episode has."""
        self._ages = np.zeros(0, np.int64)

    def __len__(self) -> int:
        """Return the number of windows to learn from."""
        return len(self._own) + len(self._given)

    @property
    def episodes(self) -> int:
        """Own episodes that were kept."""
        return self._own.episodes

    def imitate(self, store: EpisodeStore, episodes: Sequence[int]) -> None:
        """Learn from the successes among the demonstrations ``episodes`` too."""
        keys = [*self._acting.spaces.observation, ACTION]
        for index in episodes:
            if store.successes[index]:
                self._given.add(store.read(index, keys).data)

    def remember(self, outcome: Outcome) -> None:
        """Note one control step of all lanes; keep the episodes that succeeded with it."""
        self._log.append({**outcome.observation, ACTION: outcome.sent})
        if not len(self._ages):
            self._ages = np.zeros(len(outcome.sent), np.int64)
        self._ages += 1
        ended = np.asarray(outcome.step.ended, bool)
        for lane in np.flatnonzero(ended & np.asarray(outcome.step.success, bool)):
            steps = self._log[-self._ages[lane] :]
            self._own.add({key: np.stack([step[key][lane] for step in steps]) for key in steps[0]})
        self._ages[ended] = 0
        del self._log[: len(self._log) - int(self._ages.max())]

    def update(self, rng: torch.Generator) -> Tensor:
        """Make one update; return the loss."""
        config = self._config
        # The copy stays in evaluation mode: dropout would draw from torch's global generator, which no checkpoint holds.
        loss, _ = self._learner.loss(self._draw(rng), rng)
        descend(loss, self._learner, self._optimizer, config.max_gradient_norm)
        follow(self._acting, self._learner, config.average_rate)
        return loss.detach()

    def _draw(self, rng: torch.Generator) -> Batch:
        own, given = self._own, self._given
        # Each memory gives its share, at least a row: how many rows came from where, a GPU would have to tell the host.
        rows = self._config.batch_size
        mine = min(max(round(rows * len(own) / len(self)), min(1, len(own))), rows - min(1, len(given)))
        parts = [
            memory.batch(torch.randint(len(memory), (count,), generator=rng, device=self._device))
            for memory, count in ((own, mine), (given, rows - mine))
            if count
        ]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}

    def tensors(self) -> dict[str, Tensor]:
        """Return the copy, its optimiser, the kept episodes and the running ones; not the demonstrations."""
        log = {f"log/{k}": torch.from_numpy(np.stack([s[k] for s in self._log])) for k in (self._log or [{}])[0]}
        kept = {f"own/{key}": value for key, value in self._own.state().items()}
        networks = module_tensors({"learner": self._learner}, {"learner": self._optimizer})
        return networks | kept | log | {"ages": torch.from_numpy(self._ages.copy())}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`tensors`."""
        restore_modules(tensors, {"learner": self._learner}, {"learner": self._optimizer})
        self._own.restore({k.removeprefix("own/"): v for k, v in tensors.items() if k.startswith("own/")})
        self._ages = tensors["ages"].numpy().copy()
        log = {k.removeprefix("log/"): v.numpy().copy() for k, v in tensors.items() if k.startswith("log/")}
        self._log = [{k: v[i] for k, v in log.items()} for i in range(int(self._ages.max(initial=0)))]
