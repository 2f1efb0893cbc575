"""diffusion_policy's zarr replay buffer: a folder or the same tree in a ZIP (``.zarr.zip``), zarr format 2.

    data/<key>            all episodes end to end, (T, ...)
    meta/episode_ends     (n,) int64, exclusive ends of the episodes

The files are checked chunk by chunk before zarr opens them: a missing or short chunk, an unknown codec, an object dtype,
a filter, a
link or a name that leads out of the folder is refused by name. Nothing is ever unpickled.
"""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, IMAGES_PREFIX, Array, Episode, FeatureSpec, Spaces
from robolearn.data.episode_file import Rows
from robolearn.data.formats import exchange
from robolearn.data.formats.exchange import EpisodeSource, ExportOptions, ImportOptions, OnEpisode, Slice
from robolearn.data.formats.tree_files import FolderFiles, TreeFiles, ZipFiles
from robolearn.data.header import REWARD, StoreHeader
from robolearn.data.json_file import MAX_JSON_BYTES, parse_json

NAME = "zarr"
SUMMARY = "diffusion_policy's zarr replay buffer (folder or .zarr.zip)"

CODECS = ("blosc", "zlib", "gzip", "bz2", "lzma", "lz4", "zstd")
BLOSC_NAMES = ("zstd", "lz4", "lz4hc", "blosclz", "zlib")
_BLOSC_HEADER = struct.Struct("<BBBBIII")
_SIDECAR = ".robolearn.json"
_CHUNK_BYTES = 1 << 21


def sniff(path: Path) -> bool:
    """Return whether there is a ``data`` and a ``meta`` group."""
    if path.is_dir():
        return (path / "meta" / "episode_ends").is_dir() or (path / ".zgroup").is_file()
    return path.is_file() and zipfile.is_zipfile(path) and path.suffixes[-2:] == [".zarr", ".zip"]


def losses(header: StoreHeader, options: ExportOptions) -> list[str]:
    """Return what other programs do not see in the file."""
    return [
        "bounds of the actions, element names, control rate, robot, task, fidelity, seeds, outcomes and "
        "metadata have no place in "
        f"a replay buffer; they are kept in {_SIDECAR} (folder) or in that member (ZIP), which only robolearn reads"
    ]


def write(source: EpisodeSource, path: Path, options: ExportOptions, on_episode: OnEpisode) -> None:
    """Write all episodes end to end; a name that ends in ``.zip`` makes a ZIP.

    Raises:
        RefusedError: an unknown compressor, two streams of one name, or the disk is full.
    """
    import numcodecs
    import zarr
    from zarr.storage import LocalStore, ZipStore

    if options.compressor not in (*BLOSC_NAMES, "none"):
        raise RefusedError(f"compressor {options.compressor!r} is unknown. Allowed: {', '.join(BLOSC_NAMES)}, none.")
    codec = None if options.compressor == "none" else numcodecs.Blosc(options.compressor, 5, numcodecs.Blosc.SHUFFLE)
    names = exchange.plain_names(source.header)
    lengths = [exchange.length_of(source.episode(i), where=f"episode {i}") for i in range(len(source))]
    zipped = path.suffix == ".zip"
    store = ZipStore(path, mode="x") if zipped else LocalStore(path)
    try:
        root = zarr.open_group(store, mode="w-", zarr_format=2)
        data, meta, total = root.create_group("data"), root.create_group("meta"), sum(lengths)
        arrays = {
            key: _create(data, names[key], (total, *spec.shape), np.dtype(spec.dtype), codec)
            for key, spec in source.header.streams.items()
        }
        _create(meta, "episode_ends", (len(lengths),), np.dtype(np.int64), None)[:] = np.cumsum(lengths, dtype=np.int64)
        facts = []
        buffers = {key: _Aligned(array) for key, array in arrays.items()}
        for index in range(len(source)):
            episode = source.episode(index)
            for key, buffer in buffers.items():
                for block in exchange.pieces(cast(Rows, episode.data[key])):
                    buffer.add(block)
            facts.append(exchange.facts_of(episode))
            on_episode(lengths[index])
        for buffer in buffers.values():
            buffer.flush()
        sidecar = exchange.seal_sidecar(source.header, facts).encode()
    finally:
        store.close()
    if zipped:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(_SIDECAR, sidecar)
    else:
        (path / _SIDECAR).write_bytes(sidecar)


class _Aligned:
    """Writes rows in whole chunks, so that none is written twice: a ZIP cannot replace a member."""

    def __init__(self, array: Any) -> None:
        self._array, self._chunk = array, int(array.chunks[0])
        self._waiting: list[Array] = []
        self._rows = self._at = 0

    def add(self, block: Array) -> None:
        self._waiting.append(block)
        self._rows += len(block)
        if self._rows >= self._chunk:
            rows = np.concatenate(self._waiting)
            whole = len(rows) // self._chunk * self._chunk
            self._array[self._at : self._at + whole] = rows[:whole]
            self._waiting, self._rows, self._at = [rows[whole:]], len(rows) - whole, self._at + whole

    def flush(self) -> None:
        if self._rows:
            self._array[self._at : self._at + self._rows] = np.concatenate(self._waiting)


def _create(group: Any, name: str, shape: tuple[int, ...], dtype: np.dtype, codec: Any) -> Any:
    row = max(1, math.prod(shape[1:]) * dtype.itemsize)
    rows = max(1, min(max(1, shape[0]), _CHUNK_BYTES // row))
    return group.create_array(
        name, shape=shape, dtype=dtype, chunks=(rows, *shape[1:]), compressors=codec, config={"write_empty_chunks": True}
    )


def open_source(path: Path, options: ImportOptions) -> ZarrSource:
    """Open a replay buffer after checking every chunk's presence and size.

    Raises:
        RefusedError: names what is wrong, or what the file does not say.
    """
    files: TreeFiles = FolderFiles(path) if path.is_dir() else ZipFiles(path)
    try:
        return ZarrSource(files, path, options)
    except RefusedError:
        raise
    except Exception as error:
        raise RefusedError(f"{path} is damaged: {str(error) or type(error).__name__}.") from error


class ZarrSource:
    """The episodes of a replay buffer."""

    def __init__(self, files: TreeFiles, path: Path, options: ImportOptions) -> None:
        import zarr
        from zarr.storage import LocalStore, ZipStore

        self._path, self._options = path, options
        self._store: Any = None
        sizes = files.sizes()
        keys = sorted({n.split("/")[1] for n in sizes if n.startswith("data/") and n.endswith("/.zarray")})
        specs = {key: _check_array(files, sizes, f"data/{key}", path) for key in keys}
        ends_spec = _check_array(files, sizes, "meta/episode_ends", path)
        self._store = LocalStore(path, read_only=True) if path.is_dir() else ZipStore(path, mode="r")
        root = zarr.open_group(self._store, mode="r", zarr_format=2, use_consolidated=False)
        self._arrays: dict[str, Any] = {key: root[f"data/{key}"] for key in keys}
        ends: Any = root["meta/episode_ends"]
        self._ends = _episode_ends(np.asarray(ends[:]), ends_spec, specs, path)
        self.notes: tuple[str, ...] = ()
        self._facts: list[dict[str, Any]] | None = None
        if _SIDECAR in sizes:
            if sizes[_SIDECAR] > MAX_JSON_BYTES:
                raise RefusedError(f"{path}: {_SIDECAR} is {sizes[_SIDECAR]} bytes long.")
            self.header, self._facts = exchange.unseal_sidecar(files.read(_SIDECAR), where=f"{path}: {_SIDECAR}")
            self._names = exchange.plain_names(self.header)
            if len(self._facts) != len(self._ends):
                raise RefusedError(f"{path} holds {len(self._ends)} episodes and describes {len(self._facts)}.")
            missing = sorted(set(self._names.values()) ^ set(keys))
            if missing:
                raise RefusedError(f"{path}: data/{missing[0]} is either missing or not described in {_SIDECAR}.")
            for key, spec in self.header.streams.items():
                shape, dtype = specs[self._names[key]]
                if shape[1:] != spec.shape or dtype != np.dtype(spec.dtype):
                    raise RefusedError(
                        f"{path}: data/{self._names[key]} is {shape[1:]} {dtype}, described as {spec.shape} {spec.dtype}."
                    )
        else:
            self.header = self._stranger(specs)

    def __len__(self) -> int:
        return len(self._ends)

    def episode(self, index: int) -> Episode:
        """Return an episode; chunks are read as it is sliced."""
        start = int(self._ends[index - 1]) if index else 0
        length = int(self._ends[index]) - start
        streams = {key: self._rows(key, spec, start, length) for key, spec in self.header.streams.items()}
        data = cast("dict[str, Array]", streams)
        if self._facts is not None:
            return Episode(data, **self._facts[index])
        success = exchange.told_success(self._options.success, exchange.last_value(data.get(REWARD)), where=str(self._path))
        return Episode(data, success, None, {"source": f"episode {index}"})

    def close(self) -> None:
        """Close the file."""
        self._store.close()

    def _rows(self, key: str, spec: FeatureSpec, start: int, length: int) -> Slice:
        where = f"{self._path}, data/{self._names[key]}"
        return Slice(self._arrays[self._names[key]], start, length, spec.shape, np.dtype(spec.dtype), where)

    def _stranger(self, specs: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> StoreHeader:
        """Describe a file that only has names: 4-axis arrays of 3 channels are pictures, ``action`` is the action."""
        path, options = self._path, self._options
        if "action" not in specs:
            raise RefusedError(f"{path} has no data/action; it has {sorted(specs)}.")
        self._names = {ACTION: "action"}
        observation: dict[str, FeatureSpec] = {}
        extra: dict[str, FeatureSpec] = {}
        for name, (shape, dtype) in specs.items():
            picture = len(shape) == 4 and shape[-1] == 3
            key = REWARD if name == "reward" else IMAGES_PREFIX + name if picture else f"observation.{name}"
            if name == "action":
                continue
            kind = "uint8" if picture else dtype.name
            if picture and dtype != np.uint8:
                self._require_bytes(name)
                self.notes += (f"{name} holds pictures as {dtype}; they are whole numbers of 0 to 255 and are kept as uint8",)
            exchange.give_name(self._names, key, name, where=str(path))
            (extra if key == REWARD else observation)[key] = FeatureSpec(shape[1:], kind)
        shape, dtype = specs["action"]
        if len(shape) != 2:
            raise RefusedError(f"{path}: data/action has shape {shape}; (steps, elements) is expected.")
        said = {
            name: exchange.required(getattr(options, name), None, name=name, where=str(path))
            for name in ("task", "robot", "control_rate_hz", "fidelity")
        }
        action = FeatureSpec(shape[1:], dtype.name)
        zeros = (0.0,) * shape[1]
        spaces = Spaces(said["robot"], observation, action, zeros, zeros, float(said["control_rate_hz"]))
        blocks = exchange.pieces(self._rows(ACTION, action, 0, shape[0]))
        spaces = exchange.bounded_spaces(spaces, blocks, where=f"{path}, data/action")
        self.notes += ("the bounds of the actions are the range of the file's own",)
        return StoreHeader(spaces, said["task"], said["fidelity"], extra, {"imported": {"format": NAME, "file": path.name}})

    def _require_bytes(self, name: str) -> None:
        array = self._arrays[name]
        for start in range(0, array.shape[0], int(array.chunks[0])):
            block = np.asarray(array[start : start + int(array.chunks[0])])
            if not ((block >= 0) & (block <= 255) & (block == np.floor(block))).all():
                raise RefusedError(
                    f"{self._path}, data/{name} holds pictures of {block.dtype} that are not whole numbers of 0 to 255."
                )


def _episode_ends(ends: Array, spec: tuple[tuple[int, ...], np.dtype], specs: Mapping[str, Any], path: Path) -> Array:
    if len(spec[0]) != 1 or spec[1].kind not in "iu" or not len(ends):
        raise RefusedError(
            f"{path}: meta/episode_ends is {spec[0]} {spec[1]}; (n,) integers of at least one episode are expected."
        )
    ends = ends.astype(np.int64)
    steps = np.diff(ends, prepend=0)
    if (steps <= 0).any():
        at = int(np.argmax(steps <= 0))
        raise RefusedError(f"{path}: episode {at} has {int(steps[at])} steps by meta/episode_ends; each needs at least one.")
    for key, (shape, _) in specs.items():
        if not shape or shape[0] != ends[-1]:
            raise RefusedError(f"{path}: data/{key} has {shape[:1]} steps, meta/episode_ends ends at {int(ends[-1])}.")
    return ends


def _check_array(files: TreeFiles, sizes: Mapping[str, int], place: str, path: Path) -> tuple[tuple[int, ...], np.dtype]:
    """Check an array's description and that each of its chunks is there, whole; return shape and dtype."""
    where = f"{path}: {place}"
    if f"{place}/.zarray" not in sizes:
        raise RefusedError(f"{where} is missing.")
    if sizes[f"{place}/.zarray"] > MAX_JSON_BYTES:
        raise RefusedError(f"{where}/.zarray is {sizes[f'{place}/.zarray']} bytes long.")
    head = parse_json(files.read(f"{place}/.zarray"), where=f"{where}/.zarray")
    if head.get("zarr_format") != 2:
        raise RefusedError(f"{where} says zarr_format {head.get('zarr_format')!r}; 2 is read.")
    dtype = _dtype(head.get("dtype"), where)
    shape, chunks = _axes(head.get("shape"), where), _axes(head.get("chunks"), where)
    if len(shape) != len(chunks) or 0 in chunks or head.get("order") not in ("C", "F") or head.get("filters"):
        raise RefusedError(
            f"{where}: shape {shape}, chunks {chunks}, order {head.get('order')!r}, filters {head.get('filters')!r}; "
            "one chunk size per axis, order C or F and no filters are read."
        )
    compressor = head.get("compressor")
    codec = compressor.get("id") if isinstance(compressor, dict) else compressor
    if codec is not None and codec not in CODECS:
        raise RefusedError(f"{where} is compressed by {codec!r}. Known: {', '.join(CODECS)}.")
    _check_chunks(files, sizes, place, (shape, chunks, dtype, codec, head.get("dimension_separator", ".")), where)
    return shape, dtype


def _check_chunks(files: TreeFiles, sizes: Mapping[str, int], place: str, layout: tuple[Any, ...], where: str) -> None:
    shape, chunks, dtype, codec, separator = layout
    counts = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    present = [name for name in sizes if name.startswith(f"{place}/") and not name.startswith(f"{place}/.z")]
    if math.prod(counts) != len(present):
        raise RefusedError(f"{where} has {len(present)} of {math.prod(counts)} chunks; it is truncated or damaged.")
    raw = math.prod(chunks) * dtype.itemsize
    total = sum(sizes[name] for name in present)
    exchange.require_plausible(raw * len(present), total, where=where)
    for index in np.ndindex(*counts):
        name = f"{place}/{separator.join(map(str, index)) or '0'}"
        if name not in sizes:
            raise RefusedError(f"{where}: chunk {name} is missing.")
        if codec is None and sizes[name] != raw:
            raise RefusedError(f"{where}: chunk {name} has {sizes[name]} bytes instead of {raw}.")
        if codec == "blosc":
            _check_blosc(files.read(name, 16), sizes[name], raw, f"{where}: chunk {name}")


def _check_blosc(head: bytes, size: int, raw: int, where: str) -> None:
    """Compare a chunk's own header with what it must hold (blosc 1: version, flags, sizes)."""
    if len(head) < 16:
        raise RefusedError(f"{where} is truncated: {len(head)} bytes.")
    _, _, _, _, bytes_inside, _, bytes_stored = _BLOSC_HEADER.unpack(head)
    if bytes_stored != size or bytes_inside != raw:
        raise RefusedError(
            f"{where} says {bytes_inside} bytes in {bytes_stored}; {raw} in {size} are expected: truncated or damaged."
        )


def _dtype(text: Any, where: str) -> np.dtype:
    if not isinstance(text, str) or len(text) > 8:
        raise RefusedError(f"{where} has dtype {str(text)[:60]!r}; plain numbers such as '<f4' are read.")
    try:
        dtype = np.dtype(text)
    except (TypeError, ValueError, SyntaxError) as error:
        raise RefusedError(f"{where} has dtype {text!r}, which is unknown.") from error
    if dtype.kind not in "biuf" or dtype.itemsize > 8:
        raise RefusedError(f"{where} has dtype {text!r}; booleans, integers and floats are read, objects never.")
    return dtype


def _axes(value: Any, where: str) -> tuple[int, ...]:
    if (
        not isinstance(value, list)
        or len(value) > 8
        or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in value)
    ):
        raise RefusedError(f"{where} has the impossible shape or chunks {str(value)[:60]}.")
    return tuple(value)
