"""LeRobotDataset v3, written by lerobot's own writer and read from its Parquet and video files.

    meta/info.json                      codebase_version v3.0, fps, features
    meta/tasks.parquet, meta/episodes/  tasks; where each episode lies
    data/                               many episodes per Parquet file, pictures inside as PNG
    videos/<key>/                       or many episodes per video
    meta/robolearn.json                 the sidecar; lerobot passes over it

Reading does not go through lerobot, whose loader answers a damaged folder with a request to the Hub: everything is checked and
named here. Writing goes through ``LeRobotDataset.create``, ``add_frame``, ``save_episode`` and ``finalize``.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, IMAGES_PREFIX, Array, Episode, FeatureSpec, Spaces, is_image
from robolearn.data.formats import exchange
from robolearn.data.formats.exchange import EpisodeSource, ExportOptions, ImportOptions, OnEpisode
from robolearn.data.formats.lerobot_files import EpisodeTable, VideoRows, read_pictures
from robolearn.data.header import REWARD, StoreHeader
from robolearn.data.json_file import parse_json, read_limited

NAME = "lerobot"
SUMMARY = "LeRobotDataset v3 (lerobot 0.6.1), pictures or video"

VERSION = "v3.0"
SIDECAR_FILE = "meta/robolearn.json"
NEXT_REWARD, NEXT_SUCCESS, NEXT_DONE = "next.reward", "next.success", "next.done"
_OWN = {"timestamp", "frame_index", "episode_index", "index", "task_index"}
_TEMPLATE = re.compile(
    r"(?:[\w.-]+/|\{video_key\}/)*[\w.-]*chunk-\{chunk_index:03d\}/[\w.-]*file-\{file_index:03d\}\.(?:parquet|mp4)"
)
_STAMP_TOLERANCE_S = 1e-3
"""lerobot keeps time stamps as float32 of frame / fps."""


def sniff(path: Path) -> bool:
    """Return whether there is a ``meta/info.json``."""
    return (path / "meta" / "info.json").is_file()


def losses(header: StoreHeader, options: ExportOptions) -> list[str]:
    """Return what lerobot does not see, or sees otherwise."""
    said = [
        f"bounds of the actions, fidelity, seeds, metadata and provenance have no place in LeRobotDataset; they are kept in "
        f"{SIDECAR_FILE}, which only robolearn reads",
        "lerobot's own timestamp is frame / fps; the recorded stamps are kept as the feature t_wall"
        if "t_wall" in header.streams
        else "lerobot's own timestamp is frame / fps",
    ]
    if options.images == "video" and any(is_image(key) for key in header.streams):
        said.append(f"pictures become {options.codec} video, which is lossy")
    scalars = [key for key, spec in header.streams.items() if spec.shape == ()]
    if scalars:
        said.append(f"{', '.join(scalars)}: one number per step is a feature of shape (1,) in lerobot")
    return said


def _feature_names(header: StoreHeader) -> dict[str, str]:
    """Return stream -> feature name: the same, but for the reward."""
    return {key: NEXT_REWARD if key == REWARD else key for key in header.streams}


def _features(header: StoreHeader, options: ExportOptions) -> dict[str, dict[str, Any]]:
    features: dict[str, dict[str, Any]] = {}
    for key, name in _feature_names(header).items():
        spec = header.streams[key]
        if is_image(key):
            kind = "video" if options.images == "video" else "image"
            features[name] = {"dtype": kind, "shape": spec.shape, "names": ["height", "width", "channels"]}
        elif len(spec.shape) > 4 or 0 in spec.shape:
            raise RefusedError(f"LeRobotDataset holds arrays of 1 to 4 axes per step; {key} has shape {spec.shape}.")
        else:
            features[name] = {"dtype": spec.dtype, "shape": spec.shape or (1,), "names": list(spec.names) or None}
    reserved = sorted(set(features) & {*_OWN, NEXT_SUCCESS, NEXT_DONE, "task"})
    if reserved:
        raise RefusedError(f"Stream {reserved[0]!r} carries a name that LeRobotDataset keeps for itself.")
    return features | {name: {"dtype": "bool", "shape": (1,), "names": None} for name in (NEXT_SUCCESS, NEXT_DONE)}


def write(source: EpisodeSource, path: Path, options: ExportOptions, on_episode: OnEpisode) -> None:
    """Write all episodes through lerobot; one frame is in memory at a time.

    Raises:
        RefusedError: the rate is no whole number, a stream does not fit, or lerobot refuses.
    """
    header, rate = source.header, source.header.spaces.control_rate_hz
    if rate != int(rate) or rate < 1:
        raise RefusedError(f"LeRobotDataset keeps whole frames per second; these episodes have {rate:g} Hz.")
    features, facts = _features(header, options), []
    with _quiet():
        dataset = _create(path, header, features, options)
        try:
            for index in range(len(source)):
                episode = source.episode(index)
                length = exchange.length_of(episode, where=f"episode {index}")
                for frame in _frames(episode, header, length):
                    dataset.add_frame(frame)
                dataset.save_episode()
                facts.append(exchange.facts_of(episode))
                on_episode(length)
        finally:
            dataset.finalize()
    (path / SIDECAR_FILE).write_text(exchange.seal_sidecar(header, facts), encoding="utf-8")


def _create(path: Path, header: StoreHeader, features: dict[str, Any], options: ExportOptions) -> Any:
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    video = options.images == "video" and any(is_image(key) for key in header.streams)
    try:
        encoder = RGBEncoderConfig(vcodec=options.codec, crf=20 if options.codec == "h264" else 30) if video else None
        return LeRobotDataset.create(
            f"local/{path.name.strip('.') or 'dataset'}",
            fps=int(header.spaces.control_rate_hz),
            features=features,
            root=path,
            robot_type=header.spaces.robot,
            use_videos=video,
            rgb_encoder=encoder,
            streaming_encoding=video,
            image_writer_threads=0 if video else 2,
        )
    except ValueError as error:
        raise RefusedError(f"lerobot refuses these streams: {error}") from error


def _frames(episode: Episode, header: StoreHeader, length: int) -> Iterator[dict[str, Any]]:
    names = _feature_names(header)
    block = max(1, (1 << 24) // max(1, sum(int(np.prod(s.shape)) * np.dtype(s.dtype).itemsize for s in header.streams.values())))
    task = str(episode.metadata.get("instruction", header.task))
    for start in range(0, length, block):
        stop = min(start + block, length)
        rows = {key: np.asarray(episode.data[key][slice(start, stop)]) for key in header.streams}
        for step in range(stop - start):
            frame: dict[str, Any] = {names[key]: _shaped(array[step], header.streams[key]) for key, array in rows.items()}
            last = start + step == length - 1
            frame[NEXT_SUCCESS], frame[NEXT_DONE] = np.array([last and episode.success]), np.array([last])
            frame["task"] = task
            yield frame


def _shaped(value: Any, spec: FeatureSpec) -> Array:
    return np.asarray(value, spec.dtype).reshape(spec.shape or (1,))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep lerobot's progress bars and import warnings from the user, and the Hub out of it."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("SVT_LOG", "1")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def open_source(path: Path, options: ImportOptions) -> LeRobotSource:
    """Open a data set for reading.

    Raises:
        RefusedError: names what is wrong, or what it does not say.
    """
    try:
        return LeRobotSource(path, options)
    except RefusedError:
        raise
    except Exception as error:  # Arrow reports damage through many classes
        raise RefusedError(f"{path} is damaged: {str(error) or type(error).__name__}.") from error


class LeRobotSource:
    """The episodes of a LeRobotDataset."""

    def __init__(self, path: Path, options: ImportOptions) -> None:
        self._path, self._options = path, options
        info_file = exchange.inside(path, path / "meta" / "info.json")
        self._info = parse_json(read_limited(info_file), where=str(info_file))
        version = self._info.get("codebase_version")
        if version != VERSION:
            raise RefusedError(
                f"{path} is a LeRobotDataset of version {version!r}; {VERSION!r} is read. lerobot converts older ones: "
                "python -m lerobot.scripts.convert_dataset_v21_to_v30."
            )
        self._fps = self._positive("fps")
        self._features = self._checked_features()
        for name in ("data_path", "video_path"):
            template = self._info.get(name)
            if template is not None and (not isinstance(template, str) or not _TEMPLATE.fullmatch(template) or ".." in template):
                raise RefusedError(f"{info_file}: {name} {template!r} is not a path that lerobot writes; it may lead anywhere.")
        self._table = EpisodeTable(path, self._info)
        self.notes: tuple[str, ...] = ()
        self._facts: list[dict[str, Any]] | None = None
        sidecar = path / SIDECAR_FILE
        if sidecar.exists():
            text = read_limited(exchange.inside(path, sidecar))
            self.header, self._facts = exchange.unseal_sidecar(text, where=str(sidecar))
            self._names = _feature_names(self.header)
            self._require_described()
        else:
            self.header = self._stranger()

    def __len__(self) -> int:
        return len(self._table)

    def episode(self, index: int) -> Episode:
        """Return an episode: numbers and PNGs decoded, videos decoded as they are sliced."""
        place = self._table.place(index)
        names = {key: name for key, name in self._names.items() if self._features[name]["dtype"] != "video"}
        table = self._table.rows(place, [*names.values(), *_OWN & set(self._table.columns), *self._flags()])
        self._check_index(table, place, index)
        data: dict[str, Any] = {}
        for key, name in names.items():
            spec, where = self.header.streams[key], f"{self._path}, episode {index}, {name}"
            column = table[name]
            data[key] = read_pictures(column, spec, where) if is_image(key) else _numbers(column, spec, where)
        for key, name in self._names.items():
            if key not in data:
                data[key] = VideoRows(
                    *self._table.video(place, name, self._fps), self.header.streams[key], f"episode {index}, {name}"
                )
        data = {key: data[key] for key in self.header.streams}
        if self._facts is not None:
            return Episode(data, **self._facts[index])
        return self._strangers_episode(data, table, place, index)

    def close(self) -> None:
        """Close the files."""
        self._table.close()

    def _flags(self) -> list[str]:
        return [name for name in (NEXT_SUCCESS,) if name in self._features and name in self._table.columns]

    def _strangers_episode(self, data: dict[str, Any], table: Any, place: Any, index: int) -> Episode:
        metadata: dict[str, object] = {"source": f"episode {index}", "instruction": place.task}
        if NEXT_SUCCESS in self._flags():
            success = bool(np.asarray(_numbers(table[NEXT_SUCCESS], FeatureSpec((1,), "bool"), NEXT_SUCCESS)).any())
        else:
            success = exchange.told_success(self._options.success, exchange.last_value(data.get(REWARD)), where=str(self._path))
        return Episode(cast("dict[str, Array]", data), success, None, metadata)

    def _check_index(self, table: Any, place: Any, index: int) -> None:
        """Check lerobot's own columns: one episode, consecutive frames, stamps at the stated rate."""
        where = f"{self._path}, episode {index}"
        for name, expected in (("episode_index", np.full(place.length, place.number)), ("frame_index", np.arange(place.length))):
            found = _numbers(table[name], FeatureSpec((), "int64"), f"{where}, {name}")
            if not np.array_equal(found, expected):
                raise RefusedError(f"{where}: {name} does not count as it should; the file is mixed up or damaged.")
        stamps = _numbers(table["timestamp"], FeatureSpec((), "float32"), f"{where}, timestamp").astype(float)
        late = np.abs(stamps - np.arange(place.length) / self._fps)
        tolerance = _STAMP_TOLERANCE_S + 1e-6 * place.length / self._fps
        if not (late <= tolerance).all():
            at = int(np.argmax(~(late <= tolerance)))
            raise RefusedError(
                f"{where}: frame {at} is stamped {stamps[at]:.4f} s, at {self._fps:g} fps it is due at {at / self._fps:.4f} s; "
                "episodes of another rate are mixed in."
            )

    def _positive(self, name: str) -> float:
        value = self._info.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise RefusedError(f"{self._path}/meta/info.json: {name}={value!r} must be a positive number.")
        return float(value)

    def _checked_features(self) -> dict[str, dict[str, Any]]:
        found = self._info.get("features")
        if not isinstance(found, dict) or ACTION not in found:
            raise RefusedError(f"{self._path}/meta/info.json names no features, or no {ACTION!r} among them.")
        for name, feature in found.items():
            shape = feature.get("shape") if isinstance(feature, dict) else None
            usual = isinstance(shape, list) and len(shape) <= 5 and all(isinstance(n, int) and 0 < n < 1 << 24 for n in shape)
            if not usual or not isinstance(feature.get("dtype"), str):
                raise RefusedError(f"{self._path}/meta/info.json: feature {name!r} is malformed: {str(feature)[:120]}.")
        return found

    def _require_described(self) -> None:
        if len(self._facts or ()) != len(self._table):
            raise RefusedError(
                f"{self._path} holds {len(self._table)} episodes and {SIDECAR_FILE} describes {len(self._facts or ())}."
            )
        if self._fps != self.header.spaces.control_rate_hz:
            raise RefusedError(
                f"{self._path}: {self._fps:g} fps by info.json, {self.header.spaces.control_rate_hz:g} Hz by {SIDECAR_FILE}."
            )
        for key, name in self._names.items():
            spec = self.header.streams[key]
            if name not in self._features or tuple(self._features[name]["shape"]) != (spec.shape or (1,)):
                raise RefusedError(
                    f"{self._path}: {SIDECAR_FILE} describes {key} as {spec.shape}, info.json has {self._features.get(name)}."
                )

    def _stranger(self) -> StoreHeader:
        """Describe a data set that lerobot or somebody else recorded."""
        self._names = {}
        observation: dict[str, FeatureSpec] = {}
        extra: dict[str, FeatureSpec] = {}
        for name, feature in self._features.items():
            spec = _spec(name, feature)
            if name in {*_OWN, ACTION, NEXT_SUCCESS, NEXT_DONE}:
                continue
            if spec is None:
                self.notes += (f"{name} ({feature['dtype']}) is not read: the store keeps numbers and colour pictures",)
                continue
            if feature["dtype"] in ("image", "video"):
                key = name if is_image(name) else IMAGES_PREFIX + name.rsplit(".", 1)[-1]
            else:
                key = REWARD if name == NEXT_REWARD else name
            exchange.give_name(self._names, key, name, where=f"{self._path}/meta/info.json")
            (observation if key.startswith("observation.") else extra)[key] = spec
        action = _spec(ACTION, self._features[ACTION])
        if action is None or len(action.shape) != 1:
            raise RefusedError(f"{self._path}: the action is {self._features[ACTION]}; one row of numbers per step is expected.")
        self._names[ACTION] = ACTION
        options, where = self._options, str(self._path)
        robot = exchange.required(options.robot, self._info.get("robot_type") or None, name="robot", where=where)
        rate = exchange.required(options.control_rate_hz, self._fps, name="control_rate_hz", where=where)
        tasks = self._table.tasks()
        if len(tasks) > 1 and options.task is None:
            raise RefusedError(f"{where} holds {len(tasks)} tasks: {', '.join(tasks[:5])}. Name the whole with --task.")
        task = options.task or exchange.required(None, tasks[0] if tasks else None, name="task", where=where)
        fidelity = exchange.required(options.fidelity, None, name="fidelity", where=where)
        zeros = (0.0,) * action.shape[0]
        spaces = Spaces(robot, observation, action, zeros, zeros, rate)
        actions = (
            _numbers(self._table.rows(self._table.place(i), [ACTION])[ACTION], action, f"{where}, episode {i}, action")
            for i in range(len(self._table))
        )
        self.notes += ("the bounds of the actions are the range of the file's own",)
        spaces = exchange.bounded_spaces(spaces, actions, where=where)
        return StoreHeader(spaces, task, fidelity, extra, {"imported": {"format": NAME, "file": self._path.name}})


def _spec(name: str, feature: Mapping[str, Any]) -> FeatureSpec | None:
    """Return how the store keeps a feature; None where it cannot."""
    shape, kind = tuple(feature["shape"]), feature["dtype"]
    if kind in ("image", "video"):
        if (feature.get("info") or {}).get("is_depth_map") or len(shape) != 3:
            return None
        return FeatureSpec(shape if shape[-1] == 3 else (*shape[1:], shape[0]), "uint8") if 3 in (shape[0], shape[-1]) else None
    try:
        dtype = np.dtype(kind)
    except TypeError:
        return None
    if dtype.kind not in "biuf":
        return None
    names = feature.get("names")
    if isinstance(names, dict):  # older recorders group them: {"motors": [...]}
        names = [n for group in names.values() for n in (group if isinstance(group, list) else [group])]
    usable = isinstance(names, list) and len(shape) == 1 and len(names) == shape[0] and len(set(map(str, names))) == len(names)
    return FeatureSpec(shape, dtype.name, tuple(map(str, names)) if usable and names else ())


def _numbers(column: Any, spec: FeatureSpec, where: str) -> Array:
    """Return a Parquet column as (t, ...)."""
    import pyarrow as pa

    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = len(array)
    while isinstance(array, pa.ChunkedArray | pa.ExtensionArray):
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array.storage
    while pa.types.is_list(array.type) or pa.types.is_fixed_size_list(array.type) or pa.types.is_large_list(array.type):
        if array.null_count:
            raise RefusedError(f"{where}: {array.null_count} values are missing.")
        array = array.flatten()
    if array.null_count:
        raise RefusedError(f"{where}: {array.null_count} values are missing.")
    wanted = rows * int(np.prod(spec.shape, dtype=np.int64))
    if len(array) != wanted:
        raise RefusedError(f"{where} has {len(array)} numbers in {rows} steps; {wanted} are expected: features are mixed.")
    try:
        values = array.to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise RefusedError(f"{where} is {array.type}, not numbers: {error}.") from error
    if values.dtype.kind not in "biuf" or values.dtype != np.dtype(spec.dtype):
        raise RefusedError(f"{where} is {values.dtype} in the file; info.json says {spec.dtype}.")
    return values.reshape(rows, *spec.shape)
