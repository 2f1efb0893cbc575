"""How a long run is shown while it lasts: a live bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_REDRAW_S = 0.1
_LINE_S = 10.0


class TrainProgress:
    """Shows completed steps, loss, speed, the share of time spent waiting for data, and the time that is left."""

    def __init__(self, *, total: int, start: int, shown: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._total, self._start = total, start
        self._began_s = self._last_s = time.monotonic()
        self._shown = shown
        self._bar: Progress | None = None
        if shown and self._console.is_terminal:
            columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
            self._bar = Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=self._console)
            self._task = self._bar.add_task("train", total=total, completed=start, note="")

    def __enter__(self) -> TrainProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def advance(self, step: int, now_s: float) -> None:
        """Move the bar to ``step`` completed updates; draws at most ten times a second."""
        if self._bar is not None and now_s - self._last_s > _REDRAW_S:
            self._last_s = now_s
            self._bar.update(self._task, completed=step)

    def report(self, step: int, *, loss: float, samples_per_s: float, data_share: float) -> None:
        """Show the newest logged metrics."""
        note = f"loss {loss:.4g}  {samples_per_s:,.0f} samples/s  data {data_share:.0%}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif self._shown and (time.monotonic() - self._last_s > _LINE_S or step == self._total):
            self._last_s = time.monotonic()
            left_s = (self._last_s - self._began_s) / max(1, step - self._start) * (self._total - step)
            line = f"step {step}/{self._total}  {note}  left {left_s:.0f} s"
            self._console.print(line, highlight=False, soft_wrap=True)
