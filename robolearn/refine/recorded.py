"""Updates that are recorded once and replayed: on a GPU their hundreds of kernels start at once, not one by one from Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.data.replay_buffer import ReplayBatch

WARM_UPS = 3
"""Updates made as they are before one is recorded: libraries choose their kernels, optimisers make their moments."""

Metrics = dict[str, Tensor]
Update = Callable[..., Metrics]
"""(batch, rng, *kind) -> metrics, scalars on the device; what it does depends on ``kind`` and on tensors that stay in place."""


class Recorder(Protocol):
    """How updates are recorded on one type of device."""

    def warm_up(self, update: Callable[[], Metrics], rng: torch.Generator) -> Metrics:
        """Make an update, which draws from ``rng``, as it is, in the way that a recording demands of those before it."""

    def record(self, update: Callable[[], Metrics], rng: torch.Generator) -> Callable[[], Metrics]:
        """Return what makes the update whenever it is called, on the same memory; recording it makes none."""


class CudaGraphs:
    """Records CUDA graphs. Draws stay functions of the generator's seed: a graph reads seed and offset at every replay."""

    def warm_up(self, update: Callable[[], Metrics], rng: torch.Generator) -> Metrics:
        """See :class:`Recorder`; work before a recording has to run on another stream than the default one."""
        current, aside = torch.cuda.current_stream(rng.device), torch.cuda.Stream(rng.device)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            metrics = update()
        current.wait_stream(aside)
        return metrics

    def record(self, update: Callable[[], Metrics], rng: torch.Generator) -> Callable[[], Metrics]:
        """See :class:`Recorder`."""
        graph: Any = torch.cuda.CUDAGraph()
        graph.register_generator_state(rng)
        # The environments' thread asks the policy meanwhile: its calls are its own affair.
        aside = torch.cuda.Stream(rng.device)
        with torch.cuda.device(rng.device), torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
            metrics = update()

        def replay() -> Metrics:
            graph.replay()
            return metrics

        return replay


RECORDERS: dict[str, Recorder] = {"cuda": CudaGraphs()}
"""By type of device."""


def recorded(update: Update, device: torch.device, cuda_graph: bool) -> Update:
    """Return ``update`` as it is, or recorded where ``cuda_graph`` asks for that.

    Raises:
        RefusedError: nothing can be recorded on ``device``.
    """
    if not cuda_graph:
        return update
    if device.type not in RECORDERS:
        raise RefusedError(f"cuda_graph=true records updates on {sorted(RECORDERS)}; this run is on {device}.")
    return RecordedUpdate(update, RECORDERS[device.type])


class RecordedUpdate:
    """An update of fixed shapes, recorded once for each kind.

    A replay reads its batch from memory of its own, into which every batch is copied. The metrics that it returns are valid
    until the next call.
    """

    def __init__(self, update: Update, recorder: Recorder) -> None:
        self._update, self._recorder = update, recorder
        self._batch: ReplayBatch | None = None
        self._rng: torch.Generator | None = None
        self._made: dict[Hashable, int] = {}
        self._replays: dict[Hashable, Callable[[], Metrics]] = {}

    def __call__(self, batch: ReplayBatch, rng: torch.Generator, *kind: Hashable) -> Metrics:
        """Make one update.

        Raises:
            RefusedError: the batch has other shapes, or the generator is another one, than those of the first call.
        """
        own = self._own(batch, rng)
        made = self._made.get(kind, 0)
        if made < WARM_UPS:
            self._made[kind] = made + 1
            return self._recorder.warm_up(lambda: self._update(own, rng, *kind), rng)
        if kind not in self._replays:
            self._replays[kind] = self._recorder.record(lambda: self._update(own, rng, *kind), rng)
        return self._replays[kind]()

    def _own(self, batch: ReplayBatch, rng: torch.Generator) -> ReplayBatch:
        """Return the batch in the update's own memory."""
        if self._batch is None:
            self._batch, self._rng = copy.deepcopy(batch), rng
            return self._batch
        mine, given = self._batch.tensors(), batch.tensors()
        shapes = {name: tuple(value.shape) for name, value in given.items()}
        if rng is not self._rng or shapes != {name: tuple(value.shape) for name, value in mine.items()}:
            raise RefusedError(
                f"This update is recorded for one generator and for {len(self._batch.returns)} rows; got {shapes}."
            )
        torch._foreach_copy_(list(mine.values()), [given[name] for name in mine])
        return self._batch
