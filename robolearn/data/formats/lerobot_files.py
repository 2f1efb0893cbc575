"""Where the episodes of a LeRobotDataset lie, and the decoding of its pictures and videos."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array, FeatureSpec
from robolearn.data.formats import exchange

DECODED_BYTES = 1 << 29
"""An episode's video that is not larger is decoded once and kept while it is used; a larger one is decoded as it is read."""
_MAX_PIXELS = 1 << 26


@dataclass(frozen=True)
class Place:
    """Where an episode lies."""

    number: int
    length: int
    file: Path
    first: int
    """Row in that file."""
    task: str
    row: Mapping[str, Any]
    """The whole row of ``meta/episodes``."""


class EpisodeTable:
    """``meta/episodes``, ``meta/tasks.parquet`` and the Parquet files of ``data``."""

    def __init__(self, root: Path, info: Mapping[str, Any]) -> None:
        self._root, self._info = root, info
        self._files: OrderedDict[Path, Any] = OrderedDict()
        rows = [row for file in sorted((root / "meta" / "episodes").rglob("*.parquet")) for row in self._read_rows(file)]
        if not rows:
            raise RefusedError(
                f"{root}/meta/episodes lists no episode; the recording was never finalised, or the files are gone."
            )
        rows.sort(key=lambda row: row["episode_index"])
        numbers = [row["episode_index"] for row in rows]
        if numbers != list(range(len(rows))):
            raise RefusedError(
                f"{root}/meta/episodes counts {numbers[:8]}...; 0, 1, 2, ... without gap or repetition is expected."
            )
        total = info.get("total_episodes")
        if total != len(rows):
            raise RefusedError(f"{root}: info.json says {total} episodes, meta/episodes lists {len(rows)}; some were lost.")
        starts: dict[Path, int] = {}
        self._places = []
        for row in rows:
            file = self._path("data_path", row["data/chunk_index"], row["data/file_index"])
            starts.setdefault(file, row["dataset_from_index"])
            self._places.append(self._place(row, file, row["dataset_from_index"] - starts[file]))
        self.columns: tuple[str, ...] = tuple(self._open(self._places[0].file).schema_arrow.names)

    def __len__(self) -> int:
        return len(self._places)

    def place(self, index: int) -> Place:
        """Return where an episode lies."""
        return self._places[index]

    def tasks(self) -> list[str]:
        """Return the tasks of the episodes, each once."""
        return list(dict.fromkeys(p.task for p in self._places if p.task))

    def rows(self, place: Place, columns: Sequence[str]) -> Any:
        """Return an episode's rows of some columns; only the row groups that hold them are read."""
        import pyarrow as pa

        file = self._open(place.file)
        missing = sorted(set(columns) - set(file.schema_arrow.names))
        if missing:
            raise RefusedError(
                f"{place.file} has no column {missing[0]!r}; it has {', '.join(file.schema_arrow.names)}: features are mixed."
            )
        groups, begin, at = [], None, 0
        for number in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(number).num_rows
            if at < place.first + place.length and at + rows > place.first:
                groups.append(number)
                begin = at if begin is None else begin
            at += rows
        if begin is None or at < place.first + place.length:
            raise RefusedError(f"{place.file} has {at} rows; episode {place.number} needs {place.first + place.length}.")
        try:
            table = file.read_row_groups(groups, columns=list(dict.fromkeys(columns)))
        except (pa.ArrowException, OSError) as error:
            raise RefusedError(f"{place.file} is damaged: {error}.") from error
        return table.slice(place.first - begin, place.length)

    def video(self, place: Place, name: str, fps: float) -> tuple[Path, int, int, float]:
        """Return (file, first frame, length, fps) of an episode's video."""
        row = place.row
        try:
            chunk, number, start = (row[f"videos/{name}/{part}"] for part in ("chunk_index", "file_index", "from_timestamp"))
        except KeyError as error:
            raise RefusedError(
                f"{self._root}/meta/episodes does not say where the video {name} of episode {place.number} lies."
            ) from error
        if not isinstance(start, float) or not 0 <= start < 1e7:
            raise RefusedError(f"{self._root}: the video {name} of episode {place.number} begins at {start!r} s.")
        return self._path("video_path", chunk, number, name), round(start * fps), place.length, fps

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _place(self, row: Mapping[str, Any], file: Path, first: int) -> Place:
        length, tasks = row["length"], row.get("tasks") or []
        if not 0 < length < 1 << 40 or length != row["dataset_to_index"] - row["dataset_from_index"] or first < 0:
            raise RefusedError(
                f"{self._root}: episode {row['episode_index']} has {length} steps, rows {row['dataset_from_index']} to "
                f"{row['dataset_to_index']}; an episode has at least one step."
            )
        return Place(row["episode_index"], length, file, first, str(tasks[0]) if isinstance(tasks, list) and tasks else "", row)

    def _path(self, template: str, chunk: int, number: int, key: str = "") -> Path:
        text = self._info.get(template)
        if not isinstance(text, str) or not 0 <= chunk < 1 << 31 or not 0 <= number < 1 << 31 or ".." in key:
            raise RefusedError(f"{self._root}: {template} {text!r}, chunk {chunk}, file {number}, key {key!r} name no file.")
        path = self._root / text.format(chunk_index=int(chunk), file_index=int(number), video_key=key)
        if not exchange.inside(self._root, path).is_file():
            raise RefusedError(f"{path} is missing.")
        return path

    def _open(self, path: Path) -> Any:
        """Return an opened Parquet file; the eight used last stay open."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if path not in self._files:
            exchange.inside(self._root, path)
            try:
                self._files[path] = pq.ParquetFile(path)
            except (pa.ArrowException, OSError, ValueError) as error:
                raise RefusedError(f"{path} is truncated, damaged or was never finalised: {error}.") from error
            if len(self._files) > 8:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path]

    def _read_rows(self, path: Path) -> Iterator[dict[str, Any]]:
        import pyarrow as pa

        file = self._open(path)
        wanted = [n for n in file.schema_arrow.names if not n.startswith("stats/")]
        if file.metadata.num_rows > 10_000_000:
            raise RefusedError(f"{path} claims {file.metadata.num_rows} episodes.")
        try:
            rows = file.read(columns=wanted).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise RefusedError(f"{path} is damaged: {error}.") from error
        needed = ("episode_index", "length", "data/chunk_index", "data/file_index", "dataset_from_index", "dataset_to_index")
        for row in rows:
            for name in needed:
                if isinstance(row.get(name), bool) or not isinstance(row.get(name), int):
                    raise RefusedError(f"{path}: {name} is {row.get(name)!r}; a whole number is expected.")
            yield row


def read_pictures(column: Any, spec: FeatureSpec, where: str) -> PictureRows:
    """Return the pictures of a column of {bytes, path}, decoded as they are sliced."""
    cells = column.combine_chunks()
    names = {cells.type.field(i).name for i in range(cells.type.num_fields)} if hasattr(cells.type, "num_fields") else set()
    if "bytes" not in names:
        raise RefusedError(f"{where} is {cells.type}; pictures inside the file, as bytes, are expected.")
    return PictureRows(cells, spec, where)


@dataclass(frozen=True, eq=False)
class PictureRows:
    """PNG or JPEG pictures in a Parquet column."""

    cells: Any
    spec: FeatureSpec
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        """(t, h, w, 3)."""
        return (len(self.cells), *self.spec.shape)

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, rows: slice) -> Array:
        begin, end, _ = rows.indices(len(self))
        out = np.empty((end - begin, *self.spec.shape), np.uint8)
        for row in range(begin, end):
            out[row - begin] = self._decode(self.cells[row].as_py(), row)
        return out

    def _decode(self, cell: Any, row: int) -> Array:
        from PIL import Image

        if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
            raise RefusedError(f"{self.where}, step {row}: the picture is not inside the file; paths are not followed.")
        try:
            picture = Image.open(io.BytesIO(cell["bytes"]), formats=("PNG", "JPEG"))
            if (picture.height, picture.width) != self.spec.shape[:2]:
                raise RefusedError(
                    f"{self.where}, step {row}: a picture of {picture.height} x {picture.width}, not {self.spec.shape}."
                )
            return np.asarray(picture.convert("RGB"))
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"{self.where}, step {row}: the picture is damaged: {error}.") from error


class VideoRows:
    """The frames of an episode in a video of many; small ones are decoded once, large ones as they are read, forwards."""

    def __init__(self, path: Path, first: int, length: int, fps: float, spec: FeatureSpec, what: str) -> None:
        self._path, self._first, self._length, self._fps, self._spec = path, first, length, fps, spec
        self._where = f"{path}, {what}"
        self._whole: Array | None = None
        self._frames: Iterator[Array] | None = None
        self._next = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(t, h, w, 3)."""
        return (self._length, *self._spec.shape)

    @property
    def dtype(self) -> np.dtype:
        """uint8."""
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: slice) -> Array:
        begin, end, _ = rows.indices(self._length)
        if self._whole is None and int(np.prod(self.shape)) <= DECODED_BYTES:
            self._whole = self._take(0, self._length)
        return self._whole[begin:end] if self._whole is not None else self._take(begin, end)

    def _take(self, begin: int, end: int) -> Array:
        if self._frames is None or begin != self._next:
            self._frames, self._next = self._decode(begin), begin
        out = np.empty((end - begin, *self._spec.shape), np.uint8)
        for row in range(end - begin):
            frame = next(self._frames, None)
            if frame is None:
                raise RefusedError(f"{self._where}: the video ends at frame {begin + row} of {self._length}; it is truncated.")
            if frame.shape != self._spec.shape:
                raise RefusedError(f"{self._where}: frame {begin + row} is {frame.shape}, not {self._spec.shape}.")
            out[row] = frame
        self._next = end
        return out

    def _decode(self, begin: int) -> Iterator[Array]:
        """Yield the frames from ``begin`` on, each checked to be the one that is due."""
        import av

        due = self._first + begin
        try:
            with av.open(str(self._path), options={"protocol_whitelist": "file"}) as container:
                stream = container.streams.video[0]
                if stream.width * stream.height > _MAX_PIXELS or (stream.height, stream.width) != self._spec.shape[:2]:
                    raise RefusedError(f"{self._where} is {stream.height} x {stream.width}, not {self._spec.shape}.")
                tick = stream.time_base
                if tick is None:
                    raise RefusedError(f"{self._where}: the video does not say how long a tick is.")
                stream.thread_type = "NONE"
                if due:
                    container.seek(int((due - 0.5) / self._fps / tick), stream=stream, backward=True)
                for frame in container.decode(stream):
                    number = round(float(frame.pts * tick) * self._fps) if frame.pts is not None else due
                    if number < due:
                        continue
                    if number > due:
                        raise RefusedError(
                            f"{self._where}: frame {due - self._first} is missing from the video, or its rate differs."
                        )
                    due += 1
                    yield frame.to_ndarray(format="rgb24")
        except RefusedError:
            raise
        except Exception as error:
            raise RefusedError(f"{self._where}: the video is damaged: {error}.") from error
