"""The unfinished episode on disk: an append-only file of framed, checksummed records.

Layout: the magic, one HEAD record (JSON), one FRAM record per step (the raw bytes of every stream, always of the same size) and,
once the episode is finished, one DONE record (JSON). A record is its kind, the length of its payload, the CRC-32 of kind and
payload, and the payload. Whatever a kill or a power loss cuts off, every whole record before the cut is read back.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array, FeatureSpec
from robolearn.data.disk import sync_folder, temporary_name, write_all

MAGIC = b"RLJOURN1"
_RECORD = struct.Struct("<4sII")
_HEAD, _FRAME, _DONE = b"HEAD", b"FRAM", b"DONE"
_CUT_OFF = "the record is cut off"


class JournalWriter:
    """Appends records; a written record survives the death of the process, a synced one the loss of power."""

    def __init__(self, path: Path, head: Mapping[str, Any], streams: Mapping[str, FeatureSpec]) -> None:
        """Create the file; it has its name once its head is on the disk, so a kill leaves no journal without one.

        Args:
            path: where; must not exist, which the store's writer lock guards.
            head: JSON facts known at the start of the episode.
            streams: every stream of a frame, in the order in which its bytes are written.

        Raises:
            OSError: the file cannot be created; nothing is left behind.
        """
        self.path = path
        self._keys = list(streams)
        layout = [[key, f.dtype, list(f.shape)] for key, f in streams.items()]
        temporary = temporary_name(path)
        self._descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            self._append(MAGIC + _record(_HEAD, json.dumps({**head, "layout": layout}, allow_nan=False).encode()))
            self.sync()
            temporary.rename(path)
            sync_folder(path.parent)
        except OSError:
            os.close(self._descriptor)
            for left in (temporary, path):
                left.unlink(missing_ok=True)
            raise

    def add_frame(self, frame: Mapping[str, Array]) -> None:
        """Append one step; the arrays already have the dtype and shape of their streams.

        Raises:
            OSError: the frame was not added; earlier frames are untouched.
        """
        self._append(_record(_FRAME, b"".join(frame[key].tobytes() for key in self._keys)))

    def add_done(self, facts: Mapping[str, Any]) -> None:
        """Append the record that makes the episode a finished one; it is not synced yet."""
        self._append(_record(_DONE, json.dumps(facts, allow_nan=False).encode()))

    def sync(self) -> None:
        """Bring every record written so far to the disk itself."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Close the file, which stays; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _append(self, content: bytes) -> None:
        end = os.lseek(self._descriptor, 0, os.SEEK_CUR)
        try:
            write_all(self._descriptor, content)
        except BaseException:
            os.ftruncate(self._descriptor, end)
            os.lseek(self._descriptor, end, os.SEEK_SET)
            raise


@dataclass(frozen=True)
class JournalContent:
    """What could be read from a journal."""

    head: Mapping[str, Any]
    frames: int
    data: Mapping[str, Array]
    """Stream -> (frames, ...) views into the mapped file."""
    done: Mapping[str, Any] | None
    """Facts given when the episode was finished; None where it was interrupted."""
    torn_bytes: int
    """Bytes of one incomplete record at the end, as a kill leaves them."""
    damage: str | None
    """Why reading stopped before the end although more than a torn record follows; None if it did not."""


def read_journal(path: Path) -> JournalContent:
    """Read every whole record of a journal up to the first that is torn or damaged.

    Raises:
        RefusedError: not even the first record can be read.
    """
    size = path.stat().st_size
    if size == 0:
        raise RefusedError(f"Journal {path} is empty.")
    with path.open("rb") as stream:
        content = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    if content[: len(MAGIC)] != MAGIC:
        raise RefusedError(f"Journal {path} does not begin like a journal.")
    kind, payload, position, why = _next(content, len(MAGIC))
    if kind != _HEAD:
        raise RefusedError(f"Journal {path} holds no readable head: {why or kind!r}.")
    try:
        head = json.loads(payload)
        frame_type = np.dtype([(key, np.dtype(dtype), tuple(shape)) for key, dtype, shape in head["layout"]])
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(f"Journal {path} holds no readable head: {error!r}.") from error
    first = position
    frames, done, why = 0, None, None
    while position < size and done is None:
        kind, payload, after, why = _next(content, position)
        if kind == _FRAME and len(payload) == frame_type.itemsize:
            frames += 1
        elif kind == _DONE:
            done = json.loads(payload)
        else:
            why = why or f"record {kind!r} of {len(payload)} bytes is not expected"
            break
        position = after
    rest = size - position
    torn = rest == 0 or (
        why == _CUT_OFF and (rest < _RECORD.size + frame_type.itemsize or content[position : position + 4] == _DONE)
    )
    record_type = np.dtype([("record", "V", _RECORD.size), ("frame", frame_type)])
    records: Any = np.frombuffer(content, dtype=record_type, count=frames, offset=first)
    return JournalContent(
        head=head,
        frames=frames,
        data={key: records["frame"][key] for key, _, _ in head["layout"]},
        done=done,
        torn_bytes=rest if torn else 0,
        damage=None if torn else f"at byte {position} of {size}: {why or 'data after the end'}",
    )


def _record(kind: bytes, payload: bytes) -> bytes:
    return _RECORD.pack(kind, len(payload), zlib.crc32(payload, zlib.crc32(kind))) + payload


def _next(content: mmap.mmap, position: int) -> tuple[bytes, bytes, int, str | None]:
    """Return kind, payload, end and, where the record is not whole, kind ``b""`` and the reason."""
    if position + _RECORD.size > len(content):
        return b"", b"", position, _CUT_OFF
    kind, length, checksum = _RECORD.unpack_from(content, position)
    start = position + _RECORD.size
    if start + length > len(content):
        return b"", b"", position, _CUT_OFF
    payload = content[start : start + length]
    if zlib.crc32(payload, zlib.crc32(kind)) != checksum:
        return b"", b"", position, "the checksum does not match"
    return kind, payload, start + length, None
