"""New stores from old ones: merge, split, filter, trim, relabel. Nothing is changed in place and nothing is overwritten."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.seeding import generator
from robolearn.core.types import ACTION, Episode
from robolearn.data.convert import Conversion, Progress, import_episodes
from robolearn.data.formats.exchange import EpisodeSource, StoreSource
from robolearn.data.header import StoreHeader
from robolearn.data.store import EpisodeStore

FACTS = ("success", "seed", "length", "number")
"""What :meth:`EpisodeStore.metadata` adds to an episode's own metadata."""


@dataclass(frozen=True)
class Condition:
    """One test of an episode's facts, such as ``success=true``, ``length<=80`` or ``operator=ada``."""

    name: str
    operator: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``name OP value`` with OP one of ``<= >= != = < >``.

        Raises:
            RefusedError: there is no operator, or no name.
        """
        for operator in ("<=", ">=", "!=", "=", "<", ">"):
            name, found, value = text.partition(operator)
            if found and name.strip():
                return cls(name.strip(), operator, value.strip())
        raise RefusedError(f"Condition {text!r} has no operator; write name=value, !=, <, <=, > or >=.")

    def holds(self, facts: dict[str, Any]) -> bool:
        """Return whether the test is passed; an episode that lacks the fact passes ``!=`` alone.

        Raises:
            RefusedError: an order is asked of something that is no number.
        """
        if self.name not in facts:
            return self.operator == "!="
        found = facts[self.name]
        if self.operator in ("=", "!="):
            return (_text(found) == self.value.lower()) == (self.operator == "=")
        try:
            left, right = float(found), float(self.value)
        except (TypeError, ValueError) as error:
            raise RefusedError(f"{self.name}={found!r} cannot be ordered against {self.value!r}.") from error
        return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[self.operator]


def _text(value: Any) -> str:
    return str(value).lower()


class _Derived:
    """The episodes of a store, each changed by a function."""

    def __init__(self, source: EpisodeSource, header: StoreHeader, change: Callable[[Episode, int], Episode]) -> None:
        self._source, self.header, self._change = source, header, change
        self.notes: tuple[str, ...] = source.notes

    def __len__(self) -> int:
        return len(self._source)

    def episode(self, index: int) -> Episode:
        return self._change(self._source.episode(index), index)

    def close(self) -> None:
        self._source.close()


class _Joined:
    """The episodes of several sources of one header."""

    def __init__(self, sources: Sequence[EpisodeSource]) -> None:
        self.header = sources[0].header
        self.notes: tuple[str, ...] = ()
        self._sources = sources
        self._ends = np.cumsum([len(s) for s in sources])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def episode(self, index: int) -> Episode:
        which = int(np.searchsorted(self._ends, index, side="right"))
        return self._sources[which].episode(index - (int(self._ends[which - 1]) if which else 0))

    def close(self) -> None:
        for source in self._sources:
            source.close()


def merge(paths: Sequence[Path], out: Path, on_step: Progress, *, common: bool = False) -> Conversion:
    """Put the episodes of several stores, in order, into a new one.

    Args:
        paths: stores.
        out: new store.
        on_step: progress.
        common: keep the streams that all of them have, and say which are left out; otherwise all must have the same.

    Raises:
        RefusedError: fewer than two stores, the same one twice, or they differ in task, spaces, rate, fidelity or streams.
    """
    if len(paths) < 2:
        raise RefusedError("Two stores at least are needed to merge.")
    if len({p.resolve() for p in paths}) != len(paths):
        raise RefusedError("The same store is named twice; its episodes would count double.")
    stores = [EpisodeStore.open(p) for p in paths]
    headers = [_with_streams(s.header, _common_streams(stores) if common else set(s.header.streams)) for s in stores]
    for store, header in zip(stores[1:], headers[1:], strict=True):
        try:
            headers[0].require_same(header, what=f"{stores[0].path}")
        except RefusedError as error:
            hint = (
                "" if common or set(header.streams) == set(headers[0].streams) else " --common keeps the streams that all have."
            )
            raise RefusedError(f"{error} ({store.path}){hint}") from error
    made = {"merged": [{"path": str(s.path), "checksum": s.checksum()} for s in stores]}
    header = dataclasses.replace(headers[0], provenance={**headers[0].provenance, **made})
    left_out = sorted({key for s in stores for key in s.header.streams} - set(header.streams))

    def keep(episode: Episode, _: int) -> Episode:
        return dataclasses.replace(episode, data={key: episode.data[key] for key in header.streams})

    joined = _Derived(_Joined([StoreSource(s) for s in stores]), header, keep)
    joined.notes = (f"streams that not all stores keep were left out: {', '.join(left_out)}",) if left_out else ()
    return import_episodes(joined, out, on_step)


def _common_streams(stores: Sequence[EpisodeStore]) -> set[str]:
    return set.intersection(*(set(s.header.streams) for s in stores))


def _with_streams(header: StoreHeader, kept: set[str]) -> StoreHeader:
    """Return a header of fewer streams."""
    observation = {key: feature for key, feature in header.spaces.observation.items() if key in kept}
    spaces = dataclasses.replace(header.spaces, observation=observation)
    extra = {key: feature for key, feature in header.extra.items() if key in kept}
    return dataclasses.replace(header, spaces=spaces, extra=extra)


def split(path: Path, outs: Sequence[Path], fractions: Sequence[float], *, seed: int, on_step: Progress) -> list[Conversion]:
    """Deal whole episodes out to new stores at random; every episode goes to exactly one.

    Raises:
        RefusedError: the fractions are not positive or do not sum to 1, or a part would be empty.
    """
    if len(outs) != len(fractions) or len(outs) < 2 or min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise RefusedError(f"{len(outs)} stores and fractions {list(fractions)}: two or more of each are needed, which sum to 1.")
    with EpisodeStore.open(path) as store:
        order = generator(seed, "split stores").permutation(len(store))
        ends = np.rint(np.cumsum(fractions) * len(store)).astype(int)
        parts = [sorted(part.tolist()) for part in np.split(order, ends[:-1])]
        if not all(parts):
            raise RefusedError(f"{len(store)} episodes cannot be split by {list(fractions)}: a part would be empty.")
        for out in outs:
            if out.exists():
                raise RefusedError(f"{out} exists; nothing is overwritten.")
        return [import_episodes(_chosen(store, part, "split"), out, on_step) for part, out in zip(parts, outs, strict=True)]


def select(
    path: Path, out: Path, conditions: Sequence[Condition], *, episodes: Sequence[int] | None, on_step: Progress
) -> Conversion:
    """Keep the episodes that pass every condition, and of these the numbered positions if some are given.

    Raises:
        RefusedError: none passes, no episode has the fact that is asked for, or there is no such position.
    """
    with EpisodeStore.open(path) as store:
        facts = [store.metadata(i) for i in range(len(store))]
        known = {name for f in facts for name in f}
        for condition in conditions:
            if condition.name not in known:
                raise RefusedError(f"No episode of {path} has a fact {condition.name!r}. {nearest(condition.name, known)}")
        kept = [i for i, f in enumerate(facts) if all(c.holds(f) for c in conditions)]
        if episodes is not None:
            beyond = [i for i in episodes if not 0 <= i < len(store)]
            if beyond:
                raise RefusedError(f"{path} has no episode {beyond[0]}; it holds {len(store)}, counted from 0.")
            kept = [i for i in kept if i in set(episodes)]
        if not kept:
            raise RefusedError(f"No episode of {path} passes.")
        return import_episodes(_chosen(store, kept, "filter"), out, on_step)


def trim(path: Path, out: Path, *, start: int = 0, end: int = 0, idle: float | None = None, on_step: Progress) -> Conversion:
    """Cut steps off both ends of every episode: fixed numbers, or (``idle``) those at which nothing is commanded to move.

    Args:
        path: store.
        out: new store.
        start: steps cut off the beginning.
        end: steps cut off the end.
        idle: cut leading and trailing steps whose action differs from the one before by at most this, in every element.
        on_step: progress.

    Raises:
        RefusedError: an episode would be left without steps; it is named.
    """
    if start < 0 or end < 0 or (idle is not None and not idle >= 0):
        raise RefusedError(f"{start=}, {end=} and {idle=} must not be negative.")

    def cut(episode: Episode, index: int) -> Episode:
        first, stop = start, len(episode) - end
        if idle is not None and stop > first:
            a, b = _moving(np.asarray(episode.data[ACTION][slice(first, stop)]), idle)
            first, stop = first + a, first + b
        if stop <= first:
            raise RefusedError(f"Episode {index} of {path} ({len(episode)} steps) would be left without steps.")
        data = {key: np.asarray(rows[slice(first, stop)]) for key, rows in episode.data.items()}
        # The seed's initial state is not where the episode begins any more, unless its first step is kept.
        seed = episode.seed if first == 0 else None
        facts = {**episode.metadata, "trimmed": [first, len(episode) - stop]}
        return dataclasses.replace(episode, data=data, seed=seed, metadata=facts)

    with EpisodeStore.open(path) as store:
        source = _chosen(store, range(len(store)), "trim")
        return import_episodes(_Derived(source, source.header, cut), out, on_step)


def _moving(actions: np.ndarray, tolerance: float) -> tuple[int, int]:
    """Return (first, stop) of the steps between the first and the last change of the action."""
    changes = np.flatnonzero((np.abs(np.diff(actions, axis=0)) > tolerance).any(1))
    return (int(changes[0]), int(changes[-1]) + 2) if len(changes) else (0, 0)


def relabel(
    path: Path, out: Path, labels: Sequence[str], *, episodes: Sequence[int] | None, task: str | None, on_step: Progress
) -> Conversion:
    """Give episodes other facts: ``success=true``, ``operator=ada``, ``note=`` (which removes it); and the whole another task.

    Raises:
        RefusedError: a label is no ``name=value``, names a fact that is measured (length, seed, number), or an outcome
        contradicts.
    """
    changes = dict(_label(text) for text in labels)
    if not changes and task is None:
        raise RefusedError("There is nothing to relabel; give name=value or --task.")

    def change(episode: Episode, index: int) -> Episode:
        metadata = {k: v for k, v in episode.metadata.items() if k != "task"}
        if episodes is not None and index not in set(episodes):
            return dataclasses.replace(episode, metadata=metadata)
        success = changes.get("success", episode.success)
        facts = {k: v for k, v in changes.items() if k != "success"}
        if success != episode.success and "outcome" not in facts:
            facts["outcome"] = "success" if success else "failure"
        if facts.get("outcome") == ("failure" if success else "success"):
            raise RefusedError(f"Episode {index} of {path}: outcome={facts['outcome']} contradicts {success=}; label both.")
        metadata = {k: v for k, v in {**metadata, **facts}.items() if v != ""}
        return dataclasses.replace(episode, success=success, metadata=metadata)

    with EpisodeStore.open(path) as store:
        beyond = [i for i in episodes or () if not 0 <= i < len(store)]
        if beyond:
            raise RefusedError(f"{path} has no episode {beyond[0]}; it holds {len(store)}, counted from 0.")
        source = _chosen(store, range(len(store)), "relabel")
        header = dataclasses.replace(source.header, task=task) if task else source.header
        return import_episodes(_Derived(source, header, change), out, on_step)


def _label(text: str) -> tuple[str, Any]:
    name, found, value = text.partition("=")
    if not found or not name:
        raise RefusedError(f"Label {text!r} is no name=value.")
    if name in ("length", "number", "seed", "task"):
        raise RefusedError(f"{name} cannot be relabelled episode by episode.")
    if name == "success":
        if value not in ("true", "false"):
            raise RefusedError(f"success={value!r} must be true or false.")
        return name, value == "true"
    return name, value


def _chosen(store: EpisodeStore, indices: Sequence[int], why: str) -> EpisodeSource:
    """Return chosen episodes of a store whose provenance says where they are from."""
    made = {why: {"path": str(store.path), "checksum": store.checksum()}}
    header = dataclasses.replace(store.header, provenance={**store.header.provenance, **made})
    return _Derived(StoreSource(store, list(indices)), header, lambda episode, _: episode)
