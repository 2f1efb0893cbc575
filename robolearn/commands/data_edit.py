"""``robolearn data merge | split | filter | trim | relabel``: new stores from old ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from robolearn.commands.data_convert import progress, report
from robolearn.core.errors import RefusedError
from robolearn.data import edit
from robolearn.data.convert import Conversion
from robolearn.data.convert import Progress as OnStep


def _run(make: Callable[[OnStep], Conversion | list[Conversion]]) -> None:
    console = Console()
    with progress(console) as on_step:
        made = make(on_step)
    for done in made if isinstance(made, list) else [made]:
        report(done, console)


def merge(stores: Sequence[Path], out: Path, *, common: bool) -> None:
    """Join stores."""
    _run(lambda on_step: edit.merge(stores, out, on_step, common=common))


def corrections(store: Path, out: Path, *, min_steps: int) -> None:
    """Keep what people drove."""
    from robolearn.data import corrections as data_corrections

    _run(lambda on_step: data_corrections.corrections(store, out, min_steps=min_steps, on_step=on_step))


def split(store: Path, outs: Sequence[Path], fractions: Sequence[float], seed: int) -> None:
    """Deal episodes out."""
    _run(lambda on_step: edit.split(store, outs, fractions, seed=seed, on_step=on_step))


def select(store: Path, out: Path, where: Sequence[str], episodes: str | None) -> None:
    """Keep episodes."""
    conditions = [edit.Condition.parse(text) for text in where]
    _run(lambda on_step: edit.select(store, out, conditions, episodes=numbers(episodes), on_step=on_step))


def trim(store: Path, out: Path, start: int, end: int, idle: float | None) -> None:
    """Cut ends."""
    _run(lambda on_step: edit.trim(store, out, start=start, end=end, idle=idle, on_step=on_step))


def relabel(store: Path, out: Path, labels: Sequence[str], episodes: str | None, task: str | None) -> None:
    """Change facts."""
    _run(lambda on_step: edit.relabel(store, out, labels, episodes=numbers(episodes), task=task, on_step=on_step))


def numbers(text: str | None) -> list[int] | None:
    """Return the positions in ``0,3,7-9``; None stands for all.

    Raises:
        RefusedError: not such a list.
    """
    if text is None:
        return None
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (part.isascii() and first.isdecimal() and (not dash or last.isdecimal())) or len(part) > 20:
            raise RefusedError(f"Episodes {text!r}: {part!r} is neither a position nor a range such as 7-9.")
        if dash and int(last) < int(first):
            raise RefusedError(f"Episodes {text!r}: the range {part!r} ends before it begins.")
        if dash and int(last) - int(first) > 10_000_000:
            raise RefusedError(f"Episodes {text!r}: the range {part!r} is too long.")
        found += range(int(first), int(last) + 1) if dash else [int(first)]
    return found
