"""Finding damage in an episode store: every byte is read, and whatever is wrong is named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from robolearn.core.errors import RefusedError
from robolearn.data import folder
from robolearn.data.disk import being_written, refusal
from robolearn.data.episode_file import EpisodeFile, file_sha256
from robolearn.data.folder import EPISODES, HEADER_NAME, UNFINISHED
from robolearn.data.header import StoreHeader, unseal
from robolearn.data.journal import read_journal
from robolearn.data.json_file import read_bounded
from robolearn.data.manifest import MANIFEST_NAME, Entry, Manifest, read_manifest


class Fault(StrEnum):
    """What can be wrong with a store."""

    HEADER = "header"
    """``store.json`` is missing or differs from what was written."""
    MANIFEST = "manifest"
    """The manifest is missing, a line is torn or damaged, or a line disagrees with its episode's file."""
    MISSING = "missing-episode"
    """A finished episode's file is gone."""
    DAMAGED = "damaged-episode"
    """An episode's file differs from what was written, or holds something that the store does not allow."""
    UNLISTED = "unlisted-episode"
    """A sound episode is not in the manifest: the writer was killed between the two, or the line was lost."""
    UNFINISHED = "unfinished-episode"
    """A killed recording waits to be stored."""
    TORN_JOURNAL = "torn-journal"
    """So does this one, and its last record was cut off."""
    DAMAGED_JOURNAL = "damaged-journal"
    """A journal cannot be read to its end."""
    LEFTOVER = "leftover"
    """A file that a killed writer left, or that does not belong here."""


@dataclass(frozen=True)
class Problem:
    """One fault, in one file."""

    fault: Fault
    file: str
    """Relative to the store."""
    message: str


@dataclass(frozen=True)
class Report:
    """Result of :func:`verify`."""

    path: Path
    episodes: int
    """Finished episodes that are entirely sound."""
    steps: int
    """Steps in them."""
    being_written: bool
    """A writer is at work; its unfinished episode is no fault and was not looked at."""
    problems: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def verify(path: Path | str) -> Report:
    """Read every byte of a store and name everything that is wrong with it; ``quarantine/`` is not looked at.

    Raises:
        RefusedError: there is no store, or a file cannot be read at all.
    """
    path = Path(path)
    try:
        return _verify(path)
    except OSError as error:
        raise refusal(error, f"Cannot verify {path}") from error


def _verify(path: Path) -> Report:
    busy = being_written(path)
    header, problems = find_header(path)
    entries: dict[int, Entry] = {}
    if header is not None:
        manifest = read_manifest(path / MANIFEST_NAME)
        problems += _manifest_problems(path, manifest)
        for number, file in folder.episode_files(path).items():
            entry, problem = check_episode(file, header, manifest.entries.get(number))
            if entry is not None:
                entries[number] = entry
            # A writer at work lists an episode an instant after it gives the file its name.
            if problem is not None and not (busy and problem.fault is Fault.UNLISTED):
                problems.append(problem)
    if not busy:
        problems += [*_journal_problems(path), *(Problem(Fault.LEFTOVER, *_named(path, file)) for file in leftovers(path))]
    return Report(path, len(entries), sum(e.length for e in entries.values()), busy, tuple(problems))


def find_header(path: Path) -> tuple[StoreHeader | None, list[Problem]]:
    """Return the header, if need be as an episode remembers it."""
    file = path / HEADER_NAME
    if not file.exists() and not (path / EPISODES).is_dir():
        raise RefusedError(f"No episode store at {path}: it has neither {HEADER_NAME} nor {EPISODES}/.")
    try:
        return unseal(read_bounded(file), where=file), []
    except FileNotFoundError:
        return _remembered_header(path), [Problem(Fault.HEADER, HEADER_NAME, "The file is missing.")]
    except RefusedError as error:
        return _remembered_header(path), [Problem(Fault.HEADER, HEADER_NAME, str(error))]


def _remembered_header(path: Path) -> StoreHeader | None:
    """Return the header that the first readable episode or journal carries."""
    for file in folder.episode_files(path).values():
        try:
            episode = EpisodeFile(file)
            own = StoreHeader.from_json(episode.attributes.get("store", {}))
            episode.close()
            folder.inspect_episode(file, own)
        except RefusedError:
            continue
        return own
    for file in folder.journals(path).values():
        try:
            return StoreHeader.from_json(read_journal(file).head["store"])
        except (RefusedError, KeyError):
            continue
    return None


def _manifest_problems(path: Path, manifest: Manifest) -> list[Problem]:
    problems = [Problem(Fault.MANIFEST, MANIFEST_NAME, f"Line {line} is torn or damaged.") for line in manifest.bad_lines]
    if not (path / MANIFEST_NAME).exists() and folder.episode_files(path):
        problems.append(Problem(Fault.MANIFEST, MANIFEST_NAME, "The file is missing."))
    for number in folder.missing_numbers(path, manifest):
        file = folder.episode_path(path, number)
        known = manifest.entries.get(number)
        what = f"it had {known.length} steps, success {known.success}" if known else "the manifest does not know it either"
        problems.append(Problem(Fault.MISSING, relative(path, file), f"Episode {number} is gone; {what}."))
    return problems


def check_episode(file: Path, header: StoreHeader, listed: Entry | None) -> tuple[Entry | None, Problem | None]:
    """Return the entry of a file that is sound itself, and what is wrong with the file or its manifest line."""
    name = f"{EPISODES}/{file.name}"
    found_sha256 = file_sha256(file)  # a file that cannot be read at all is no damage: the error goes up
    altered = listed is not None and found_sha256 != listed.file_sha256
    try:
        found = folder.inspect_episode(file, header)
    except RefusedError as error:
        return None, Problem(Fault.DAMAGED, name, str(error))
    if listed is None:
        return found, Problem(Fault.UNLISTED, name, "A sound episode is not in the manifest.")
    if altered and found.content_sha256 == listed.content_sha256:
        return None, Problem(Fault.DAMAGED, name, "The file's SHA-256 differs from the manifest's; its content is whole.")
    if altered:
        return None, Problem(Fault.DAMAGED, name, "The file's SHA-256 and its content differ from the manifest's.")
    if found != listed:
        differing = [key for key, value in vars(found).items() if value != vars(listed)[key]]
        return found, Problem(Fault.MANIFEST, name, f"The manifest disagrees with the file about {', '.join(differing)}.")
    return found, None


def _journal_problems(path: Path) -> Iterator[Problem]:
    finished = folder.episode_files(path)
    for number, file in folder.journals(path).items():
        name = relative(path, file)
        if number in finished:
            yield Problem(Fault.LEFTOVER, name, f"The journal of episode {number}, which is finished.")
            continue
        try:
            content = read_journal(file)
        except RefusedError as error:
            yield Problem(Fault.DAMAGED_JOURNAL, name, str(error))
            continue
        kept = f"{content.frames} steps can be recovered"
        if content.damage is not None:
            yield Problem(Fault.DAMAGED_JOURNAL, name, f"Damaged {content.damage}; {kept}.")
        elif content.torn_bytes:
            yield Problem(Fault.TORN_JOURNAL, name, f"The last record was cut off after {content.torn_bytes} bytes; {kept}.")
        else:
            yield Problem(Fault.UNFINISHED, name, f"A recording was not stored; {kept}.")


def leftovers(path: Path) -> list[Path]:
    """Return files that are neither episodes nor journals, and temporary ones."""
    known = {*folder.episode_files(path).values(), *folder.journals(path).values()}
    inside = [file for name in (EPISODES, UNFINISHED) if (path / name).is_dir() for file in sorted((path / name).iterdir())]
    return [file for file in inside if file not in known] + sorted(path.glob(".*.tmp"))


def _named(path: Path, file: Path) -> tuple[str, str]:
    return relative(path, file), "A temporary file of a killed writer." if file.suffix == ".tmp" else "It does not belong here."


def relative(path: Path, file: Path) -> str:
    """Return the name of ``file`` within the store."""
    return str(file.relative_to(path))
