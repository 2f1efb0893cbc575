"""The episode store: a folder of finished episodes that no crash, kill or full disk can take back.

    store.json                     what all episodes share (header.py)
    manifest.jsonl                 one checksummed line per episode (manifest.py)
    episodes/000000.zarr.zip       one immutable file per finished episode (episode_file.py)
    unfinished/000001.journal      the episode that is being recorded (journal.py)
    quarantine/                    what `repair` took out; never deleted
    writer.lock                    held by the one writer

An episode is finished once its file has its final name: it is written under another name, synced, renamed, and the folder is
synced. The manifest follows; where it lags behind or is damaged, its line is rebuilt from the file.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array, Episode, FeatureSpec, Spaces
from robolearn.data import folder
from robolearn.data.disk import LOCK_NAME, WriterLock, give_way, refusal, sync_folder, write_whole
from robolearn.data.episode_file import EpisodeFile, check_streams, read_episode_file
from robolearn.data.folder import EPISODES, HEADER_NAME, UNFINISHED
from robolearn.data.header import T_WALL, StoreHeader, seal, standard_extra, unseal
from robolearn.data.journal import JournalWriter, read_journal
from robolearn.data.json_file import read_bounded
from robolearn.data.manifest import MANIFEST_NAME, Entry, Gone, Manifest, manifest_bytes
from robolearn.data.recording import Annotate, Recording

OPEN_FILES = 128
"""Episode files kept open for reading rows."""


class EpisodeStore:
    """Finished episodes by position ``0 .. len(store) - 1``, failures included; one writer, any number of readers.

    A reader sees the episodes that were finished when it opened the store.
    """

    def __init__(self, path: Path, header: StoreHeader, *, lock: WriterLock | None) -> None:
        """Not called directly: use :meth:`create` or :meth:`open`."""
        self.path = path
        self.header = header
        self._lock = lock
        self._recording: Recording | None = None
        self._background: ThreadPoolExecutor | None = None
        self._changing = threading.RLock()
        self._files: OrderedDict[int, EpisodeFile] = OrderedDict()
        self._manifest = folder.load_manifest(path, header)
        self._entries: list[Entry] = []
        self._sort_entries()
        self._next_number = folder.next_number(path, self._manifest)
        self.recovered: tuple[str, ...] = ()
        """What opening for appending rescued from a writer that was killed, in words."""
        if lock:
            self._heal_folder()
            self.recovered = tuple(self._recover_journals())

    @classmethod
    def create(
        cls,
        path: Path | str,
        spaces: Spaces,
        *,
        task: str,
        fidelity: str,
        extra: Mapping[str, FeatureSpec] | None = None,
        provenance: Mapping[str, object] | None = None,
    ) -> EpisodeStore:
        """Make an empty store, open for appending.

        Args:
            path: a folder that is missing or empty.
            spaces: what the episodes observe and command.
            task: name of the task.
            fidelity: how the world was simulated, or ``real``.
            extra: streams beside observations and ``action``; :func:`standard_extra` by default.
            provenance: JSON facts about the making of the store.

        Raises:
            RefusedError: the folder holds something already or cannot be written.
        """
        path = Path(path)
        header = StoreHeader(spaces, task, fidelity, standard_extra(spaces) if extra is None else extra, provenance or {})
        try:
            content = seal(header)
        except (TypeError, ValueError) as error:
            raise RefusedError(f"The description of {path} cannot be written as JSON: {error}.") from error
        # A creation that was killed leaves only these behind and may be tried again.
        begun = {LOCK_NAME, EPISODES, UNFINISHED, f".{HEADER_NAME}.tmp"}
        if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - begun):
            raise RefusedError(f"{path} exists and is not empty; a new episode store needs a folder of its own.")
        try:
            for folder in (EPISODES, UNFINISHED):
                (path / folder).mkdir(parents=True, exist_ok=True)
            lock = WriterLock(path)
        except OSError as error:
            raise refusal(error, f"Cannot create an episode store at {path}") from error
        try:
            if (path / HEADER_NAME).exists():
                raise RefusedError(f"{path} became an episode store in this instant; another process made it.")
            write_whole(path / HEADER_NAME, content)
            sync_folder(path.parent)
            return cls(path, header, lock=lock)
        except BaseException as error:
            lock.release()
            if isinstance(error, OSError):
                raise refusal(error, f"Cannot create an episode store at {path}") from error
            raise

    @classmethod
    def open(
        cls,
        path: Path | str,
        mode: Literal["r", "a"] = "r",
        *,
        spaces: Spaces | None = None,
        task: str | None = None,
        fidelity: str | None = None,
    ) -> EpisodeStore:
        """Open an existing store; opening for appending first recovers what an earlier writer left unfinished.

        Args:
            path: the store's folder.
            mode: ``r`` reads, ``a`` reads and appends.
            spaces: refuse the store if its spaces differ; not compared where None.
            task: refuse the store if its task differs.
            fidelity: refuse the store if its fidelity differs.

        Raises:
            RefusedError: no store there, an episode is missing or truncated, another writer is at work, the store differs from
                what is expected, or (``a``) the folder cannot be written.
        """
        path = Path(path)
        if mode not in ("r", "a"):
            raise RefusedError(f"{mode=} must be 'r' or 'a'.")
        try:
            content = read_bounded(path / HEADER_NAME)
        except OSError as error:
            raise refusal(error, f"No episode store at {path}: cannot read {HEADER_NAME}") from error
        header = unseal(content, where=path / HEADER_NAME)
        expected = StoreHeader(spaces or header.spaces, task or header.task, fidelity or header.fidelity, header.extra)
        header.require_same(expected, what=f"Episode store {path}")
        lock = WriterLock(path) if mode == "a" else None
        try:
            return cls(path, header, lock=lock)
        except BaseException:
            if lock:
                lock.release()
            raise

    def append(self, episode: Episode) -> int:
        """Store a whole episode and return its position; when this returns it is durable.

        Raises:
            RefusedError: a stream is missing, unknown, misshapen, of another dtype or not finite; the metadata contradict the
                store or are not JSON; the disk is full; the store is open for reading. The store is as it was before.
        """
        self._require_writable()
        return self._commit(self._free_number(), episode)

    def record(
        self, metadata: Mapping[str, Any] | None = None, *, seed: int | None = None, flush_interval_s: float = 0.5
    ) -> Recording:
        """Start recording an episode step by step.

        Args:
            metadata: JSON facts known at the start, such as ``operator``.
            seed: of the initial state, where the world is simulated.
            flush_interval_s: how long a frame may wait before it is synced to disk.

        Raises:
            RefusedError: as :meth:`append`; also where the store keeps no ``t_wall`` stream.
        """
        self._require_writable()
        if T_WALL not in self.header.extra:
            raise RefusedError(f"{self.path} keeps no {T_WALL!r} stream, so nothing can be recorded into it live.")
        number = self._free_number()
        begun = Episode({}, success=False, seed=seed, metadata=metadata or {})
        facts = folder.check_facts(self.header, begun, where=f"Episode {number} for {self.path}")
        path = folder.journal_path(self.path, number)
        head = {"number": number, "seed": facts["seed"], "metadata": dict(begun.metadata), "store": self.header.to_json()}
        try:
            journal = JournalWriter(path, head, self.header.streams)
        except OSError as error:
            raise refusal(error, f"Cannot start recording into {self.path}") from error
        self._recording = Recording(
            journal,
            self.header.streams,
            store=lambda annotate: self._commit_journal(number, annotate),
            later=self._later,
            flush_interval_s=flush_interval_s,
        )
        return self._recording

    def withdraw(self, index: int, *, reason: str) -> Path:
        """Take an episode out of the store and return where its file lies now: in ``quarantine/``. Later positions move up.

        Raises:
            RefusedError: no such episode, or the store cannot be written.
        """
        self._require_writable()
        with self._changing:
            number = self._entry(index).number
            if number in self._files:
                self._files.pop(number).close()
            gone = Gone(number, reason)
            entries = {n: e for n, e in self._manifest.entries.items() if n != number}
            manifest = Manifest(entries, {**self._manifest.gone, number: gone}, ())
            try:
                # The manifest first: a kill in between leaves an unlisted file, which is a finished episode as before.
                write_whole(self.path / MANIFEST_NAME, manifest_bytes(manifest))
                place = folder.quarantine(self.path, folder.episode_path(self.path, number))
            except OSError as error:
                raise refusal(error, f"Episode {index} of {self.path} was not withdrawn") from error
            self._manifest = manifest
            self._sort_entries()
        return place

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def lengths(self) -> Array:
        """(n,) int64 steps of each episode."""
        return np.array([entry.length for entry in self._entries], dtype=np.int64)

    @property
    def successes(self) -> Array:
        """(n,) bool, which episodes solved the task."""
        return np.array([entry.success for entry in self._entries], dtype=bool)

    def metadata(self, index: int) -> dict[str, Any]:
        """Return what is known of the episode at a position: its facts, ``seed``, ``success``, ``length`` and file ``number``."""
        entry = self._entry(index)
        own = {"seed": entry.seed, "success": entry.success, "length": entry.length, "number": entry.number}
        return {**entry.metadata, **own}

    def unseen_seed(self, first: int) -> int:
        """Return the first seed from ``first`` on that lies behind those of all episodes, also where some were set aside."""
        return max([first, *(entry.seed + 1 for entry in self._entries if entry.seed is not None)])

    def read(self, index: int, keys: Sequence[str] | None = None) -> Episode:
        """Decode an episode.

        Args:
            index: position in the store.
            keys: streams wanted; all by default.

        Raises:
            RefusedError: no such episode or stream, or its file is damaged.
        """
        return read_episode_file(self._file(index), list(self.header.streams) if keys is None else list(keys))

    def read_rows(self, index: int, key: str, start: int, stop: int) -> Array:
        """Return steps ``start`` to ``stop`` (exclusive) of one stream, decoding only the chunks that hold them.

        Raises:
            RefusedError: no such episode, stream or steps, or the file is damaged.
        """
        length = self._entry(index).length
        if not 0 <= start <= stop <= length:
            raise RefusedError(f"Steps [{start}, {stop}) do not lie in episode {index} of {length} steps of {self.path}.")
        return self._file(index).rows(key, start, stop)

    def checksum(self) -> str:
        """Return a hash of all episodes' content, in order, and of the header; it goes into every run's provenance."""
        contents = [entry.content_sha256 for entry in self._entries]
        shared = {k: v for k, v in self.header.to_json().items() if k != "provenance"}
        return hashlib.sha256(json.dumps([shared, contents], sort_keys=True).encode()).hexdigest()

    def close(self) -> None:
        """Close all files; a recording that is still open is kept as interrupted, and what was handed over is stored first."""
        try:
            if self._recording is not None:
                self._recording.__exit__(None, None, None)
        finally:
            if self._background is not None:
                self._background.shutdown()
            for file in self._files.values():
                file.close()
            self._files.clear()
            if self._lock is not None:
                self._lock.release()
                self._lock = None

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _sort_entries(self) -> None:
        """List the manifest's entries by position."""
        self._entries = [self._manifest.entries[n] for n in sorted(self._manifest.entries)]

    def _free_number(self) -> int:
        """Return the next number; those of journals that could not be stored yet, or of an interrupted append, are taken."""
        taken = (folder.journal_path, folder.episode_path)
        while any(path(self.path, self._next_number).exists() for path in taken):
            self._next_number += 1
        return self._next_number

    def _entry(self, index: int) -> Entry:
        if not 0 <= index < len(self):
            raise RefusedError(f"No episode {index} in {self.path}; it holds {len(self)}, counted from 0.")
        return self._entries[index]

    def _file(self, index: int) -> EpisodeFile:
        """Return the opened file of an episode; the files used last stay open."""
        number = self._entry(index).number
        if number not in self._files:
            self._files[number] = EpisodeFile(folder.episode_path(self.path, number))
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(number)
        return self._files[number]

    def _require_writable(self) -> None:
        if self._lock is None:
            raise RefusedError(f"{self.path} is open for reading only or closed; open it with mode 'a' to append.")
        if self._recording is not None and self._recording.open:
            raise RefusedError(f"{self.path}: an episode is being recorded; finish or discard it first.")

    def _later(self, function: Callable[[], int]) -> Future[int]:
        """Run a function after those before it, in a thread of the store's own."""
        if self._background is None:
            self._background = ThreadPoolExecutor(1, thread_name_prefix="robolearn-store", initializer=give_way)
        return self._background.submit(function)

    def _commit(self, number: int, episode: Episode) -> int:
        entry = folder.commit_episode(self.path, self.header, number, episode)
        with self._changing:
            self._manifest.entries[number] = entry
            self._sort_entries()
            self._next_number = max(self._next_number, number + 1)
            return self._entries.index(entry)

    def _commit_journal(self, number: int, annotate: Annotate | None = None) -> int:
        path = folder.journal_path(self.path, number)
        try:
            episode = folder.episode_from_journal(read_journal(path))
            if annotate is not None:
                episode = replace(episode, metadata={**episode.metadata, **annotate(episode)})
            index = self._commit(number, episode)
        except RefusedError as error:
            raise RefusedError(f"{error} Its frames are kept in {path}; opening the store for appending stores them.") from error
        path.unlink()
        return index

    def _heal_folder(self) -> None:
        """Rewrite a manifest that a kill cut off or that lags behind the files; remove files that are half written."""
        path, content = self.path / MANIFEST_NAME, manifest_bytes(self._manifest)
        try:
            for name in (EPISODES, UNFINISHED):  # tools that copy folders may drop empty ones
                (self.path / name).mkdir(exist_ok=True)
            folder.remove_temporaries(self.path)
            if (path.read_bytes() if path.exists() else b"") != content:
                write_whole(path, content)
        except OSError as error:
            raise refusal(error, f"Cannot write to {self.path}") from error

    def _recover_journals(self) -> list[str]:
        """Store what an earlier writer left unfinished; return one sentence for each."""
        done = []
        for number, path in folder.journals(self.path).items():
            if number in self._manifest.entries:
                path.unlink()  # the episode was stored; only the removal of its journal was cut off
                continue
            try:
                content = read_journal(path)
                if content.frames:
                    check_streams(content.data, self.header.streams, where=str(path))
            except RefusedError as error:
                done.append(f"{folder.quarantine(self.path, path)} holds nothing that can be recovered: {error}")
                continue
            if content.frames:
                episode = folder.episode_from_journal(content)
                index = self._commit(number, episode)
                done.append(f"Episode {index}: {content.frames} steps recorded, outcome {episode.metadata['outcome']}.")
            if content.damage is None:
                path.unlink()
            else:
                done.append(f"{folder.quarantine(self.path, path)} is damaged {content.damage}; what came before was stored.")
        return done
