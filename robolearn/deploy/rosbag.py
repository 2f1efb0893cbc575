"""rosbag2 recordings (MCAP or SQLite) as a format of episodes; one bag per episode.

This format lives beside the resampler and not in :mod:`robolearn.data.formats`, because it aligns a stranger's bag with the same
lines as the live node (:func:`robolearn.deploy.streams.replay`).

Our own bags: one topic per stream, ``/<stream>`` with dots as slashes; numbers as ``sensor_msgs/JointState`` (names and float64
positions), pictures as ``sensor_msgs/Image`` rgb8, stamped with ``t_wall`` or step / rate. The sidecar is custom data of
``metadata.yaml``. A stranger's bag needs a contract file (JSON)::

    {"contract": {...}, "spaces": {...}, "action": {"topic": "/cmd", "kind": "joint_state", "names": [...]}}

with the observation contract of :class:`~robolearn.deploy.streams.ObservationContract` and the spaces of
:class:`~robolearn.core.types.Spaces`. A step's action is the last one that was received before the next frame.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, Array, Episode, FeatureSpec, Spaces, is_image
from robolearn.data.formats import exchange
from robolearn.data.formats.exchange import EpisodeSource, ExportOptions, ImportOptions, OnEpisode
from robolearn.data.header import T_WALL, StoreHeader
from robolearn.data.json_file import parse_json, read_limited
from robolearn.deploy.codecs import MESSAGE_TYPES, Sample, decode, stamp_ns
from robolearn.deploy.streams import ObservationContract, Stream, replay

NAME = "rosbag"
SUMMARY = "rosbag2 recordings, MCAP or SQLite; one bag per episode"

_CUSTOM = "robolearn"
_EXACT_INTEGERS = 4
"""Integers of at most so many bytes are exact as float64."""


def sniff(path: Path) -> bool:
    """Return whether ``path`` is a bag or holds bags."""
    return path.is_dir() and bool(_bags(path))


def _bags(path: Path) -> list[Path]:
    if (path / "metadata.yaml").is_file():
        return [path]
    return sorted(p for p in path.iterdir() if (p / "metadata.yaml").is_file()) if path.is_dir() else []


def losses(header: StoreHeader, options: ExportOptions) -> list[str]:
    """Return what other readers of the bags do not see."""
    said = [
        "bounds of the actions, rate, robot, task, fidelity, seeds, outcomes and metadata have no place in a "
        "bag's messages; they "
        "are kept as custom data of metadata.yaml, which only robolearn reads",
        "numbers are float64 positions of joint states, whatever their type was; robolearn gives the type back",
    ]
    if T_WALL not in header.streams:
        said.append("messages are stamped step / rate from zero on: the store keeps no wall-clock times")
    return said


def write(source: EpisodeSource, path: Path, options: ExportOptions, on_episode: OnEpisode) -> None:
    """Write one MCAP bag per episode.

    Raises:
        RefusedError: a stream's numbers are not exact as float64, or the disk is full.
    """
    for key, spec in source.header.streams.items():
        dtype = np.dtype(spec.dtype)
        if dtype.kind in "iu" and dtype.itemsize > _EXACT_INTEGERS:
            raise RefusedError(f"A bag holds numbers as float64; {key} is {spec.dtype}, which that cannot hold exactly.")
    path.mkdir(parents=True)
    for index in range(len(source)):
        episode = source.episode(index)
        length = exchange.length_of(episode, where=f"episode {index}")
        _write_bag(path / f"episode_{index:06d}", source.header, episode, length)
        on_episode(length)


def _write_bag(path: Path, header: StoreHeader, episode: Episode, length: int) -> None:
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    types = get_typestore(Stores.ROS2_JAZZY)
    stamps = _stamps(episode, header, length)
    with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        writer.set_custom_data(_CUSTOM, exchange.seal_sidecar(header, [exchange.facts_of(episode)]))
        kinds = {key: MESSAGE_TYPES["image" if is_image(key) else "joint_state"] for key in header.streams}
        connections = {key: writer.add_connection(_topic(key), kind, typestore=types) for key, kind in kinds.items()}
        for start in range(0, length, 64):
            stop = min(start + 64, length)
            rows = {key: np.asarray(episode.data[key][slice(start, stop)]) for key in header.streams}
            for step in range(stop - start):
                stamp = int(stamps[start + step])
                for key, connection in connections.items():
                    message = _message(types, key, header.streams[key], rows[key][step], stamp)
                    writer.write(connection, stamp, types.serialize_cdr(message, connection.msgtype))


def _topic(key: str) -> str:
    return "/" + key.replace(".", "/")


def _stamps(episode: Episode, header: StoreHeader, length: int) -> Array:
    """Return (t,) strictly increasing nanoseconds, from the wall clock if the episode has a sound one."""
    if T_WALL in header.streams:
        found = np.rint(np.asarray(episode.data[T_WALL][slice(0, length)], np.float64).ravel() * 1e9)
        if found[0] >= 0 and found[-1] < 2**31 * 1e9 and (np.diff(found) > 0).all():
            return found.astype(np.int64)
    return np.rint(np.arange(length) / header.spaces.control_rate_hz * 1e9).astype(np.int64)


def _message(types: Any, key: str, spec: FeatureSpec, value: Any, stamp: int) -> Any:
    kinds = types.types
    time = kinds["builtin_interfaces/msg/Time"](sec=stamp // 10**9, nanosec=stamp % 10**9)
    head = kinds["std_msgs/msg/Header"](stamp=time, frame_id="")
    if is_image(key):
        height, width = spec.shape[0], spec.shape[1]
        data = np.ascontiguousarray(value).reshape(-1)
        return kinds[MESSAGE_TYPES["image"]](head, height, width, "rgb8", 0, 3 * width, data)
    numbers = np.asarray(value, np.float64).reshape(-1)
    names = list(spec.names) or [f"{key.rsplit('.', 1)[-1]}_{i}" for i in range(len(numbers))]
    nothing = np.zeros(0)
    return kinds[MESSAGE_TYPES["joint_state"]](head, names, numbers, nothing, nothing)


def open_source(path: Path, options: ImportOptions) -> EpisodeSource:
    """Open one bag, or a folder of bags.

    Raises:
        RefusedError: names what is wrong, or what the bags do not say.
    """
    bags = _bags(path)
    if not bags:
        raise RefusedError(f"{path} is no rosbag2 recording: there is no metadata.yaml in it or one folder below.")
    for bag in bags:
        for file in bag.iterdir():
            exchange.inside(path, file)
    try:
        own = [_sidecar(bag) for bag in bags]
        if all(own):
            return BagSource(bags, cast("list[tuple[StoreHeader, list[dict[str, Any]]]]", own))
        if any(own):
            raise RefusedError(f"{path} mixes bags of robolearn with others; convert them one after the other.")
        return StrangersBags(bags, options)
    except RefusedError:
        raise
    except Exception as error:  # rosbags, sqlite and yaml each have their own errors
        raise RefusedError(f"{path} is damaged: {str(error) or type(error).__name__}.") from error


def _sidecar(bag: Path) -> tuple[StoreHeader, list[dict[str, Any]]] | None:
    from ruamel.yaml import YAML

    where = f"{bag}/metadata.yaml"
    content = read_limited(bag / "metadata.yaml")
    try:
        body = YAML(typ="safe").load(content)["rosbag2_bagfile_information"]
        custom = (body.get("custom_data") or {}).get(_CUSTOM)
    except Exception as error:
        raise RefusedError(
            f"{where} is damaged: {str(error).splitlines()[0] if str(error) else type(error).__name__}."
        ) from error
    return exchange.unseal_sidecar(str(custom), where=where) if custom else None


@contextlib.contextmanager
def _reader(bag: Path) -> Iterator[Any]:
    from rosbags.highlevel import AnyReader
    from rosbags.typesys import Stores, get_typestore

    try:
        with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
            yield reader
    except RefusedError:
        raise
    except Exception as error:
        raise RefusedError(f"{bag} is truncated or damaged: {str(error) or type(error).__name__}.") from error


class BagSource:
    """Bags that :func:`write` made; message i of every topic is step i."""

    def __init__(self, bags: list[Path], own: list[tuple[StoreHeader, list[dict[str, Any]]]]) -> None:
        self._bags, self.header = bags, own[0][0]
        self.notes: tuple[str, ...] = ()
        self._facts = []
        for bag, (header, facts) in zip(bags, own, strict=True):
            self.header.require_same(header, what=f"The bag before {bag.name}")
            if len(facts) != 1:
                raise RefusedError(f"{bag} describes {len(facts)} episodes; one is expected.")
            self._facts.append(facts[0])

    def __len__(self) -> int:
        return len(self._bags)

    def episode(self, index: int) -> Episode:
        """Return an episode, decoded."""
        streams, bag = self.header.streams, self._bags[index]
        rows: dict[str, list[Array]] = {key: [] for key in streams}
        topics = {_topic(key): key for key in streams}
        with _reader(bag) as reader:
            for connection, _, raw in reader.messages():
                key = topics.get(connection.topic)
                if key is None:
                    raise RefusedError(f"{bag} has a topic {connection.topic} that no stream is written to.")
                kind = "image" if is_image(key) else "joint_state"
                if connection.msgtype != MESSAGE_TYPES[kind]:
                    raise RefusedError(f"{bag}: {connection.topic} is {connection.msgtype}, not {MESSAGE_TYPES[kind]}.")
                message = reader.deserialize(raw, connection.msgtype)
                rows[key].append(_value(message, kind, streams[key], f"{bag}, {connection.topic}"))
        lengths = {key: len(r) for key, r in rows.items()}
        if len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise RefusedError(f"{bag}: the streams differ in length or are empty: {lengths}.")
        return Episode({key: np.stack(r) for key, r in rows.items()}, **self._facts[index])

    def close(self) -> None:
        """Nothing stays open."""


def _value(message: Any, kind: str, spec: FeatureSpec, where: str) -> Array:
    if kind == "image":
        picture = decode("image", message)["image"]
        if picture.shape != spec.shape:
            raise RefusedError(f"{where} holds a picture of shape {picture.shape}, not {spec.shape}.")
        return picture
    numbers = np.asarray(message.position, np.float64)
    if numbers.size != math.prod(spec.shape):
        raise RefusedError(f"{where} holds {numbers.size} numbers, not {math.prod(spec.shape)}.")
    return numbers.reshape(spec.shape).astype(spec.dtype)


class StrangersBags:
    """Bags that a robot recorded, put in step by the live node's resampler."""

    def __init__(self, bags: list[Path], options: ImportOptions) -> None:
        where = str(options.contract or bags[0])
        if options.contract is None:
            raise RefusedError(
                f"{where} was not written by robolearn; say which topics are what with --contract FILE (docs/formats.md)."
            )
        body = parse_json(read_limited(options.contract), where=where)
        unknown = set(body) ^ {"contract", "spaces", "action"}
        if unknown:
            raise RefusedError(
                f"{where}: {sorted(unknown)[0]!r} is missing or unknown; contract, spaces and action are expected."
            )
        self._contract = ObservationContract.from_json(body["contract"], where=where)
        spaces = Spaces.from_json(body["spaces"])
        self._contract.require_fits(spaces, what=where)
        self._action = _action_stream(body["action"], spaces, where)
        task = exchange.required(options.task, None, name="task", where=where)
        self.header = StoreHeader(
            spaces,
            task,
            options.fidelity or "real",
            {T_WALL: FeatureSpec((), "float64")},
            {"imported": {"format": NAME, "bags": [bag.name for bag in bags]}},
        )
        self._bags, self._options = bags, options
        self.notes: tuple[str, ...] = (
            "topics that the contract does not name are not read",
            "a step's action is the last one received before the next frame; frames before the first action are left out",
        )
        exchange.told_success(options.success, None if options.success == "reward" else 0.0, where=where)

    def __len__(self) -> int:
        return len(self._bags)

    def episode(self, index: int) -> Episode:
        """Return an episode: the frames of the clock stream, each with the action in force until the next."""
        bag, spaces = self._bags[index], self.header.spaces
        actions: list[tuple[int, Array]] = []
        frames = list(replay(self._contract, spaces, self._arrivals(bag, actions)))
        if not frames or not actions:
            raise RefusedError(f"{bag} yields {len(frames)} frames and {len(actions)} actions; an episode needs both.")
        at = np.array([frame.at_ns for frame in frames], np.int64)
        until = np.append(at[1:], at[-1] + round(1e9 / spaces.control_rate_hz))
        chosen = np.searchsorted(np.array([stamp for stamp, _ in actions]), until, side="left") - 1
        kept = np.flatnonzero(chosen >= 0)
        if not len(kept):
            raise RefusedError(f"{bag}: no action was received during the {len(frames)} frames.")
        data = {key: np.stack([frames[i].observation[key] for i in kept]) for key in spaces.observation}
        data[ACTION] = np.stack([actions[chosen[i]][1] for i in kept]).astype(spaces.action.dtype)
        data[T_WALL] = at[kept] / 1e9
        return Episode(data, self._options.success == "yes", None, {"source": bag.name})

    def close(self) -> None:
        """Nothing stays open."""

    def _arrivals(self, bag: Path, actions: list[tuple[int, Array]]) -> Iterator[tuple[int, str, int, Sample]]:
        """Yield the streams' samples in order of arrival, and set the actions aside."""
        by_topic: dict[str, list[tuple[str, Stream]]] = {}
        for name, stream in self._contract.streams.items():
            by_topic.setdefault("/" + stream.topic.lstrip("/"), []).append((name, stream))
        action_topic = "/" + self._action.topic.lstrip("/")
        with _reader(bag) as reader:
            present = {c.topic for c in reader.connections}
            missing = sorted({*by_topic, action_topic} - present)
            if missing:
                raise RefusedError(f"{bag} has no topic {missing[0]}; it has {', '.join(sorted(present))}.")
            for connection, received, raw in reader.messages():
                streams = by_topic.get(connection.topic, [])
                if not streams and connection.topic != action_topic:
                    continue
                message = reader.deserialize(raw, connection.msgtype)
                if connection.topic == action_topic:
                    actions.append((received, decode("joint_state", message, self._action.names)["position"]))
                for name, stream in streams:
                    if connection.msgtype != MESSAGE_TYPES[stream.kind]:
                        raise RefusedError(
                            f"{bag}: {connection.topic} is {connection.msgtype}, not {MESSAGE_TYPES[stream.kind]}."
                        )
                    yield received, name, stamp_ns(message), decode(stream.kind, message, stream.names)


def _action_stream(body: Any, spaces: Spaces, where: str) -> Stream:
    if (
        not isinstance(body, Mapping)
        or set(body) - {"topic", "kind", "names"}
        or body.get("kind", "joint_state") != "joint_state"
    ):
        raise RefusedError(f"{where}: action needs topic and names of a joint_state topic; got {body!r}.")
    names = tuple(str(n) for n in body.get("names", spaces.action.names))
    if len(names) != spaces.action_dim:
        raise RefusedError(f"{where}: the action has {spaces.action_dim} elements, {len(names)} names are given.")
    return Stream(str(body.get("topic", "")), "joint_state", names)
