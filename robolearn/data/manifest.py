"""The list of finished episodes: one line each, so that a store of thousands opens without opening thousands of files.

The list is derived: a lost or damaged line is rebuilt from the episode's file, which carries everything itself.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robolearn.data.disk import write_all

MANIFEST_NAME = "manifest.jsonl"


@dataclass(frozen=True)
class Entry:
    """What the manifest knows of one episode file."""

    number: int
    """Number in the file's name; never used twice in a store."""
    file_bytes: int
    file_sha256: str
    content_sha256: str
    """Hash of the decoded streams and facts; see :func:`robolearn.data.episode_file.content_sha256`."""
    length: int
    """Steps."""
    success: bool
    seed: int | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Gone:
    """A number whose episode was lost or quarantined; kept so that a gap that was seen and dealt with is told from a new loss."""

    number: int
    reason: str


@dataclass(frozen=True)
class Manifest:
    """Content of a manifest file."""

    entries: dict[int, Entry]
    gone: dict[int, Gone]
    bad_lines: tuple[int, ...]
    """Line numbers (from 1) that are torn or damaged."""


def to_line(record: Entry | Gone) -> bytes:
    """Return the manifest line of a record, with its own CRC-32."""
    kind = "episode" if isinstance(record, Entry) else "gone"
    body = json.dumps({kind: {**vars(record)}}, allow_nan=False)
    return f'{{"crc32": "{zlib.crc32(body.encode()):08x}", {body[1:]}\n'.encode("ascii")


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; a missing file is an empty one, and bad lines are counted, not trusted."""
    entries: dict[int, Entry] = {}
    gone: dict[int, Gone] = {}
    bad: list[int] = []
    content = path.read_bytes() if path.exists() else b""
    for line_number, line in enumerate(content.splitlines(keepends=True), start=1):
        record = _parse(line)
        if isinstance(record, Entry):
            entries[record.number] = record
        elif isinstance(record, Gone):
            gone[record.number] = record
        else:
            bad.append(line_number)
    return Manifest(entries, gone, tuple(bad))


def append_entry(path: Path, entry: Entry) -> None:
    """Append one line durably.

    Raises:
        OSError: the file is as it was before.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        before = os.lseek(descriptor, 0, os.SEEK_END)
        try:
            write_all(descriptor, to_line(entry))
            os.fsync(descriptor)
        except BaseException:
            os.ftruncate(descriptor, before)
            raise
    finally:
        os.close(descriptor)


def manifest_bytes(manifest: Manifest) -> bytes:
    """Return the whole file for :func:`robolearn.data.disk.write_whole`."""
    numbers = sorted(set(manifest.entries) | set(manifest.gone))
    return b"".join(to_line(manifest.entries.get(n) or manifest.gone[n]) for n in numbers)


def _parse(line: bytes) -> Entry | Gone | None:
    try:
        body = json.loads(line)
        record = Entry(**body["episode"]) if "episode" in body else Gone(**body["gone"])
        return record if to_line(record) == line else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
