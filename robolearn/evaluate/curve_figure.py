"""The figure of a result table: success against control steps and against wall-clock minutes, as a PNG that prints well."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from robolearn.evaluate.curves import CellCurve
from robolearn.evaluate.plots import INK, PALETTE, style
from robolearn.evaluate.table import TableOutcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH, _HEIGHT, _DPI = 10.4, 4.4, 150
"""Inches, and dots per inch."""
_MARKERS = "osD^vPX*"
"""One per cell beside its colour, for prints without colour."""


def write_curves(table: TableOutcome, file: Path) -> bool:
    """Draw every cell that has a curve, with its 95 % band, and the base as a dashed line; return whether there was any.

    The base is the success of the first evaluations, before any step: the same validation episodes as every other point.
    """
    curves = {cell.name: curve for cell in table.cells if (curve := cell.curve()) is not None}
    if not curves:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    base = _base_rate(table)
    with style():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        left, right = figure.subplots(1, 2, sharey=True)
        for index, (name, curve) in enumerate(curves.items()):
            _draw(left, curve.env_steps, curve, index, _label(name, curve))
            _draw(right, curve.wall_s / 60, curve, index, None)
        for axes, name in (
            (left, "control steps, warm-up included"),
            (right, "minutes of stepping and learning"),
        ):
            if base is not None:
                label = f"base, {base:.2f}" if axes is left else None
                axes.axhline(base, color=INK, lw=1.2, ls=(0, (5, 3)), zorder=2, label=label)
            axes.set_xlabel(name, color=INK, fontsize=10)
            axes.grid(axis="both")
            axes.set_ylim(-0.02, 1.02)
            axes.set_yticks(np.linspace(0, 1, 6), [f"{p} %" for p in range(0, 101, 20)])
            axes.set_xlim(left=0)
            axes.tick_params(labelsize=9.5, labelcolor=INK)
        left.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        left.set_ylabel("solved validation episodes", color=INK, fontsize=10)
        figure.suptitle(table.title, color=INK, fontsize=11.5)
        figure.legend(loc="outside lower center", ncols=min(4, len(curves) + 1), frameon=False, fontsize=9.5, labelcolor=INK)
        temporary = file.with_name(f".{file.name}.tmp")
        figure.savefig(temporary, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    temporary.replace(file)
    return True


def _draw(axes: Axes, x: np.ndarray, curve: CellCurve, index: int, label: str | None) -> None:
    color = PALETTE[index % len(PALETTE)]
    # Bands of single runs are about episodes, not seeds: they are drawn as outlines, so that nobody takes one for the other.
    if curve.band == "runs":
        axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.18, lw=0, zorder=1)
    else:
        for edge in (curve.low, curve.high):
            axes.plot(x, edge, color=color, lw=0.8, ls=":", zorder=1)
    marker = _MARKERS[index % len(_MARKERS)]
    axes.plot(x, curve.center, color=color, lw=1.8, marker=marker, ms=4.5, mec="white", mew=0.6, zorder=3, label=label)


def _label(name: str, curve: CellCurve) -> str:
    return f"{name}, {curve.runs} seeds" if curve.band == "runs" else f"{name}, 1 seed (dotted: episodes)"


def _base_rate(table: TableOutcome) -> float | None:
    """Return the base's success; a cell on top of another one begins with that one's. None where all do."""
    curves: Sequence = [curve for cell in table.cells if not cell.stacked for curve in cell.curve_runs]
    if not curves:
        return None
    return sum(curve.successes[0] for curve in curves) / sum(curve.episodes[0] for curve in curves)
