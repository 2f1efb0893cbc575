"""A result table as Markdown: one row per cell, one row per run, and what every column means."""

from __future__ import annotations

from collections.abc import Sequence

from robolearn.evaluate.statistics import clopper_pearson
from robolearn.evaluate.table import CellOutcome, CellSummary, Interval, RunOutcome, TableOutcome, difference

CURVES_FILE = "curves.png"
_NONE = "-"
_CELL_COLUMNS = (
    "cell",
    "seeds",
    "solved",
    "rate, 95 % interval",
    "IQM over seeds, 95 % band",
    "minus base, paired",
    "deepest dip",
    "control steps/s",
    "minutes",
)
_RUN_COLUMNS = ("run", "state", "solved", "rate, 95 % interval", "only run / only base", "minus base", "p", "dip", "steps/s")
_NOTES = """\
Solved: test episodes on the same fixed initial states for every row. Rate: all of them together with Clopper-Pearson's
interval, which takes episodes as independent and says nothing about other training seeds. IQM: interquartile mean of the seeds'
success rates (of fewer than four seeds the plain mean) with a stratified bootstrap over seeds (Agarwal et al. 2021). Minus
base: Newcombe's paired interval for one seed, a bootstrap over seeds and initial states for several; p: exact McNemar for that
run alone. Deepest dip: how far any seed ever fell below what it refines, the base or another cell's run, on validation episodes.
Control steps include the warm-up; minutes and steps/s are the loop's, without evaluations."""


def markdown(table: TableOutcome) -> str:
    """Return the table as a Markdown page."""
    goal = f"steps to {table.goal:g}"
    cells = [_base_row(table.base), *(_cell_row(cell, table) for cell in table.cells)]
    runs = [_run_row(run, table) for run in (table.base, *(run for cell in table.cells for run in cell.runs))]
    commands = [run.command for run in (table.base, *(run for cell in table.cells for run in cell.runs))]
    parts = [
        f"# {table.title}",
        f"Made by `{table.command}`; run it again to continue what is not done.",
        _rows((*_CELL_COLUMNS, goal), cells),
        _NOTES,
    ]
    if any(cell.curve() for cell in table.cells):
        parts.append(f"![Success on validation episodes]({CURVES_FILE})")
    parts += ["## Runs", _rows(_RUN_COLUMNS, runs), "Each run on its own:", "```\n" + "\n".join(commands) + "\n```"]
    return "\n\n".join(parts) + "\n"


def _base_row(base: RunOutcome) -> list[str]:
    if base.result is None:
        return _padded(["base", base.state], len(_CELL_COLUMNS) + 1)
    rate = _rate(base.result.success_rate, base.result.interval())
    return _padded(
        ["base", str(base.seed), _count(base.result.successes, len(base.result.episodes)), rate], len(_CELL_COLUMNS) + 1
    )


def _cell_row(cell: CellOutcome, table: TableOutcome) -> list[str]:
    summary = cell.summary(table.base.result) if table.base.result else None
    row = [cell.name, _seeds(cell)]
    if summary is None:
        row += [_NONE] * 4
    else:
        row += [_count(summary.successes, summary.episodes), _rate(summary.successes / summary.episodes, summary.interval)]
        row += [_over_seeds(summary), _signed(summary.difference, summary.difference_interval)]
    curve, curves = cell.curve(), cell.curve_runs
    if curve is None:
        return _padded(row, len(_CELL_COLUMNS) + 1)
    steps, seconds = sum(c.env_steps[-1] for c in curves), sum(c.wall_s[-1] for c in curves)
    reached = curve.steps_to(table.goal)
    row += [f"{cell.dip_depth:.3f}", f"{steps / seconds:.1f}" if seconds > 0 else _NONE]
    row += [f"{seconds / len(curves) / 60:.1f}", f"{reached:,}" if reached is not None else f"not in {curve.env_steps[-1]:,}"]
    return row


def _run_row(run: RunOutcome, table: TableOutcome) -> list[str]:
    row = [run.name, run.state]
    if run.result is None:
        row += [_NONE] * 5
    else:
        k, n = run.result.successes, len(run.result.episodes)
        row += [_count(k, n), _rate(k / n, clopper_pearson(k, n))]
        if table.base.result is None or run is table.base:
            row += [_NONE] * 3
        else:
            pair = difference(run.result, table.base.result)
            row += [f"{pair.run_only} / {pair.base_only}", _signed(pair.difference, pair.interval), f"{pair.p_value:.2g}"]
    curve = run.curve
    if curve is None or not curve.env_steps:
        return _padded(row, len(_RUN_COLUMNS))
    speed = f"{curve.steps_per_s:.1f}" if curve.wall_s[-1] > 0 else _NONE
    return [*row, f"{curve.dip_depth:.3f}", speed]


def _seeds(cell: CellOutcome) -> str:
    """Return which seeds have finished and what became of each other one; nothing is dropped silently."""
    by_state: dict[str, list[int]] = {}
    for run in cell.runs:
        by_state.setdefault(run.state, []).append(run.seed)
    if cell.left_out:
        by_state["left out"] = list(cell.left_out)
    finished = by_state.pop("done", [])
    words = [_list(finished)] if finished else []
    words += [f"{_list(seeds)} {state}" for state, seeds in by_state.items()]
    return "; ".join(words) or "no seeds"


def _over_seeds(summary: CellSummary) -> str:
    return _rate(summary.success, summary.band) if summary.band else "1 seed"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _padded(row: list[str], width: int) -> list[str]:
    return row + [_NONE] * (width - len(row))


def _list(numbers: Sequence[int]) -> str:
    return ", ".join(str(n) for n in numbers)


def _count(successes: int, episodes: int) -> str:
    return f"{successes}/{episodes}"


def _rate(rate: float, interval: Interval) -> str:
    return f"{rate:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _signed(value: float, interval: Interval) -> str:
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"
