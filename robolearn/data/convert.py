"""Conversion between the episode store and the formats of other programs: streamed, verified, and nothing is overwritten.

What is written lies under another name until it was read back and compared, element by element; only then it gets its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array, Episode, is_image
from robolearn.data.disk import refusal
from robolearn.data.episode_file import Rows
from robolearn.data.formats.exchange import (
    EpisodeSource,
    ExportOptions,
    Format,
    ImportOptions,
    OnEpisode,
    StoreSource,
    last_value,
    pieces,
    required,
    told_success,
)
from robolearn.data.header import REWARD, StoreHeader
from robolearn.data.store import EpisodeStore

STORE = "store"
"""Name of our own format among the others."""
LOSSY_MEAN_ERROR = 12.0
"""Grey levels by which the pictures of a video may differ from the recorded ones, on average over an episode."""

type Progress = Callable[[str, int], None]
"""(phase, steps done in it since the last call)."""


@dataclass(frozen=True)
class Conversion:
    """Result of :func:`convert`."""

    path: Path
    episodes: int
    steps: int
    notes: tuple[str, ...]
    """What the source holds and the target cannot, what was assumed, and what only robolearn will see."""
    lossless: bool
    """Whether every stream was read back bit for bit."""


def find_format(known: Mapping[str, Format], path: Path, name: str | None) -> Format | None:
    """Return the format called ``name``, or the one that ``path`` looks like; None stands for the episode store.

    Raises:
        RefusedError: there is nothing at ``path``, no such format, or it looks like none or several.
    """
    names = [STORE, *known]
    if name is not None and name not in names:
        raise RefusedError(f"Format {name!r} is unknown. {nearest(name, names)}")
    if not path.exists():
        raise RefusedError(f"There is nothing at {path}.")
    if name is not None:
        return known.get(name)
    if (path / "store.json").is_file():
        return None
    try:
        fitting = [form for form in known.values() if form.sniff(path)]
    except OSError as error:
        raise refusal(error, f"Cannot look at {path}") from error
    if len(fitting) != 1:
        looks = " and ".join(f.NAME for f in fitting) or "no format that is known"
        raise RefusedError(f"{path} looks like {looks}; name it with --from. Known: {', '.join(names)}.")
    return fitting[0]


def open_any(known: Mapping[str, Format], path: Path, name: str | None, options: ImportOptions) -> EpisodeSource:
    """Open episodes of any format for reading.

    Raises:
        RefusedError: the file contradicts ``options``, or see :func:`find_format` and the format's ``open_source``.
    """
    form = find_format(known, path, name)
    try:
        source = form.open_source(path, options) if form else StoreSource(EpisodeStore.open(path))
    except OSError as error:
        raise refusal(error, f"Cannot read {path}") from error
    try:
        _require_as_said(source.header, options, where=str(path))
    except RefusedError:
        source.close()
        raise
    return _AsSaid(source, options.success, str(path)) if options.success else source


def _require_as_said(header: StoreHeader, options: ImportOptions, *, where: str) -> None:
    """Refuse what the caller said of a file that says otherwise itself."""
    found = {"robot": header.spaces.robot, "control_rate_hz": header.spaces.control_rate_hz}
    for name, value in {"task": header.task, "fidelity": header.fidelity, **found}.items():
        if getattr(options, name) is not None:
            required(getattr(options, name), value, name=name, where=where)


class _AsSaid:
    """Episodes that are refused where their file contradicts what the caller said of their outcome."""

    def __init__(self, source: EpisodeSource, success: str, where: str) -> None:
        self._source, self._success, self._where = source, success, where
        self.header = source.header

    @property
    def notes(self) -> tuple[str, ...]:
        return self._source.notes

    def __len__(self) -> int:
        return len(self._source)

    def episode(self, index: int) -> Episode:
        episode = self._source.episode(index)
        said = told_success(self._success, last_value(episode.data.get(REWARD)), where=self._where)
        if episode.success != said:
            raise RefusedError(
                f"{self._where} says success {episode.success} of episode {index}; --success {self._success} contradicts it."
            )
        return episode

    def close(self) -> None:
        self._source.close()


def import_episodes(source: EpisodeSource, path: Path, on_step: Progress) -> Conversion:
    """Write all episodes of ``source`` into a new store at ``path`` and compare what was written.

    Raises:
        RefusedError: ``path`` exists, an episode does not fit, is empty or not finite, or the copy differs; nothing is
        left behind.
    """
    if not len(source):
        raise RefusedError("The source holds no episode.")
    with _Making(path) as temporary:
        header = source.header
        with EpisodeStore.create(
            temporary, header.spaces, task=header.task, fidelity=header.fidelity, extra=header.extra, provenance=header.provenance
        ) as store:
            for index in range(len(source)):
                episode = source.episode(index)
                store.append(episode)
                on_step("write", len(episode))
        steps = _compare(source, StoreSource(EpisodeStore.open(temporary)), on_step, lossy=False)
    return Conversion(path, len(source), steps, source.notes, lossless=True)


def export_episodes(source: EpisodeSource, form: Format, path: Path, options: ExportOptions, on_step: Progress) -> Conversion:
    """Write all episodes into a new file or folder of another format and compare what was written.

    Raises:
        RefusedError: ``path`` exists, the format cannot hold a stream, or the copy differs; nothing is left behind.
    """
    if not len(source):
        raise RefusedError("The source holds no episode.")
    said = tuple(form.losses(source.header, options))
    lossy = options.images == "video" and form.NAME == "lerobot" and any(is_image(k) for k in source.header.streams)
    with _Making(path) as temporary:
        on_episode: OnEpisode = lambda steps: on_step("write", steps)  # noqa: E731 - a closure with the phase filled in
        form.write(source, temporary, options, on_episode)
        copy = form.open_source(temporary, ImportOptions())
        steps = _compare(source, copy, on_step, lossy=lossy)
    return Conversion(path, len(source), steps, source.notes + said, lossless=not lossy)


class _Making:
    """A new path that is complete or absent."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists() or path.is_symlink():
            raise RefusedError(f"{path} exists; nothing is overwritten. Name another place.")
        # The suffix stays: formats tell a ZIP from a folder by it.
        self._temporary = path.with_name(f".making.{path.name}")
        if self._temporary.exists():
            raise RefusedError(
                f"{self._temporary} is left of a conversion that was killed, or one is under way; remove it first."
            )

    def __enter__(self) -> Path:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise refusal(error, f"Cannot create {self._path.parent}") from error
        return self._temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None:
            self._temporary.rename(self._path)
            return
        if self._temporary.is_dir():
            shutil.rmtree(self._temporary, ignore_errors=True)
        else:
            self._temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise refusal(error, f"{self._path} was not written") from error


def _compare(source: EpisodeSource, copy: EpisodeSource, on_step: Progress, *, lossy: bool) -> int:
    """Return the number of steps after comparing everything; ``lossy`` lets pictures differ a little."""
    try:
        if len(copy) != len(source):
            raise RefusedError(f"{len(copy)} of {len(source)} episodes can be read back.")
        _require_same_header(source.header, copy.header)
        steps = 0
        for index in range(len(source)):
            ours, theirs = source.episode(index), copy.episode(index)
            _compare_episode(ours, theirs, index, lossy=lossy)
            steps += len(ours)
            on_step("verify", len(ours))
        return steps
    finally:
        copy.close()


def _require_same_header(ours: StoreHeader, theirs: StoreHeader) -> None:
    theirs.require_same(ours, what="What was read back")


def _compare_episode(ours: Episode, theirs: Episode, index: int, *, lossy: bool) -> None:
    facts = [(e.success, e.seed, {k: v for k, v in e.metadata.items() if k != "outcome"}) for e in (ours, theirs)]
    if _plain(facts[0]) != _plain(facts[1]):
        raise RefusedError(f"Episode {index} is described as {facts[0]} and was read back as {facts[1]}.")
    for key, rows in ours.data.items():
        mine, back = cast(Rows, rows), cast(Rows, theirs.data[key])
        if mine.shape != back.shape or mine.dtype != back.dtype:
            raise RefusedError(f"Episode {index}, {key}: {mine.shape} {mine.dtype} was read back as {back.shape} {back.dtype}.")
        start = 0
        for block in pieces(mine):
            again = np.asarray(back[slice(start, start + len(block))])
            if lossy and is_image(key):
                _require_similar(block, again, f"Episode {index}, {key}")
            elif block.tobytes() != again.tobytes():
                raise RefusedError(f"Episode {index}, {key}: what was read back differs from what was written.")
            start += len(block)


def _require_similar(block: Array, again: Array, where: str) -> None:
    error = float(np.abs(block.astype(np.int16) - again.astype(np.int16)).mean())
    if error > LOSSY_MEAN_ERROR:
        raise RefusedError(
            f"{where}: pictures differ by {error:.1f} grey levels on average after the video; {LOSSY_MEAN_ERROR} is allowed."
        )


def _plain(facts: Any) -> str:
    import json

    return json.dumps(facts, sort_keys=True)
