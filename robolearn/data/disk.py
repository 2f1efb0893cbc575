"""Writing so that a crash, a kill or a full disk never leaves half a file under a final name."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
from pathlib import Path

from robolearn.core.errors import RefusedError

LOCK_NAME = "writer.lock"

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the allowed file size",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "the folder may not be written (permission denied)",
    errno.EPERM: "the folder may not be written (operation not permitted)",
    errno.ENOENT: "it does not exist",
}


def refusal(error: OSError, doing: str) -> RefusedError:
    """Return the named refusal for a failed file operation; ``doing`` says what was tried and what is still safe."""
    reason = _REASONS.get(error.errno or 0, error.strerror or str(error))
    return RefusedError(f"{doing}: {reason}.")


def sync_folder(folder: Path) -> None:
    """Make renames, new names and removals in ``folder`` survive a power loss."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_name(path: Path) -> Path:
    """Return what a file is called, in the same folder, until it is whole."""
    return path.with_name(f".{path.name}.tmp")


def write_all(descriptor: int, content: bytes) -> None:
    """Write every byte to an open file; an ``OSError`` may leave a part of them behind."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def write_whole(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``: a reader sees the old file or the whole new one, also after a power loss.

    Raises:
        OSError: nothing was replaced and no temporary file is left.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def give_way() -> None:
    """Let the threads that record go before the calling one, which only stores what they have recorded already.

    Linux keeps a niceness per thread; where it cannot be set, nothing happens.
    """
    with contextlib.suppress(OSError):
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, min(19, os.getpriority(os.PRIO_PROCESS, thread) + 5))


class WriterLock:
    """The right to write to a store; held by one process at a time and freed by the kernel however that process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock of ``folder``.

        Raises:
            RefusedError: another writer holds it (its process id is named) or the folder cannot be written.
        """
        path = folder / LOCK_NAME
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise refusal(error, f"Cannot open {folder} for writing") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(self._descriptor, 200, 0).decode(errors="replace").strip()
            os.close(self._descriptor)
            raise RefusedError(f"{folder} is being written by {holder or 'another process'}; one writer at a time.") from error
        # On a full disk the note about who holds the lock may fail; the lock itself does not depend on it.
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"pid {os.getpid()} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def being_written(folder: Path) -> bool:
    """Return whether some process holds the writer lock of ``folder``."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
