"""Figures of the report as SVG text; every figure is drawn by one function from plain values."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np

from robolearn.core.types import Array
from robolearn.evaluate.recording import Recording
from robolearn.evaluate.result import EvaluationResult, Latency

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

type MetricsRow = Mapping[str, float | int | None]
"""``step`` and metrics by name, as in ``metrics.jsonl``."""

SUCCESS, FAILURE, INK, MUTED, GRID = "#2e9e5b", "#d1495b", "#1f2933", "#6b7885", "#e4e8ec"
WIDTH = 10.4
"""Inches of every figure; the page scales them to its own width."""
PALETTE = ("#2f6db3", "#e08a2e", "#7a5aa8", "#3a9c9c", "#b3526e", "#7b8a3c", "#5c6f82", "#a8653a")


def success_bars(results: Sequence[EvaluationResult], letters: Sequence[str] = ()) -> str:
    """Draw success rates with 95 % Clopper-Pearson intervals, first policy on top, with compact letters if given."""
    with style():
        figure, axes = _figure(WIDTH, 0.62 + 0.46 * len(results))
        rates = np.array([0.0 if not r.episodes else r.success_rate for r in results])
        intervals = np.array([r.interval() for r in results])
        y = np.arange(len(results))
        axes.barh(y, rates, height=0.56, color=[PALETTE[i % len(PALETTE)] for i in y], zorder=2)
        error = np.abs(intervals.T - rates)
        axes.errorbar(rates, y, xerr=error, fmt="none", ecolor=INK, elinewidth=1.3, capsize=4, capthick=1.3, zorder=3)
        for i, result in enumerate(results):
            count = f"{result.successes}/{len(result.episodes)}"
            axes.text(1.075, i, count, va="center", ha="right", color=INK, fontsize=9.5, clip_on=False)
            axes.text(1.09, i, letters[i] if letters else "", va="center", color=MUTED, fontsize=9.5, clip_on=False)
        axes.set_yticks(y, [_short(r.policy or "policy") for r in results])
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_xlim(0, 1)
        axes.set_xticks(np.linspace(0, 1, 6), [f"{p} %" for p in range(0, 101, 20)])
        axes.grid(axis="x", zorder=0)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        return _svg(figure)


def learning_curve(rows: Sequence[MetricsRow]) -> str | None:
    """Draw training and validation loss, action error and checkpoint scores over updates; None without any of them."""
    panels = {
        "loss": ("train/loss", "validation/loss"),
        "action error on held-out episodes": ("validation/action_error",),
        "success of checkpoints on validation seeds": ("score",),
    }
    curves = {title: {n: _curve(rows, n) for n in names if len(_curve(rows, n)[0])} for title, names in panels.items()}
    curves = {title: lines for title, lines in curves.items() if lines}
    if not curves:
        return None
    from matplotlib.ticker import LogLocator, NullFormatter

    last = max(steps[-1] for lines in curves.values() for steps, _ in lines.values())
    with style():
        figure, all_axes = _figure(WIDTH, 2.7, columns=len(curves))
        for axes, (title, lines) in zip(np.atleast_1d(all_axes), curves.items(), strict=True):
            for index, (name, (steps, values)) in enumerate(lines.items()):
                few = len(steps) <= 40
                axes.plot(
                    steps, values, color=PALETTE[index], lw=1.6, marker="o" if few else None, ms=3, label=name.split("/")[0]
                )
            axes.set_title(title, fontsize=9.5, color=INK, loc="left")
            axes.set_xlabel("updates")
            axes.set_xlim(0, last * 1.03)
            axes.grid(axis="y")
            if title == "loss":
                axes.set_yscale("log")
                axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
                axes.yaxis.set_minor_formatter(NullFormatter())
            if title.startswith("success"):
                axes.set_ylim(-0.03, 1.03)
            if len(lines) > 1:
                axes.legend(frameon=False, fontsize=8.5)
        return _svg(figure)


def action_traces(recordings: Sequence[Recording]) -> str | None:
    """Draw every sent action element over time, one line per recorded episode in the colour of its outcome."""
    if not recordings:
        return None
    count = recordings[0].actions.shape[1]
    names = recordings[0].action_names or tuple(f"action {i}" for i in range(count))
    columns = min(count, 4)
    with style():
        figure, grid = _figure(WIDTH, 1.55 * -(-count // columns) + 0.3, rows=-(-count // columns), columns=columns)
        panels: list[Axes] = list(np.atleast_1d(grid).flat)
        for index, axes in enumerate(panels):
            axes.set_visible(index < count)
        for index in range(count):
            axes = panels[index]
            for recording in recordings:
                seconds = np.arange(len(recording.actions)) / recording.control_rate_hz
                color = SUCCESS if recording.episode.success else FAILURE
                axes.step(seconds, recording.actions[:, index], where="post", color=color, lw=0.9, alpha=0.75)
            axes.set_title(names[index], fontsize=9, color=INK, loc="left", pad=3)
            axes.grid(axis="y")
            if index + columns >= count:
                axes.set_xlabel("s")
        return _svg(figure)


def latency_histogram(latencies: Mapping[str, Latency]) -> str | None:
    """Draw how long one decision of one row took, per policy, on a logarithmic axis; None if nothing was timed."""
    timed = {name: 1e3 * np.array(latency.seconds) for name, latency in latencies.items() if latency.seconds}
    if not timed:
        return None
    everything = np.concatenate(list(timed.values()))
    low, high = max(everything.min(), 1e-4) * 0.9, everything.max() * 1.1
    bins = np.geomspace(low, max(high, low * 2), 41)
    with style():
        figure, axes = _figure(WIDTH, 2.5)
        for index, (name, milliseconds) in enumerate(timed.items()):
            color = PALETTE[index % len(PALETTE)]
            p50, p99 = np.percentile(milliseconds, [50, 99])
            axes.hist(
                milliseconds,
                bins=bins,
                color=color,
                alpha=0.55,
                zorder=2,
                label=f"{_short(name)}: p50 {p50:.3g}, p99 {p99:.3g} ms",
            )
            axes.axvline(p50, color=color, lw=1.4, zorder=3)
            axes.axvline(p99, color=color, lw=1.2, ls=(0, (4, 3)), zorder=3)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("milliseconds per decision (solid line p50, dashed p99)")
        axes.set_ylabel("decisions")
        axes.grid(axis="y", zorder=0)
        axes.legend(frameon=False, fontsize=8.5)
        return _svg(figure)


def _curve(rows: Sequence[MetricsRow], name: str) -> tuple[Array, Array]:
    pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    array = np.array(pairs, float).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _short(name: str, limit: int = 34) -> str:
    return name if len(name) <= limit else f"{name[: limit - 9]}...{name[-6:]}"


def style() -> AbstractContextManager[None]:
    """Return the context in which every figure is drawn: its fonts, lines and colours."""
    import matplotlib as mpl

    return mpl.rc_context(
        {
            "font.size": 9,
            "axes.edgecolor": "#b9c2cb",
            "axes.labelcolor": MUTED,
            "axes.linewidth": 0.8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "xtick.color": MUTED,
            "ytick.color": INK,
            "xtick.labelsize": 8.5,
            "ytick.labelsize": 8.5,
            # Identifiers come from the content, so that equal results give equal files.
            "svg.hashsalt": "robolearn",
        }
    )


def _figure(width: float, height: float, *, rows: int = 1, columns: int = 1) -> tuple[Figure, Any]:
    """Return a figure that belongs to no window system and no global state, and its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.subplots(rows, columns)


def _svg(figure: Figure) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None})
    text = stream.getvalue()
    return text[text.index("<svg") :]
