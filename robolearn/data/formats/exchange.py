"""What every exchange format has in common: sources of episodes, the options of both directions, and the sidecar.

A format is one module beside this one with ``NAME``, ``SUMMARY``, ``sniff``, ``open_source``, ``write`` and ``losses``; see
:mod:`robolearn.data.formats`. Facts that a format has no place for (bounds, task, outcome, seed, ...) travel in a *sidecar*: JSON
in a place of that format which foreign readers pass over. With it a round trip is lossless; without it the file is a
stranger's, and
what it does not say must be said by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, IMAGES_PREFIX, Array, Episode, FeatureSpec, Spaces, is_image
from robolearn.data.episode_file import Rows
from robolearn.data.header import StoreHeader
from robolearn.data.json_file import parse_json
from robolearn.data.store import EpisodeStore

SIDECAR, SIDECAR_VERSION = "robolearn-exchange", 1
MAX_EXPANSION = 5000
"""No compressor shrinks recorded streams further; a header that claims more is not believed."""
FREE_BYTES = 1 << 28
"""So much raw data is believed whatever the file's size."""


@dataclass(frozen=True)
class ImportOptions:
    """What a stranger's file may leave unsaid. A value that contradicts the file is refused."""

    task: str | None = None
    """Task of the episodes."""
    robot: str | None = None
    """Embodiment, such as ``panda``."""
    control_rate_hz: float | None = None
    """Steps per second."""
    fidelity: str | None = None
    """How the world was simulated, or ``real``."""
    success: Literal["yes", "no", "reward"] | None = None
    """Whether the episodes solved the task; ``reward`` says so where the last reward is positive."""
    contract: Path | None = None
    """Streams and parts of a bag, see ``docs/formats.md``."""


@dataclass(frozen=True)
class ExportOptions:
    """How files are written."""

    images: Literal["png", "video"] = "png"
    """LeRobot: lossless pictures, or video, which is smaller and lossy."""
    codec: str = "h264"
    """LeRobot: video codec, as lerobot names it."""
    compressor: str = "zstd"
    """Zarr and HDF5: blosc codec of the former; anything but ``none`` is gzip for the latter."""

    @classmethod
    def checked(cls, images: str, codec: str, compressor: str) -> ExportOptions:
        """Return options from text.

        Raises:
            RefusedError: ``images`` is neither png nor video.
        """
        if images not in ("png", "video"):
            raise RefusedError(f"images {images!r} is unknown. Allowed: png, video.")
        return cls(cast("Literal['png', 'video']", images), codec, compressor)


class EpisodeSource(Protocol):
    """Episodes of one header that are read one at a time; their streams may be lazy arrays that only slice along time."""

    @property
    def header(self) -> StoreHeader:
        """What all episodes share."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the file holds and the store cannot, and what was assumed."""

    def __len__(self) -> int:
        """Return the number of episodes."""

    def episode(self, index: int) -> Episode:
        """Return an episode; its data are readable until :meth:`close`."""

    def close(self) -> None:
        """Free the file."""


type OnEpisode = Callable[[int], None]
"""Called after each written episode with its number of steps."""


class Format(Protocol):
    """The module of a format."""

    NAME: str
    SUMMARY: str

    def sniff(self, path: Path) -> bool:
        """Return whether ``path`` looks like this format; never raises for what it finds."""

    def open_source(self, path: Path, options: ImportOptions) -> EpisodeSource:
        """Open a file for reading; refuse it by name."""

    def write(self, source: EpisodeSource, path: Path, options: ExportOptions, on_episode: OnEpisode) -> None:
        """Write all episodes to the new ``path``."""

    def losses(self, header: StoreHeader, options: ExportOptions) -> list[str]:
        """Return what this format keeps only in the sidecar, changes or cannot hold, one sentence each."""


def as_format(module: ModuleType) -> Format:
    """Return a format's module under its type."""
    return cast(Format, module)


class StoreSource:
    """The episodes of a store, their streams read piece by piece."""

    def __init__(self, store: EpisodeStore, indices: Sequence[int] | None = None) -> None:
        self.store = store
        self.header = store.header
        self.notes: tuple[str, ...] = ()
        self._indices = list(range(len(store))) if indices is None else list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def episode(self, index: int) -> Episode:
        """Return an episode with lazy streams."""
        position = self._indices[index]
        facts = self.store.metadata(position)
        own = {name: facts.pop(name) for name in ("seed", "success", "length", "number")}
        streams = {key: StoreRows(self.store, position, key, own["length"], spec) for key, spec in self.header.streams.items()}
        return Episode(cast("dict[str, Array]", streams), own["success"], own["seed"], facts)

    def close(self) -> None:
        """Close the store."""
        self.store.close()


@dataclass(frozen=True)
class StoreRows:
    """A stream of a stored episode."""

    store: EpisodeStore
    index: int
    key: str
    length: int
    spec: FeatureSpec

    @property
    def shape(self) -> tuple[int, ...]:
        """(t, ...)."""
        return (self.length, *self.spec.shape)

    @property
    def dtype(self) -> np.dtype:
        """Element type."""
        return np.dtype(self.spec.dtype)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: slice) -> Array:
        start, stop, _ = rows.indices(self.length)
        return self.store.read_rows(self.index, self.key, start, stop)


@dataclass(frozen=True, eq=False)
class Slice:
    """Rows ``start`` to ``start + length`` of a longer array (HDF5, zarr), given in another shape and type on the way."""

    source: Any
    start: int
    length: int
    row_shape: tuple[int, ...]
    dtype: np.dtype
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(t, ...)."""
        return (self.length, *self.row_shape)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, rows: slice) -> Array:
        begin, end, _ = rows.indices(self.length)
        try:
            found = np.asarray(self.source[self.start + begin : self.start + end])
        except Exception as error:
            raise RefusedError(f"{self.where} is damaged: {str(error) or type(error).__name__}.") from error
        if found.shape[0] != end - begin:
            raise RefusedError(f"{self.where} is truncated: {found.shape[0]} of {end - begin} rows could be read.")
        return found.reshape(end - begin, *self.row_shape).astype(self.dtype, copy=False)


def pieces(rows: Rows, size: int = 1 << 24) -> Iterator[Array]:
    """Yield consecutive blocks of about ``size`` bytes, so that no stream is in memory whole."""
    step = max(1, size // max(1, int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.dtype.itemsize))
    for start in range(0, rows.shape[0], step):
        yield np.asarray(rows[slice(start, min(start + step, rows.shape[0]))])


def facts_of(episode: Episode) -> dict[str, Any]:
    """Return what is known of an episode beside its streams, as JSON."""
    return {"success": bool(episode.success), "seed": episode.seed, "metadata": dict(episode.metadata)}


def seal_sidecar(header: StoreHeader, episodes: Sequence[Mapping[str, Any]]) -> str:
    """Return the sidecar: everything but the streams themselves."""
    return json.dumps(
        {"format": SIDECAR, "version": SIDECAR_VERSION, "store": header.to_json(), "episodes": list(episodes)}, allow_nan=False
    )


def unseal_sidecar(text: str | bytes, *, where: str) -> tuple[StoreHeader, list[dict[str, Any]]]:
    """Read :func:`seal_sidecar`.

    Raises:
        RefusedError: damaged, or of another version.
    """
    body = parse_json(text, where=where)
    if body.get("format") != SIDECAR or body.get("version") != SIDECAR_VERSION:
        raise RefusedError(
            f"{where} says format {body.get('format')!r} version {body.get('version')!r}; "
            f"this program reads {SIDECAR!r} version {SIDECAR_VERSION}."
        )
    try:
        header = StoreHeader.from_json(body["store"])
        episodes = [
            {
                "success": bool(e["success"]),
                "seed": None if e["seed"] is None else int(e["seed"]),
                "metadata": dict(e["metadata"]),
            }
            for e in body["episodes"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RefusedError(f"{where} is damaged: {error!r}.") from error
    for key, spec in header.streams.items():
        if any(n < 0 for n in spec.shape):
            raise RefusedError(f"{where}: stream {key!r} has the impossible shape {spec.shape}.")
    return header, episodes


def give_name(names: dict[str, str], key: str, name: str, *, where: str) -> None:
    """Note in ``names`` that a stream is read from ``name``.

    Raises:
        RefusedError: another one of the file would become the same stream.
    """
    if key in names:
        raise RefusedError(f"{where}: {names[key]!r} and {name!r} would both become the stream {key!r}; rename one of them.")
    names[key] = name


def inside(root: Path, path: Path) -> Path:
    """Return ``path`` if it stays within ``root`` once every link is followed.

    Raises:
        RefusedError: it leads out.
    """
    try:
        resolved, top = path.resolve(), root.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise RefusedError(f"{path} cannot be followed: {error}.") from error
    if not resolved.is_relative_to(top):
        raise RefusedError(f"{path} leads out of {root}, to {resolved}; files outside of a data set are not read.")
    return path


def require_plausible(raw_bytes: int, file_bytes: int, *, where: str) -> None:
    """Refuse a header that claims more data than the file can hold.

    Raises:
        RefusedError: names both sizes.
    """
    if raw_bytes > FREE_BYTES + MAX_EXPANSION * file_bytes:
        raise RefusedError(f"{where} claims {raw_bytes} bytes of data in a file of {file_bytes} bytes; it is damaged or hostile.")


def plain_name(key: str) -> str:
    """Return a stream's name without dots for formats of other programs: ``state``, ``agentview_image``, ``action_sent``."""
    if is_image(key):
        return key.removeprefix(IMAGES_PREFIX) + "_image"
    return key.removeprefix("observation.").replace(".", "_")


def plain_names(header: StoreHeader) -> dict[str, str]:
    """Return stream -> plain name.

    Raises:
        RefusedError: two streams would share a name.
    """
    names: dict[str, str] = {}
    for key in header.streams:
        name = plain_name(key)
        if name in names.values():
            other = next(k for k, n in names.items() if n == name)
            raise RefusedError(f"Streams {other!r} and {key!r} would both be called {name!r} in this format.")
        names[key] = name
    return names


def length_of(episode: Episode, *, where: str) -> int:
    """Return an episode's length.

    Raises:
        RefusedError: it has no steps.
    """
    length = int(episode.data[ACTION].shape[0])
    if length < 1:
        raise RefusedError(f"{where}: the episode has no steps.")
    return length


def last_value(rows: Array | None) -> float | None:
    """Return the last number of a stream, if there is one."""
    return None if rows is None else float(np.ravel(rows[slice(len(rows) - 1, len(rows))])[-1])


def required(value: object | None, found: object | None, *, name: str, where: str) -> Any:
    """Return what the caller said or the file says.

    Raises:
        RefusedError: neither says it, or they differ.
    """
    if value is not None and found is not None and value != found:
        raise RefusedError(f"{where} says {name} {found!r}, but {value!r} is asked for.")
    chosen = value if value is not None else found
    if chosen is None or chosen == "":
        option = {"control_rate_hz": "rate"}.get(name, name)
        raise RefusedError(f"{where} does not say its {name}; name it with --{option}.")
    return chosen


def bounded_spaces(spaces: Spaces, actions: Iterator[Array], *, where: str) -> Spaces:
    """Return ``spaces`` with the least and largest actions of the data as bounds, for files that know no bounds.

    Raises:
        RefusedError: an action is not finite.
    """
    low, high = np.full(spaces.action.shape, np.inf), np.full(spaces.action.shape, -np.inf)
    for block in actions:
        if not np.isfinite(block).all():
            raise RefusedError(f"{where}: an action is not finite; only finite numbers are kept.")
        low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
    return Spaces(
        spaces.robot,
        spaces.observation,
        spaces.action,
        tuple(float(x) for x in low),
        tuple(float(x) for x in high),
        spaces.control_rate_hz,
    )


def told_success(option: str | None, last_reward: float | None, *, where: str) -> bool:
    """Return whether an episode solved the task, as the caller decided for a file that does not say.

    Raises:
        RefusedError: nobody decided, or there are no rewards to decide by.
    """
    if option is None:
        raise RefusedError(f"{where} does not say whether its episodes solved the task; say --success yes, no or reward.")
    if option != "reward":
        return option == "yes"
    if last_reward is None:
        raise RefusedError(f"{where} has no rewards, so --success reward cannot be told.")
    return last_reward > 0
