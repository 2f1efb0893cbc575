"""One finished episode as an immutable zarr v3 group in a ZIP file: one array per stream, chunked along time only."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import zarr
from numcodecs import Blosc
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore, ZipStore

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array, Episode, FeatureSpec
from robolearn.data.disk import refusal

SYNC_BYTES = 1 << 26
"""After so many bytes what was written is synced: one sync of gigabytes at the end would hold up a recording under way."""
CHUNK_BYTES = 1 << 18
"""Raw bytes per chunk: a state stream is one chunk, an image stream a few frames, so windows decode little beside themselves."""


class Rows(Protocol):
    """A (t, ...) array in memory or on disk that can be sliced along time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Length first."""

    @property
    def dtype(self) -> np.dtype:
        """Element type."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return rows as a numpy array."""


def check_streams(data: Mapping[str, Rows], streams: Mapping[str, FeatureSpec], *, where: str) -> int:
    """Check an episode against the streams that its store keeps and return its length.

    Raises:
        RefusedError: a stream is missing, unknown, of another length, shape or dtype, or holds a non-finite number; the message
            names ``where``, the stream and the step.
    """
    missing, unknown = sorted(set(streams) - set(data)), sorted(set(data) - set(streams))
    if missing or unknown:
        raise RefusedError(
            f"{where}: streams {missing} are missing and {unknown} are unknown; the store keeps {sorted(streams)}."
        )
    lengths = {key: array.shape[0] if array.shape else 0 for key, array in data.items()}
    if len(set(lengths.values())) != 1:
        raise RefusedError(f"{where}: the streams differ in length: {lengths}.")
    for key, feature in streams.items():
        array = data[key]
        if array.shape[1:] != feature.shape:
            raise RefusedError(
                f"{where}: stream {key!r} has shape (t, *{array.shape[1:]}), the store keeps (t, *{feature.shape})."
            )
        if array.dtype != np.dtype(feature.dtype):
            raise RefusedError(f"{where}: stream {key!r} has dtype {array.dtype}, the store keeps {feature.dtype}.")
    length = next(iter(lengths.values()))
    if length == 0:
        raise RefusedError(f"{where}: the episode has no steps.")
    for key, feature in streams.items():
        check_finite(data[key], feature, where=f"{where}, stream {key!r}")
    return length


def check_finite(array: Rows, feature: FeatureSpec, *, where: str, first_step: int = 0) -> None:
    """Refuse NaN and infinity in a float stream, naming the first step and element."""
    if array.dtype.kind != "f":
        return
    for start, stop in _blocks(array):
        block = np.asarray(array[slice(start, stop)])
        if not np.isfinite(block).all():
            at = np.argwhere(~np.isfinite(block))[0]
            element = tuple(int(n) for n in at[1:])
            name = feature.names[element[0]] if feature.names else (element or "value")
            raise RefusedError(
                f"{where}, step {first_step + start + int(at[0])}: {name} is {block[tuple(at)]}; only finite numbers are kept."
            )


def content_sha256(data: Mapping[str, Rows], facts: Mapping[str, object]) -> str:
    """Return a hash of what an episode says, whatever the compression and the file around it."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, allow_nan=False).encode())
    for key in sorted(data):
        array = data[key]
        digest.update(json.dumps([key, array.dtype.str, list(array.shape)]).encode())
        for start, stop in _blocks(array):
            digest.update(np.ascontiguousarray(array[slice(start, stop)]).data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of every byte of ``path``."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_episode_file(path: Path, data: Mapping[str, Rows], attributes: Mapping[str, Any]) -> None:
    """Write and fsync an episode; the caller renames it to its final name.

    zarr makes the descriptions; the chunks are compressed here, in this thread. zarr hands every chunk to threads of its own,
    which compete with a recording under way and take twice as long.

    Raises:
        OSError: the disk is full or the folder cannot be written; ``path`` may be left incomplete.
    """
    descriptions: dict[str, Buffer] = {}
    group = zarr.create_group(MemoryStore(descriptions), attributes=dict(attributes), zarr_format=3)
    for key, array in data.items():
        chunks = (_rows_per_chunk(array), *array.shape[1:])
        group.create_array(key, shape=array.shape, dtype=array.dtype, chunks=chunks, compressors=BloscCodec(**_blosc(array)))
    archive = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
    try:
        for name, description in descriptions.items():
            archive.writestr(name, description.to_bytes())
        waiting = 0
        for key, array in data.items():
            for name, chunk in _chunks(array):
                archive.writestr(f"{key}/{name}", chunk)
                waiting += len(chunk)
                if waiting >= SYNC_BYTES:
                    _sync(path)
                    waiting = 0
        archive.close()
    except BaseException:
        # A ZIP that could not be written cannot be closed properly either; the first error is the one to report.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            archive.close()
        raise
    _sync(path)


def _chunks(array: Rows) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the compressed bytes of every chunk, as zarr v3 keeps them: the last one is padded with zeros."""
    found = _blosc(array)
    codec = Blosc(found["cname"], found["clevel"], Blosc.SHUFFLE if found["shuffle"] == "shuffle" else Blosc.NOSHUFFLE)
    rows, rest = _rows_per_chunk(array), "/0" * (len(array.shape) - 1)
    for number, start in enumerate(range(0, array.shape[0], rows)):
        block = np.ascontiguousarray(array[slice(start, start + rows)], dtype=array.dtype.newbyteorder("<"))
        if len(block) < rows:
            block = np.concatenate([block, np.zeros((rows - len(block), *block.shape[1:]), block.dtype)])
        yield f"c/{number}{rest}", bytes(codec.encode(block))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class EpisodeFile:
    """A finished episode, opened for reading; nothing but attributes is decoded before it is asked for."""

    def __init__(self, path: Path) -> None:
        """Open ``path``.

        Raises:
            RefusedError: the file is missing, truncated or not an episode.
        """
        self.path = path
        try:
            self._store = ZipStore(path, mode="r")
            self._group = zarr.open_group(self._store, mode="r", zarr_format=3, use_consolidated=False)
            self.attributes: dict[str, Any] = dict(self._group.attrs)
        except Exception as error:
            raise _damaged(path, error) from error
        self._arrays: dict[str, Rows] = {}

    def keys(self) -> list[str]:
        """Return the names of the streams in the file."""
        try:
            with warnings.catch_warnings(action="ignore"):  # zarr warns about what the caller is about to name as damage
                return sorted(self._group.array_keys())
        except Exception as error:
            raise _damaged(self.path, error) from error

    def stream(self, key: str) -> Rows:
        """Return the array of a stream, read lazily.

        Raises:
            RefusedError: there is no such stream or its description is damaged.
        """
        if key not in self._arrays:
            try:
                array = cast("zarr.Array", self._group[key])
            except KeyError as error:
                raise RefusedError(f"{self.path} has no stream {key!r}. It holds: {self.keys()}.") from error
            except Exception as error:
                raise _damaged(self.path, error) from error
            # By default zarr invents zeros for a chunk that is not there.
            self._arrays[key] = cast(Rows, array.with_config({"read_missing_chunks": False}))
        return self._arrays[key]

    def rows(self, key: str, start: int, stop: int) -> Array:
        """Return steps ``start`` to ``stop`` (exclusive) of a stream, decoding only the chunks that hold them.

        Raises:
            RefusedError: no such stream, or the file is damaged there.
        """
        array = self.stream(key)
        try:
            return np.asarray(array[slice(start, stop)])
        except Exception as error:
            raise _damaged(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._store.close()


def read_episode_file(file: EpisodeFile, keys: list[str]) -> Episode:
    """Decode whole streams of an episode into memory."""
    facts = file.attributes["episode"]
    data = {key: file.rows(key, 0, int(facts["length"])) for key in keys}
    return Episode(data, success=bool(facts["success"]), seed=facts["seed"], metadata=dict(facts["metadata"]))


def _damaged(path: Path, error: Exception) -> RefusedError:
    if isinstance(error, OSError):
        return refusal(error, f"Cannot read episode file {path}")
    reason = str(error) or type(error).__name__
    return RefusedError(f"Episode file {path} is damaged: {reason}. `robolearn data verify` names all damage, `repair` mends it.")


def _blosc(array: Rows) -> dict[str, Any]:
    """Return how a stream is compressed.

    Pictures of a camera have noise in them: level 3 then takes five times as long as level 1 for files an eighth smaller,
    which is too slow to keep up with four cameras (docs/results/data.md).
    """
    if array.dtype.itemsize == 1:
        return {"cname": "zstd", "clevel": 1, "shuffle": "noshuffle"}
    return {"cname": "zstd", "clevel": 3, "shuffle": "shuffle"}


def _rows_per_chunk(array: Rows) -> int:
    row_bytes = max(1, int(np.prod(array.shape[1:], dtype=np.int64)) * array.dtype.itemsize)
    return max(1, min(array.shape[0], CHUNK_BYTES // row_bytes))


def _blocks(array: Rows) -> list[tuple[int, int]]:
    """Return the (start, stop) of every chunk, so that long streams pass through memory piece by piece."""
    rows = _rows_per_chunk(array)
    return [(start, min(start + rows, array.shape[0])) for start in range(0, array.shape[0], rows)]
