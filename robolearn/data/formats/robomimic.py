"""robomimic's and robosuite's HDF5 files.

    data                       attributes env_args (JSON: env_name, env_kwargs.control_freq, robots), or robosuite's env
    and env_info
    data/demo_0                attributes num_samples, model_file (MuJoCo XML)
    data/demo_0/actions        (t, a)
    data/demo_0/obs/<key>      (t, ...), pictures (t, h, w, 3) uint8
    data/demo_0/rewards, dones, states

robosuite's own collection script keeps ``states`` and ``actions`` alone; ``robolearn data convert --replay`` makes
observations of
them by MuJoCo. Links that leave the file, soft links, virtual and external datasets, object types and unknown filters are refused
before anything is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, IMAGES_PREFIX, Array, Episode, FeatureSpec, Spaces
from robolearn.data.episode_file import Rows
from robolearn.data.formats import exchange
from robolearn.data.formats.exchange import EpisodeSource, ExportOptions, ImportOptions, OnEpisode, Slice
from robolearn.data.header import REWARD, StoreHeader
from robolearn.data.json_file import parse_json

NAME = "robomimic"
SUMMARY = "robomimic and robosuite HDF5 (.hdf5, .h5)"

SIM_STATE = "sim.state"
"""Flat MuJoCo states of a simulated episode: time, qpos, qvel; float64."""
MODEL_FILE = "model_file"
"""Metadata key of an episode's MuJoCo XML."""
_MAGIC = b"\x89HDF\r\n\x1a\n"
_FILTERS = {1: "gzip", 2: "shuffle", 3: "fletcher32", 4: "szip", 5: "nbit", 6: "scaleoffset", 32000: "lzf"}
_MAX_OBJECTS = 1_000_000
_MAX_RANK = 6


def sniff(path: Path) -> bool:
    """Return whether the file begins as HDF5 files do."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        return stream.read(8) == _MAGIC


def losses(header: StoreHeader, options: ExportOptions) -> list[str]:
    """Return what other programs do not see in the file."""
    said = [
        "bounds of the actions, element names, task, fidelity, seeds, outcomes and metadata have no place in robomimic's layout; "
        "they are kept in the attribute data.attrs['robolearn'], which only robolearn reads"
    ]
    if REWARD not in header.streams:
        said.append(
            "rewards and dones are no streams of this store: robomimic's are written as 1 at the last step of a success, else 0"
        )
    extra = sorted(set(header.extra) - {REWARD, SIM_STATE})
    if extra:
        said.append(f"{', '.join(extra)}: written under demo_*/extra, which robomimic does not read")
    return said


def write(source: EpisodeSource, path: Path, options: ExportOptions, on_episode: OnEpisode) -> None:
    """Write all episodes, block by block.

    Raises:
        RefusedError: two streams would share a name, or the disk is full.
    """
    import h5py

    places, facts, total = _places(source.header), [], 0
    compression = None if options.compressor == "none" else "gzip"
    try:
        with h5py.File(path, "w-") as file:
            data = file.create_group("data")
            for index in range(len(source)):
                episode = source.episode(index)
                demo = data.create_group(f"demo_{index}")
                length = _write_demo(demo, episode, places, compression)
                if REWARD not in episode.data:
                    solved = np.zeros(length, np.float64)
                    solved[-1] = float(episode.success)
                    demo["rewards"] = solved
                demo["dones"] = (np.arange(length) == length - 1).astype(np.int64)
                demo.attrs["num_samples"] = length
                own = exchange.facts_of(episode)
                model = own["metadata"].get(MODEL_FILE)
                if isinstance(model, str):
                    demo.attrs[MODEL_FILE] = model
                facts.append(own)
                total += length
                on_episode(length)
            data.attrs["total"] = total
            data.attrs["env_args"] = _env_args(source.header)
            # Attributes hold 64 KiB at most, datasets any length.
            file["robolearn"] = np.frombuffer(exchange.seal_sidecar(source.header, facts).encode(), np.uint8)
    except OSError as error:
        raise RefusedError(f"{path} cannot be written: {error}.") from error


def _write_demo(demo: Any, episode: Episode, places: Mapping[str, str], compression: str | None) -> int:
    length = exchange.length_of(episode, where=demo.name)
    for key, place in places.items():
        rows = cast(Rows, episode.data[key])
        chunk = max(1, min(length, (1 << 18) // max(1, int(np.prod(rows.shape[1:])) * rows.dtype.itemsize)))
        stored = demo.create_dataset(
            place,
            shape=rows.shape,
            dtype=rows.dtype,
            chunks=(chunk, *rows.shape[1:]),
            compression=compression,
            shuffle=bool(compression),
        )
        start = 0
        for block in exchange.pieces(rows):
            stored[start : start + len(block)] = block
            start += len(block)
    return length


def _env_args(header: StoreHeader) -> str:
    import json

    arguments = {"control_freq": header.spaces.control_rate_hz, "robots": [header.spaces.robot]}
    return json.dumps({"env_name": header.task, "type": 1, "env_kwargs": arguments})


def _places(header: StoreHeader) -> dict[str, str]:
    """Return stream -> path within a demo."""
    names = exchange.plain_names(header)
    places = {key: f"obs/{names[key]}" for key in header.spaces.observation}
    places |= {key: f"extra/{names[key]}" for key in header.extra}
    fixed = {ACTION: "actions", REWARD: "rewards", SIM_STATE: "states"}
    return places | {key: place for key, place in fixed.items() if key in header.streams}


def open_source(path: Path, options: ImportOptions) -> HdfSource:
    """Open a file for reading, after looking at every object in it.

    Raises:
        RefusedError: names what is wrong, or what the file does not say.
    """
    import h5py

    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise RefusedError(f"{path} is truncated, damaged or no HDF5 file: {error}.") from error
    try:
        return HdfSource(file, path, options)
    except RefusedError:
        file.close()
        raise
    except Exception as error:  # libhdf5 reports damage through many classes
        file.close()
        raise RefusedError(f"{path} is damaged: {str(error) or type(error).__name__}.") from error


class HdfSource:
    """The demos of a file, in the order of their numbers."""

    def __init__(self, file: Any, path: Path, options: ImportOptions) -> None:
        self._file, self._path, self._options = file, path, options
        _require_safe(file, path)
        if "data" not in file or not hasattr(file["data"], "keys"):
            raise RefusedError(f"{path} has no group 'data'; it is neither robomimic's nor robosuite's.")
        self._demos = _demo_names(file["data"], path)
        self.notes: tuple[str, ...] = ()
        self._facts: list[dict[str, Any]] | None = None
        if "robolearn" in file:
            text = np.asarray(file["robolearn"], np.uint8).tobytes()
            self.header, self._facts = exchange.unseal_sidecar(text, where=f"{path}: robolearn")
            self._places = _places(self.header)
            if len(self._facts) != len(self._demos):
                raise RefusedError(f"{path} holds {len(self._demos)} demos and describes {len(self._facts)}.")
        else:
            self._places, spaces, extra = self._layout()
            actions = (block for demo in self._demos for block in exchange.pieces(self._rows(demo, ACTION, spaces.action)))
            spaces = exchange.bounded_spaces(spaces, actions, where=str(path))
            task = exchange.required(options.task, _env_name(file["data"], path), name="task", where=str(path))
            fidelity = exchange.required(options.fidelity, None, name="fidelity", where=str(path))
            self.header = StoreHeader(spaces, task, fidelity, extra, {"imported": {"format": NAME, "file": path.name}})
            self.notes += ("the bounds of the actions are the range of the file's own",)

    def __len__(self) -> int:
        return len(self._demos)

    def episode(self, index: int) -> Episode:
        """Return a demo; it is read from the file as it is sliced."""
        name = self._demos[index]
        streams = {key: self._rows(name, key, spec) for key, spec in self.header.streams.items()}
        if len({rows.shape[0] for rows in streams.values()}) != 1:
            lengths = {key: rows.shape[0] for key, rows in streams.items()}
            raise RefusedError(f"{self._path}, {name}: the streams differ in length: {lengths}.")
        data = cast("dict[str, Array]", streams)
        if self._facts is not None:
            return Episode(data, **self._facts[index])
        success = exchange.told_success(self._options.success, exchange.last_value(data.get(REWARD)), where=str(self._path))
        metadata: dict[str, object] = {"source": name}
        model = self._file["data"][name].attrs.get(MODEL_FILE)
        if isinstance(model, str):
            metadata[MODEL_FILE] = model
        return Episode(data, success, None, metadata)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rows(self, demo: str, key: str, spec: FeatureSpec) -> Slice:
        place = self._places[key]
        where = f"{self._path}, data/{demo}/{place}"
        group = self._file["data"][demo]
        if place not in group:
            raise RefusedError(f"{where} is missing; the first demo has it.")
        stored = group[place]
        if not hasattr(stored, "dtype") or stored.shape[1:] != spec.shape or stored.dtype != np.dtype(spec.dtype):
            found = f"{stored.shape} {stored.dtype}" if hasattr(stored, "dtype") else "a group"
            raise RefusedError(f"{where} is {found}; {spec.shape} per step of {spec.dtype} is expected, as in the other demos.")
        if not stored.shape or stored.shape[0] == 0:
            raise RefusedError(f"{where} is empty: an episode without steps.")
        return Slice(stored, 0, stored.shape[0], spec.shape, np.dtype(spec.dtype), where)

    def _layout(self) -> tuple[dict[str, str], Spaces, dict[str, FeatureSpec]]:
        """Name the streams of a stranger's file after those of its first demo."""
        first, path = self._file["data"][self._demos[0]], self._path
        if "actions" not in first:
            raise RefusedError(f"{path}, data/{self._demos[0]} has no actions; it has {sorted(first)}.")
        places, observation = {ACTION: "actions"}, {}
        for name, stored in sorted(first.get("obs", {}).items()):
            key = _observation_key(name, stored)
            exchange.give_name(places, key, f"obs/{name}", where=f"{path}, data/{self._demos[0]}")
            observation[key] = _spec(stored)
        extra = {}
        for key, place in ((REWARD, "rewards"), (SIM_STATE, "states")):
            if place in first:
                places[key], extra[key] = place, _spec(first[place])
        unread = sorted(set(first) - {"actions", "obs", "rewards", "states", "dones"})
        if unread:
            self.notes += (f"{', '.join(unread)} of each demo is not read: it follows from the rest or has no meaning here",)
        if not observation and SIM_STATE not in extra:
            raise RefusedError(f"{path}, data/{self._demos[0]} has neither observations nor states.")
        where, data = str(path), self._file["data"]
        robot = exchange.required(self._options.robot, _robot(data, path), name="robot", where=where)
        rate = exchange.required(self._options.control_rate_hz, _rate(data, path), name="control_rate_hz", where=where)
        action = _spec(first["actions"])
        if len(action.shape) != 1:
            raise RefusedError(f"{path}: actions have shape (t, *{action.shape}); one row per step is expected.")
        zeros = (0.0,) * action.shape[0]
        return places, Spaces(robot, observation, action, zeros, zeros, float(rate)), extra


def _observation_key(name: str, stored: Any) -> str:
    if not hasattr(stored, "dtype"):
        raise RefusedError(f"{stored.name} is a group; observations are arrays.")
    if stored.ndim == 4 and stored.dtype == np.uint8:
        return IMAGES_PREFIX + name.removesuffix("_image")
    return ENVIRONMENT_STATE if name == "object" else f"observation.{name}"


def _spec(stored: Any) -> FeatureSpec:
    if stored.ndim == 0:
        raise RefusedError(f"{stored.file.filename}, {stored.name} is one number; one row per step is expected.")
    return FeatureSpec(tuple(int(n) for n in stored.shape[1:]), stored.dtype.name)


def _demo_names(data: Any, path: Path) -> list[str]:
    names = [str(name) for name in data]
    odd = [name for name in names if not name.removeprefix("demo_").isdigit() or not hasattr(data[name], "keys")]
    if odd:
        raise RefusedError(f"{path}: data/{odd[0]} is no demo; groups demo_0, demo_1, ... are expected.")
    if not names:
        raise RefusedError(f"{path} holds no demo.")
    numbers = [int(name.removeprefix("demo_")) for name in names]
    if len(set(numbers)) != len(numbers):
        raise RefusedError(f"{path} names a demo twice: {sorted(names)}.")
    return [name for _, name in sorted(zip(numbers, names, strict=True))]


def _attribute(data: Any, name: str, path: Path) -> dict[str, Any]:
    text = data.attrs.get(name)
    return parse_json(text, where=f"{path}: {name}") if isinstance(text, str | bytes) else {}


def _env_name(data: Any, path: Path) -> str | None:
    name = _attribute(data, "env_args", path).get("env_name") or data.attrs.get("env")
    return str(name) if name else None


def _settings(data: Any, path: Path) -> Mapping[str, Any]:
    found = _attribute(data, "env_args", path).get("env_kwargs") or _attribute(data, "env_info", path)
    return found if isinstance(found, Mapping) else {}


def _robot(data: Any, path: Path) -> str | None:
    robots = _settings(data, path).get("robots")
    robots = [robots] if isinstance(robots, str) else robots
    return "_".join(str(r).lower() for r in robots) if isinstance(robots, list) and robots else None


def _rate(data: Any, path: Path) -> float | None:
    rate = _settings(data, path).get("control_freq")
    if rate is None:
        return None
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6:
        raise RefusedError(f"{path}: control_freq={rate!r} must be a positive number.")
    return float(rate)


def _require_safe(file: Any, path: Path) -> None:
    """Look at every object before any of them is read."""
    seen: set[int] = set()
    raw = 0
    for group, name in _walk(file, path, seen):
        stored = group[name]
        if not hasattr(stored, "dtype"):
            continue
        where = f"{path}, {stored.name}"
        if stored.is_virtual or stored.external:
            raise RefusedError(f"{where} lies outside of the file (a virtual or external dataset); this is not followed.")
        if stored.dtype.kind not in "biuf":
            raise RefusedError(f"{where} holds {stored.dtype}; only booleans, integers and floats are read, objects never.")
        if stored.ndim > _MAX_RANK:
            raise RefusedError(f"{where} has {stored.ndim} axes; at most {_MAX_RANK} are read.")
        _require_filters(stored, where)
        raw += stored.size * stored.dtype.itemsize
        if stored.chunks and int(np.prod(stored.chunks, dtype=object)) * stored.dtype.itemsize > max(
            2**31, 2 * exchange.FREE_BYTES
        ):
            raise RefusedError(f"{where} has chunks of {stored.chunks}, which do not fit into memory.")
        exchange.require_plausible(raw, path.stat().st_size, where=where)


def _walk(group: Any, path: Path, seen: set[int]) -> Iterator[tuple[Any, str]]:
    import h5py

    waiting = [group]
    while waiting:
        current = waiting.pop()
        for name in current:
            link = current.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                target = getattr(link, "filename", "") or getattr(link, "path", "?")
                raise RefusedError(
                    f"{path}, {current.name}/{name} is a {type(link).__name__} to {target!r}; links are not followed."
                )
            if current.get(name, getclass=True) is h5py.Group:
                address = h5py.h5o.get_info(current[name].id).addr
                if address in seen:
                    raise RefusedError(f"{path}, {current.name}/{name} leads back into the file: a loop.")
                seen.add(address)
                waiting.append(current[name])
            elif current.get(name, getclass=True) is not h5py.Dataset:
                raise RefusedError(
                    f"{path}, {current.name}/{name} is a {current.get(name, getclass=True).__name__}, not an array."
                )
            if len(seen) > _MAX_OBJECTS:
                raise RefusedError(f"{path} holds more than {_MAX_OBJECTS} groups.")
            yield current, name


def _require_filters(stored: Any, where: str) -> None:
    settings = stored.id.get_create_plist()
    for number in range(settings.get_nfilters()):
        code, _, _, name = settings.get_filter(number)
        if code not in _FILTERS:
            label = name.decode(errors="replace") if name else "unnamed"
            raise RefusedError(f"{where} is compressed by filter {code} ({label}). Known: {', '.join(_FILTERS.values())}.")
