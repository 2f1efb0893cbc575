"""``robolearn table``: everything of one result table, from demonstrations to curves, continued where it ended."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

from rich.console import Console

from robolearn.commands.recipe import Recipe
from robolearn.commands.table_run import Command, Run, advance, claimed, collect_for, finished_weights, outcome, progress
from robolearn.core.config import load
from robolearn.core.errors import RefusedError, nearest
from robolearn.core.run import write_json
from robolearn.evaluate.curve_figure import write_curves
from robolearn.evaluate.table import CellOutcome, TableOutcome
from robolearn.evaluate.table_text import CURVES_FILE, markdown
from robolearn.train.interrupts import InterruptGuard, NonFiniteError

TABLE_FILE, NUMBERS_FILE = "table.md", "table.json"
BASE = "base"
"""What the base is called among the cells."""


@dataclass(frozen=True)
class BaseRecipe:
    """The policy that every cell starts from."""

    recipe: str = ""
    """Recipe file of ``collect`` and ``train``; it names the folders of demonstrations and run."""
    overrides: tuple[str, ...] = ()
    """Changes to it, as ``a.b=c``."""


@dataclass(frozen=True)
class CellRecipe:
    """One method of the table."""

    name: str = ""
    """Of its row; letters, digits, ``_``, ``.`` and ``-``."""
    command: Command = "refine"
    """``refine`` (from the base) or ``train`` (from the recipe's demonstrations)."""
    recipe: str = ""
    """Recipe file of that command."""
    overrides: tuple[str, ...] = ()
    """Changes to it; base, run folder, seed and number of test episodes come from the table."""
    seeds: tuple[int, ...] | None = None
    """Training seeds of this cell, a part of the table's; null takes all. The others are shown as left out."""
    refines: str = ""
    """An earlier cell: each run refines that cell's run of the same seed instead of the base, so that methods stack."""


@dataclass(frozen=True)
class TableRecipe:
    """One base, several methods, several seeds."""

    title: str = "{recipe}"
    """Headline; ``{recipe}`` stands for the recipe file's stem."""
    out: str = "runs/{recipe}"
    """Folder of the table and of the cells' runs."""
    base: BaseRecipe = field(default_factory=BaseRecipe)
    cells: tuple[CellRecipe, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    """Training seeds of the protocol."""
    episodes: int = 200
    """Test episodes of the base and of every run, on the same initial states."""
    goal: float = 0.9
    """Success whose first crossing is reported in control steps."""

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        for cell in self.cells:
            if not re.fullmatch(r"[\w.-]+", cell.name) or cell.name == BASE or names.count(cell.name) > 1:
                rule = f"made of letters, digits, _ . -, different from the others and not {BASE!r}"
                raise RefusedError(f"A cell's name must be {rule}; got {cell.name!r} in {names}.")
            if stray := set(cell.seeds or ()) - set(self.seeds):
                raise RefusedError(f"Cell {cell.name!r} has seeds {sorted(stray)} that the table's {list(self.seeds)} lack.")
        for place, cell in enumerate(self.cells):
            below = {earlier.name: earlier for earlier in self.cells[:place] if earlier.command == "refine"}.get(cell.refines)
            if cell.refines and (below is None or cell.command != "refine"):
                raise RefusedError(
                    f"Cell {cell.name!r}: refines={cell.refines!r} must name an earlier cell, and both must refine."
                )
            if below and (missing := set(self.seeds_of(cell)) - set(self.seeds_of(below))):
                raise RefusedError(
                    f"Cell {cell.name!r} has the seeds {sorted(missing)} that {cell.refines!r}, on which it stands, lacks."
                )
        if len(set(self.seeds)) != len(self.seeds) or self.episodes < 1 or not 0 < self.goal <= 1:
            raise RefusedError(f"seeds={self.seeds} must differ, episodes={self.episodes} be >= 1, goal={self.goal} in (0, 1].")

    def seeds_of(self, cell: CellRecipe) -> tuple[int, ...]:
        """Return the training seeds of one of the cells."""
        return self.seeds if cell.seeds is None else cell.seeds


@dataclass(frozen=True)
class Plan:
    """All runs of a table."""

    title: str
    command: str
    out: Path
    goal: float
    base: Run
    cells: dict[str, tuple[Run, ...]]
    left_out: dict[str, tuple[int, ...]]


def load_table(file: Path, overrides: list[str]) -> Plan:
    """Read a table's recipe and every recipe that it names.

    Raises:
        RefusedError: a recipe is missing or faulty, or a cell is of another task or fidelity than the base.
    """
    recipe = load(TableRecipe, file=file, overrides=overrides)
    if not recipe.cells or not all((recipe.base.recipe, *(cell.recipe for cell in recipe.cells))):
        raise RefusedError(f"{file}: a table needs base.recipe and at least one cell, each with its recipe.")
    try:
        title, out = (text.format(recipe=file.stem) for text in (recipe.title, recipe.out))
    except (KeyError, IndexError, ValueError) as error:
        raise RefusedError(f"{file}: title and out know the placeholder {{recipe}}, not {error}.") from error
    episodes = f"evaluate.episodes={recipe.episodes}"
    base = Run(BASE, 0, "train", Path(recipe.base.recipe), (*recipe.base.overrides, episodes))
    settings = cast(Recipe, base.recipe)
    base = replace(base, seed=settings.train.seed)
    _require_fit(base, settings)
    cells: dict[str, tuple[Run, ...]] = {}
    for cell in recipe.cells:
        below = {run.seed: run for run in cells.get(cell.refines, ())}
        cells[cell.name] = tuple(
            _run(cell, below.get(s, base), seed=s, out=out, episodes=episodes) for s in recipe.seeds_of(cell)
        )
        for run in cells[cell.name]:
            _require_fit(run, settings)
    left_out = {c.name: tuple(s for s in recipe.seeds if c.seeds is not None and s not in c.seeds) for c in recipe.cells}
    command = shlex.join(["robolearn", "table", str(file), *overrides])
    return Plan(title, command, Path(out), recipe.goal, base, cells, left_out)


def table(file: Path, overrides: list[str], *, only: str | None, report: bool) -> None:
    """Make what is missing of a table, then write it; with ``report`` write it from what is there.

    Args:
        file: the table's recipe.
        overrides: changes to it.
        only: ``CELL`` or ``CELL:SEED`` makes these runs alone, ``base`` the base alone.
        report: run nothing.

    Raises:
        RefusedError: see :func:`load_table`; or a folder was made with other settings.
        Interrupted: a signal arrived; the run under way is saved and the same command continues it.
        NonFiniteError: a run diverged; the others were made.
    """
    console = Console()
    plan = load_table(file, overrides)
    chosen = _chosen(plan, only)
    failure: NonFiniteError | None = None
    # What must not be cut off has a guard of its own; everything else appears whole or not at all.
    with InterruptGuard() as guard, guard.at_once():
        if report:
            write_table(plan)
        else:
            _make_base(plan, console)
            write_table(plan)
            for run in chosen:
                base_hash = finished_weights(run.below or plan.base)
                if base_hash is None:
                    assert run.below is not None
                    console.print(
                        f"{run.name}: {run.below.name}, on which it stands, is {progress(run.below).words}", highlight=False
                    )
                    continue
                if progress(run, base_hash).kind in ("done", "diverged"):
                    continue
                guard.raise_if_asked()  # what a signal raises inside a destructor is lost
                failure = _make(run, base_hash, console) or failure
                write_table(plan)
            guard.raise_if_asked()
    console.print(f"table: {plan.out / TABLE_FILE}", soft_wrap=True, highlight=False)
    if failure is not None:
        raise failure


def write_table(plan: Plan) -> None:
    """Write ``table.md``, ``table.json`` and ``curves.png`` from what is on disk.

    Raises:
        RefusedError: a folder was made with other settings, or the files cannot be written.
    """
    hashes = {run.name: finished_weights(run) for run in {run.below or plan.base for runs in plan.cells.values() for run in runs}}
    with _waited_for(plan.out / ".table.lock"):
        cells = []
        for name, runs in plan.cells.items():
            outcomes = tuple(outcome(run, hashes[(run.below or plan.base).name]) for run in runs)
            cells.append(CellOutcome(name, outcomes, plan.left_out[name], any(run.below for run in runs)))
        shown = TableOutcome(plan.title, plan.command, outcome(plan.base), tuple(cells), plan.goal)
        write_curves(shown, plan.out / CURVES_FILE)
        write_json(plan.out / NUMBERS_FILE, shown.to_json())
        temporary = plan.out / f".{TABLE_FILE}.tmp"
        temporary.write_text(markdown(shown), encoding="utf-8")
        temporary.replace(plan.out / TABLE_FILE)


def _run(cell: CellRecipe, below: Run, *, seed: int, out: str, episodes: str) -> Run:
    """Return the run of a cell on ``below``."""
    name = f"{cell.name}-seed{seed}"
    own = [f"run_dir={out}/{name}", episodes]
    own += [f"base={below.recipe.run_dir}", f"online.seed={seed}"] if cell.command == "refine" else [f"train.seed={seed}"]
    return Run(name, seed, cell.command, Path(cell.recipe), (*cell.overrides, *own), below if cell.refines else None)


def _require_fit(run: Run, base: Recipe) -> None:
    """Refuse a run that cannot stand beside the base or cannot be repeated."""
    recipe = run.recipe
    for name in ("task", "fidelity"):
        ours, theirs = getattr(recipe.env, name), getattr(base.env, name)
        if ours != theirs:
            raise RefusedError(f"Run {run.name!r} has env.{name} {ours!r}, the base {theirs!r}: not comparable.")
    if isinstance(recipe, Recipe) and recipe.train.max_seconds is not None:
        raise RefusedError(
            f"{run.file}: train.max_seconds={recipe.train.max_seconds} makes a run that nobody can repeat; unset it."
        )


def _chosen(plan: Plan, only: str | None) -> list[Run]:
    """Return the runs of the cells that are asked for."""
    if only is None:
        return [run for runs in plan.cells.values() for run in runs]
    name, colon, seed = only.partition(":")
    if only == BASE:
        return []
    if name not in plan.cells:
        raise RefusedError(f"--only {only}: no cell {name!r}. {nearest(name, [*plan.cells, BASE])}")
    chosen = [run for run in plan.cells[name] if not colon or str(run.seed) == seed]
    if not chosen:
        raise RefusedError(f"--only {only}: cell {name!r} has the seeds {[run.seed for run in plan.cells[name]]}.")
    return chosen


def _make_base(plan: Plan, console: Console) -> None:
    """Do what is left of the base, one process at a time."""
    folder = Path(plan.base.recipe.run_dir)
    with _waited_for(folder.with_name(f".{folder.name}.lock")):
        collect_for(plan.base, console)
        advance(plan.base, console)
    if progress(plan.base).kind not in ("learned", "done"):
        raise RefusedError(
            f"The base in {folder} is {progress(plan.base).words}; move the folder away or change {plan.base.file}."
        )


def _make(run: Run, base_hash: str, console: Console) -> NonFiniteError | None:
    """Do what is left of one run unless another process is at it; a run that diverges does not keep the others from running."""
    folder = Path(run.recipe.run_dir)
    with claimed(folder.with_name(f".{folder.name}.lock")) as free:
        if not free:
            console.print(f"{run.name}: another process is at it", highlight=False)
            return None
        try:
            advance(run, console, base_hash)
        except NonFiniteError as error:
            console.print(f"{run.name}: {error}", highlight=False, soft_wrap=True, markup=False)
            return error
    return None


@contextmanager
def _waited_for(file: Path) -> Iterator[None]:
    """Hold a lock file; wait for it while another process has it."""
    while True:
        with claimed(file) as free:
            if free:
                yield
                return
        time.sleep(0.2)
