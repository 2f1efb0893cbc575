"""``robolearn data convert``: between the episode store and the formats of other programs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from robolearn.core.errors import RefusedError, nearest
from robolearn.data.convert import STORE, Conversion, export_episodes, find_format, import_episodes, open_any
from robolearn.data.convert import Progress as OnStep
from robolearn.data.formats import formats
from robolearn.data.formats.exchange import ExportOptions, Format, ImportOptions, as_format
from robolearn.deploy import rosbag


def known_formats() -> dict[str, Format]:
    """Return every format beside the store by name."""
    return {**formats(), rosbag.NAME: as_format(rosbag)}


def convert(
    source: Path, target: Path, *, to: str, origin: str | None, unsaid: ImportOptions, how: ExportOptions, replay: bool
) -> None:
    """Convert ``source`` into the new ``target`` and compare what was written, element by element.

    Raises:
        RefusedError: see :mod:`robolearn.data.convert`.
    """
    known = known_formats()
    if to not in (STORE, *known):
        raise RefusedError(f"Format {to!r} is unknown. {nearest(to, [STORE, *known])}")
    console, begun = Console(), time.monotonic()
    episodes = open_any(known, source, origin, unsaid)
    try:
        if replay:
            from robolearn.commands.replay_states import replayed

            episodes = replayed(episodes)
        with progress(console) as on_step:
            if to == STORE:
                done = import_episodes(episodes, target, on_step)
            else:
                done = export_episodes(episodes, known[to], target, how, on_step)
        seconds = done.steps / episodes.header.spaces.control_rate_hz
    finally:
        episodes.close()
    report(done, console)
    form = find_format(known, source, origin)
    taken = time.monotonic() - begun
    console.print(
        f"{form.NAME if form else STORE} to {to}: {taken:.1f} s for {seconds:.1f} s of recording, "
        f"{seconds / taken:.1f} x real time",
        highlight=False,
    )


def report(done: Conversion, console: Console) -> None:
    """Print what was made and what did not fit."""
    for note in done.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)
    kind = "every stream was read back bit for bit" if done.lossless else "read back and compared; pictures are lossy"
    console.print(f"{done.path}: {done.episodes} episodes, {done.steps} steps; {kind}", soft_wrap=True, highlight=False)


@contextmanager
def progress(console: Console) -> Iterator[OnStep]:
    """Show steps per phase while they are done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed} steps"), TimeElapsedColumn())
    bars: dict[str, object] = {}
    with Progress(*columns, console=console, transient=True) as bar:

        def on_step(phase: str, steps: int) -> None:
            if phase not in bars:
                bars[phase] = bar.add_task(phase, total=None)
            bar.update(bars[phase], advance=steps)  # type: ignore[arg-type]

        yield on_step


def list_formats() -> None:
    """Print every format."""
    console = Console()
    console.print(f"{STORE:10} the episode store of robolearn (docs/data-format.md)", highlight=False)
    for name, form in sorted(known_formats().items()):
        console.print(f"{name:10} {form.SUMMARY}", highlight=False)


def import_options(unsaid: ImportOptions, success: str | None) -> ImportOptions:
    """Return the options with a checked ``success``.

    Raises:
        RefusedError: it is not yes, no or reward.
    """
    if success not in (None, "yes", "no", "reward"):
        raise RefusedError(f"--success {success!r} is unknown. {nearest(str(success), ('yes', 'no', 'reward'))}")
    return replace(unsaid, success=success)  # type: ignore[arg-type]
