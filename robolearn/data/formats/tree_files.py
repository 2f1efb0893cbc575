"""A tree of files in a folder or a ZIP, looked through before anything in it is read: no links, no names that lead out."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from robolearn.core.errors import RefusedError
from robolearn.data.formats import exchange

_MAX_FILES = 10_000_000


class TreeFiles(Protocol):
    """The tree, in a folder or a ZIP."""

    def sizes(self) -> dict[str, int]:
        """Return the size in bytes of every file by name; refuse what leads out of the tree."""

    def read(self, name: str, limit: int | None = None) -> bytes:
        """Return a file's bytes, or the first ``limit`` of them."""


class FolderFiles:
    """A tree in a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def sizes(self) -> dict[str, int]:
        """See :class:`TreeFiles`."""
        found: dict[str, int] = {}
        for file in self._root.rglob("*"):
            if file.is_symlink():
                raise RefusedError(f"{file} is a link; a zarr folder holds none.")
            if file.is_file():
                found[file.relative_to(self._root).as_posix()] = file.stat().st_size
            if len(found) > _MAX_FILES:
                raise RefusedError(f"{self._root} holds more than {_MAX_FILES} files.")
        return found

    def read(self, name: str, limit: int | None = None) -> bytes:
        """See :class:`TreeFiles`."""
        with (self._root / name).open("rb") as stream:
            return stream.read(-1 if limit is None else limit)


class ZipFiles:
    """A tree in a ZIP."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise RefusedError(f"{path} is truncated, damaged or no ZIP file: {error}.") from error

    def sizes(self) -> dict[str, int]:
        """See :class:`TreeFiles`."""
        found: dict[str, int] = {}
        for info in self._zip.infolist():
            parts = PurePosixPath(info.filename).parts
            if info.filename.startswith("/") or ".." in parts or "\\" in info.filename:
                raise RefusedError(f"{self._path} holds the name {info.filename!r}, which leads out of it.")
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise RefusedError(f"{self._path}: {info.filename} is a link; a zarr file holds none.")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise RefusedError(
                    f"{self._path}: {info.filename} is packed by method {info.compress_type}; stored or deflated is read."
                )
            if info.is_dir():
                continue
            # zarr itself writes group descriptions anew whenever they change, and a ZIP keeps both.
            if info.filename in found and parts[-1] not in (".zgroup", ".zattrs", ".zmetadata"):
                raise RefusedError(f"{self._path} names {info.filename!r} twice.")
            exchange.require_plausible(info.file_size, info.compress_size, where=f"{self._path}: {info.filename}")
            found[info.filename] = info.file_size
        return found

    def read(self, name: str, limit: int | None = None) -> bytes:
        """See :class:`TreeFiles`."""
        with self._zip.open(name) as stream:
            return stream.read(-1 if limit is None else limit)

    def close(self) -> None:
        """Close the file."""
        self._zip.close()
