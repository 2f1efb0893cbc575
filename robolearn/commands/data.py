"""``robolearn data``: look at, check and mend episode stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from robolearn.core.types import is_image
from robolearn.data.repair import repair as repair_store
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import Report
from robolearn.data.verify import verify as verify_store


def info(path: Path, *, html: Path | None = None) -> None:
    """Print what a store holds, and write a page about it where wanted.

    Raises:
        RefusedError: no store, or the page exists.
    """
    console = Console()
    with EpisodeStore.open(path) as store:
        header, n = store.header, len(store)
        steps = int(store.lengths.sum())
        rate = f"{header.spaces.control_rate_hz:g} Hz"
        console.print(f"{path}: task {header.task}, fidelity {header.fidelity}, robot {header.spaces.robot}, {rate}")
        span = f"{store.lengths.min()}-{store.lengths.max()} steps" if n else "empty"
        console.print(f"{n} episodes ({span}), {int(store.successes.sum())} successes, {steps} steps")
        console.print(f"checksum {store.checksum()}", soft_wrap=True)
        console.print(_stream_table(store))
        if html is not None:
            from robolearn.data.page import write_page
            from robolearn.data.quality import measure

            write_page(store, measure(store), html)
            console.print(f"{html} written", soft_wrap=True)


def verify(path: Path) -> int:
    """Check every byte; return 0 if the store is sound and 1 if not."""
    report = verify_store(path)
    _print(report, Console())
    return 0 if report.sound else 1


def repair(path: Path) -> int:
    """Mend what can be mended; return 0 if the store is sound afterwards."""
    console = Console()
    done = repair_store(path)
    for action in done.actions:
        console.print(action, soft_wrap=True, highlight=False)
    _print(done.after, console)
    return 0 if done.after.sound else 1


def _print(report: Report, console: Console) -> None:
    for problem in report.problems:
        console.print(f"{problem.fault}: {problem.file}: {problem.message}", style="red", soft_wrap=True, markup=False)
    writing = "; an episode is being recorded" if report.being_written else ""
    verdict = "sound" if report.sound else f"{len(report.problems)} problems"
    console.print(f"{report.path}: {verdict}; {report.episodes} sound episodes, {report.steps} steps{writing}", soft_wrap=True)


def _stream_table(store: EpisodeStore) -> Table:
    """One row per stream; ranges over all episodes, the widest element named."""
    table = Table("stream", "shape", "dtype", "minimum", "maximum", title="Streams")
    for key, feature in store.header.streams.items():
        low = high = ""
        if not is_image(key) and len(store):
            parts = [store.read(i, [key]).data[key] for i in range(len(store))]
            values = np.concatenate([part.reshape(len(part), -1) for part in parts])
            low, high = f"{values.min():.4g}", f"{values.max():.4g}"
        table.add_row(key, str(feature.shape), feature.dtype, low, high)
    return table
