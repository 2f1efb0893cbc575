"""What lies in the folder of an episode store, and the few operations that change it."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from robolearn.core.errors import RefusedError
from robolearn.core.types import Episode
from robolearn.data.disk import refusal, sync_folder, temporary_name
from robolearn.data.episode_file import EpisodeFile, check_streams, content_sha256, file_sha256, write_episode_file
from robolearn.data.header import FORMAT, VERSION, StoreHeader
from robolearn.data.journal import JournalContent
from robolearn.data.manifest import MANIFEST_NAME, Entry, Manifest, append_entry, read_manifest

HEADER_NAME = "store.json"
EPISODES, UNFINISHED, QUARANTINE = "episodes", "unfinished", "quarantine"
INTERRUPTED = "interrupted"
"""Outcome of an episode whose recorder never said how it ended."""

_EPISODE_NAME = re.compile(r"(\d{6,})\.zarr\.zip")
_JOURNAL_NAME = re.compile(r"(\d{6,})\.journal")
_QUARANTINE_NAME = re.compile(r"(\d{6,})\.(?:zarr\.zip|journal)(?:\.\d+)?")


def episode_path(store: Path, number: int) -> Path:
    """Return where the finished episode ``number`` lies."""
    return store / EPISODES / f"{number:06d}.zarr.zip"


def journal_path(store: Path, number: int) -> Path:
    """Return where the journal of episode ``number`` lies while it is recorded."""
    return store / UNFINISHED / f"{number:06d}.journal"


def episode_files(store: Path) -> dict[int, Path]:
    """Return the finished episodes' files by number."""
    return _numbered(store / EPISODES, _EPISODE_NAME)


def journals(store: Path) -> dict[int, Path]:
    """Return the unfinished episodes' journals by number."""
    return _numbered(store / UNFINISHED, _JOURNAL_NAME)


def remove_temporaries(store: Path) -> None:
    """Remove half-written files of a writer that was killed; only the holder of the writer's lock may.

    They hold nothing that was acknowledged: a finished episode and a journal have their names, and all of their content.
    """
    for path in (path for name in (EPISODES, UNFINISHED) for path in (store / name).glob(".*.tmp")):
        whole = path.name.removeprefix(".").removesuffix(".tmp")
        if _EPISODE_NAME.fullmatch(whole) or _JOURNAL_NAME.fullmatch(whole):
            path.unlink()


def next_number(store: Path, manifest: Manifest) -> int:
    """Return a number that no episode of the store ever had."""
    used = {
        *manifest.entries,
        *manifest.gone,
        *episode_files(store),
        *journals(store),
        *_numbered(store / QUARANTINE, _QUARANTINE_NAME),
    }
    return max(used, default=-1) + 1


def missing_numbers(store: Path, manifest: Manifest) -> list[int]:
    """Return the numbers of episodes that were finished and whose files are nowhere."""
    pending = {*journals(store), *_numbered(store / QUARANTINE, _QUARANTINE_NAME)}
    present = set(episode_files(store))
    known = present | set(manifest.entries) | set(manifest.gone)
    gaps = set(range(max(known, default=-1) + 1)) - known - pending
    return sorted((set(manifest.entries) - present) | gaps)


def load_manifest(store: Path, header: StoreHeader) -> Manifest:
    """Read the manifest and complete it from the files that it does not list.

    Raises:
        RefusedError: an episode is missing or truncated, or one that is not listed is damaged; each is named.
    """
    try:
        manifest = read_manifest(store / MANIFEST_NAME)
        lost = missing_numbers(store, manifest)
        if lost:
            names = ", ".join(episode_path(store, n).name for n in lost)
            raise RefusedError(f"{store}: {names} missing from {EPISODES}/. `robolearn data repair` makes the rest usable.")
        entries = dict(manifest.entries)
        for number, path in episode_files(store).items():
            if number not in entries:
                entries[number] = inspect_episode(path, header)
            elif path.stat().st_size != entries[number].file_bytes:
                raise RefusedError(
                    f"Episode file {path} is truncated or changed: {path.stat().st_size} bytes instead of "
                    f"{entries[number].file_bytes}. `robolearn data repair` sets it aside and makes the rest usable."
                )
    except OSError as error:
        raise refusal(error, f"Cannot read episode store {store}") from error
    return Manifest(entries, manifest.gone, manifest.bad_lines)


def inspect_episode(path: Path, header: StoreHeader) -> Entry:
    """Decode all of an episode file, check it against itself and the store, and return its manifest entry.

    Raises:
        RefusedError: names what is wrong.
    """
    file = EpisodeFile(path)
    try:
        facts = file.attributes.get("episode")
        own = StoreHeader.from_json(file.attributes.get("store", {}))
        if not isinstance(facts, dict) or file.attributes.get("format") != FORMAT or file.attributes.get("version") != VERSION:
            raise RefusedError(f"{path} is not an episode of format {FORMAT!r} version {VERSION}.")
        header.require_same(own, what=f"The store of {path}")
        data = {key: file.stream(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        length = check_streams(data, header.streams, where=str(path))
        said = {key: facts[key] for key in ("success", "seed", "metadata")}
        content = content_sha256(data, said)
        if content != facts["content_sha256"] or length != facts["length"]:
            raise RefusedError(f"Episode file {path} is damaged: its content does not match the checksum in it.")
        number = int(path.name.split(".")[0])
        return Entry(number, path.stat().st_size, file_sha256(path), content, length, **said)
    except RefusedError:
        raise
    except Exception as error:
        raise RefusedError(f"Episode file {path} is damaged: {str(error) or type(error).__name__}.") from error
    finally:
        file.close()


def check_facts(header: StoreHeader, episode: Episode, *, where: str) -> dict[str, Any]:
    """Return success, seed and metadata as they are stored; the outcome is named if the metadata do not name it.

    Raises:
        RefusedError: the metadata contradict the store, or a value is not JSON.
    """
    metadata = {"outcome": "success" if episode.success else "failure", **episode.metadata}
    for name in ("task", "fidelity"):
        if name in metadata and metadata[name] != getattr(header, name):
            raise RefusedError(f"{where}: {name} is {metadata[name]!r}, the store keeps {getattr(header, name)!r}.")
    for name, value in metadata.items():
        try:
            metadata[name] = json.loads(json.dumps(value, allow_nan=False))  # as it will be read back: tuples are lists
        except (TypeError, ValueError) as error:
            raise RefusedError(f"{where}: metadata {name!r} cannot be written as JSON: {error}.") from error
    seed = None if episode.seed is None else int(episode.seed)
    return {"success": bool(episode.success), "seed": seed, "metadata": metadata}


def commit_episode(store: Path, header: StoreHeader, number: int, episode: Episode) -> Entry:
    """Make ``episode`` a finished one; when this returns it is durable, and when it raises the store is as it was.

    Raises:
        RefusedError: the episode does not fit the store, or the disk is full or read-only.
    """
    where = f"Episode {number} for {store}"
    length = check_streams(episode.data, header.streams, where=where)
    said = check_facts(header, episode, where=where)
    content = content_sha256(episode.data, said)
    attributes = {
        "format": FORMAT,
        "version": VERSION,
        "episode": {"length": length, **said, "content_sha256": content},
        "store": header.to_json(),
    }
    path = episode_path(store, number)
    temporary = temporary_name(path)
    try:
        write_episode_file(temporary, episode.data, attributes)
        entry = Entry(number, temporary.stat().st_size, file_sha256(temporary), content, length, **said)
        temporary.rename(path)
        sync_folder(path.parent)
        append_entry(store / MANIFEST_NAME, entry)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        raise refusal(error, f"{where} was not stored, the store is as it was") from error
    except BaseException:
        # Interrupted: once the file has its name the episode is finished, and opening the store completes the manifest.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return entry


def episode_from_journal(content: JournalContent) -> Episode:
    """Return the steps of a journal as an episode: as it was ended, or ``interrupted`` if nobody ended it."""
    done: Mapping[str, Any] = content.done or {"success": False, "metadata": {"outcome": INTERRUPTED}}
    metadata = {**content.head["metadata"], **done["metadata"]}
    return Episode(content.data, success=done["success"], seed=content.head["seed"], metadata=metadata)


def quarantine(store: Path, path: Path) -> Path:
    """Move a file out of the way without deleting anything and return its new place."""
    folder = store / QUARANTINE
    folder.mkdir(exist_ok=True)
    place = folder / path.name.lstrip(".")
    copies = 0
    while place.exists():
        copies += 1
        place = folder / f"{path.name.lstrip('.')}.{copies}"
    path.rename(place)
    sync_folder(folder)
    sync_folder(path.parent)
    return place


def _numbered(folder: Path, pattern: re.Pattern[str]) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    matches = [(pattern.fullmatch(p.name), p) for p in sorted(folder.iterdir())]
    return {int(m[1]): p for m, p in matches if m}
