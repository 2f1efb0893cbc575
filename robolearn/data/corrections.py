"""What people did when they took over from a policy, as demonstrations (HG-DAgger, Kelly et al. 2019, arXiv 1810.02890)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array, Episode
from robolearn.data.convert import Conversion, Progress, import_episodes
from robolearn.data.header import INTERVENTION, StoreHeader
from robolearn.data.store import EpisodeStore


def stretches(human: Array, min_steps: int) -> list[tuple[int, int]]:
    """Return (first, stop) of every run of steps that a person drove and that is long enough; ``human`` is (t,)."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (np.asarray(human) > 0.5).astype(np.int8), [0]])))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if b - a >= min_steps]


class _Stretches:
    """Each stretch as an episode of its own; the policy's steps are what the person put right and are left out."""

    def __init__(self, store: EpisodeStore, min_steps: int) -> None:
        self._store = store
        self.notes: tuple[str, ...] = ()
        made = {"corrections": {"path": str(store.path), "checksum": store.checksum()}}
        self.header: StoreHeader = dataclasses.replace(store.header, provenance={**store.header.provenance, **made})
        self._places = [
            (index, first, stop)
            for index in range(len(store))
            for first, stop in stretches(store.read_rows(index, INTERVENTION, 0, int(store.lengths[index]))[:, 0], min_steps)
        ]

    def __len__(self) -> int:
        return len(self._places)

    def episode(self, index: int) -> Episode:
        at, first, stop = self._places[index]
        whole = self._store.read(at)
        data = {key: np.asarray(rows[slice(first, stop)]) for key, rows in whole.data.items()}
        # The seed's initial state is not where a stretch begins, unless it is the first.
        facts = {**whole.metadata, "corrects_episode": at, "from_step": first}
        return dataclasses.replace(whole, data=data, seed=whole.seed if first == 0 else None, metadata=facts)

    def close(self) -> None:
        self._store.close()


def corrections(path: Path, out: Path, *, min_steps: int = 2, on_step: Progress) -> Conversion:
    """Put every stretch that a person drove into a new store; it keeps its episode's outcome.

    Args:
        path: store of episodes with an ``intervention`` stream.
        out: new store.
        min_steps: shorter stretches are left out.
        on_step: progress.

    Raises:
        RefusedError: the store keeps no such stream, or nobody drove.
    """
    with EpisodeStore.open(path) as store:
        if INTERVENTION not in store.header.extra:
            raise RefusedError(f"{path} keeps no {INTERVENTION!r} stream: it does not say who drove.")
        source = _Stretches(store, max(1, min_steps))
        if not len(source):
            raise RefusedError(f"Nobody took over for {min_steps} steps or more in the {len(store)} episodes of {path}.")
        return import_episodes(source, out, on_step)
