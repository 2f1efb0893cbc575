"""Mending an episode store; nothing is ever deleted, only set aside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from robolearn.core.errors import RefusedError
from robolearn.core.types import Episode
from robolearn.data import folder
from robolearn.data.disk import WriterLock, refusal, write_whole
from robolearn.data.episode_file import EpisodeFile, read_episode_file
from robolearn.data.folder import HEADER_NAME
from robolearn.data.header import StoreHeader, seal, unseal
from robolearn.data.manifest import MANIFEST_NAME, Entry, Gone, Manifest, manifest_bytes, read_manifest
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import Fault, Report, check_episode, find_header, leftovers, relative, verify


@dataclass(frozen=True)
class Repair:
    """Result of :func:`repair`."""

    before: Report
    actions: tuple[str, ...]
    """What was done, one sentence each."""
    after: Report


def repair(path: Path | str) -> Repair:
    """Mend a store: recover unfinished episodes, rebuild header and manifest, move damaged files to ``quarantine/``.

    An episode whose file is damaged but whose content still matches its checksum is written anew.

    Raises:
        RefusedError: there is no store, a writer is at work, the folder cannot be written, or neither the header nor any episode
            says what the store holds.
    """
    path = Path(path)
    before = verify(path)
    lock = WriterLock(path)
    try:
        actions = _repair_header(path) + _repair_episodes(path) + _set_leftovers_aside(path)
    except OSError as error:
        raise refusal(error, f"Cannot repair {path}") from error
    finally:
        lock.release()
    with EpisodeStore.open(path, "a") as store:
        actions += store.recovered
    return Repair(before, tuple(actions), verify(path))


def _repair_header(path: Path) -> list[str]:
    header, problems = find_header(path)
    if not problems:
        return []
    if header is None:
        raise RefusedError(f"{path / HEADER_NAME} is damaged and no episode remembers its content, so nothing can be mended.")
    actions = [f"{HEADER_NAME} was rebuilt from what an episode remembers."]
    if (path / HEADER_NAME).exists():
        actions.append(_set_aside(path, path / HEADER_NAME))
    write_whole(path / HEADER_NAME, seal(header))
    return actions


def _repair_episodes(path: Path) -> list[str]:
    """Set damaged files aside, write anew what is still whole, and rebuild the manifest from what is there."""
    header = unseal((path / HEADER_NAME).read_bytes(), where=path / HEADER_NAME)
    manifest = read_manifest(path / MANIFEST_NAME)
    actions: list[str] = []
    gone = dict(manifest.gone)
    for number in folder.missing_numbers(path, manifest):
        gone[number] = Gone(number, "missing")
        actions.append(f"Episode {number} is lost: its file is gone. The manifest says so now.")
    entries: dict[int, Entry] = {}
    for number, file in folder.episode_files(path).items():
        listed = manifest.entries.get(number)
        entry, problem = check_episode(file, header, listed)
        if problem is not None and problem.fault is Fault.DAMAGED:
            whole = _whole_content(file, header, listed)
            actions.append(_set_aside(path, file))
            if whole is not None:
                entry = folder.commit_episode(path, header, number, whole)
                actions.append(f"Episode {number} was written anew; its content had not changed.")
        elif problem is not None:
            actions.append(f"{problem.file}: the manifest's line was rebuilt from the file.")
        if entry is None:
            gone[number] = Gone(number, "damaged")
        else:
            entries[number] = entry
            gone.pop(number, None)
    content = manifest_bytes(Manifest(entries, gone, ()))
    file = path / MANIFEST_NAME
    if (file.read_bytes() if file.exists() else b"") != content:
        if manifest.bad_lines:
            actions.append(_set_aside(path, file))
        write_whole(file, content)
        actions.append(f"{MANIFEST_NAME} was rebuilt.")
    return actions


def _whole_content(file: Path, header: StoreHeader, listed: Entry | None) -> Episode | None:
    """Return the episode in a damaged file if it still is what was written."""
    try:
        found = folder.inspect_episode(file, header)
        if listed is None or found.content_sha256 != listed.content_sha256:
            return None
        episode = EpisodeFile(file)
        try:
            return read_episode_file(episode, list(header.streams))
        finally:
            episode.close()
    except RefusedError:
        return None


def _set_leftovers_aside(path: Path) -> list[str]:
    return [_set_aside(path, file) for file in leftovers(path)]


def _set_aside(path: Path, file: Path) -> str:
    name = relative(path, file)
    return f"{name} was moved to {relative(path, folder.quarantine(path, file))}."
