"""One run of a result table: its settings, how far it is according to its folder, and what is still to be done."""

from __future__ import annotations

import fcntl
import gc
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Literal, cast

from rich.console import Console

from robolearn.commands.collect import collect_demonstrations
from robolearn.commands.evaluate import evaluate
from robolearn.commands.recipe import Recipe, load_recipe
from robolearn.commands.refine import REFINE_FILE, RefineRecipe, load_refine_recipe, refine_recipe
from robolearn.commands.same_recipe import require_same_recipe
from robolearn.commands.simulation import rollout_config
from robolearn.commands.train import PROVENANCE_FILE, RECIPE_FILE, read_provenance, train_recipe
from robolearn.core.config import load
from robolearn.core.errors import RefusedError
from robolearn.core.seeding import TEST_SEED_BLOCK
from robolearn.evaluate.curves import RunCurve
from robolearn.evaluate.result import EVALUATION_FILE, EvaluationResult, RolloutConfig
from robolearn.evaluate.table import RunOutcome
from robolearn.policies.loading import load_policy
from robolearn.refine.base import weights_hash
from robolearn.train.checkpoint import CheckpointFolder, find_checkpoint
from robolearn.train.divergence import DIVERGED_FOLDER
from robolearn.train.evaluations import Evaluations

type Command = Literal["refine", "train"]


@dataclass(frozen=True)
class Run:
    """One training or refinement and its final evaluation."""

    name: str
    seed: int
    command: Command
    file: Path
    """Recipe file."""
    overrides: tuple[str, ...]
    """Changes to it, all that the command line would need."""
    below: Run | None = None
    """The run that this one refines; None refines the table's base."""

    @cached_property
    def recipe(self) -> Recipe | RefineRecipe:
        """The checked recipe."""
        given = list(self.overrides)
        return load_refine_recipe(self.file, given) if self.command == "refine" else load_recipe(self.file, given)

    @property
    def command_line(self) -> str:
        """What a person would type to make this run."""
        return shlex.join(["robolearn", self.command, str(self.file), *self.overrides])


@dataclass(frozen=True)
class Progress:
    """How far a run is; decided by its folder alone."""

    kind: Literal["absent", "begun", "learned", "diverged", "done"]
    step: int = 0
    """Of the newest checkpoint."""
    last_step: int = 0
    """At which learning is finished."""

    @property
    def words(self) -> str:
        """The same for a table."""
        at = f"at step {self.step:,} of {self.last_step:,}"
        texts = {"absent": "not run", "begun": at, "learned": "not evaluated", "diverged": f"diverged, {at}", "done": "done"}
        return texts[self.kind]


def progress(run: Run, base_hash: str | None = None) -> Progress:
    """Return how far a run is.

    Args:
        run: the run.
        base_hash: of the weights that a refinement must have started from; None does not look.

    Raises:
        RefusedError: the run folder or its evaluation was made with other settings, or from another base.
    """
    recipe = run.recipe
    folder = Path(recipe.run_dir)
    last_step = recipe.online.env_steps if isinstance(recipe, RefineRecipe) else recipe.train.steps
    if not _described(folder, run):
        return Progress("absent", 0, last_step)
    _require_same_settings(folder, run, recipe)
    found = read_provenance(folder).get("base_hash")
    if base_hash is not None and found is not None and found != base_hash:
        raise RefusedError(f"{folder} refines a base with hash {found}, the table's base has {base_hash}; move the folder away.")
    step = max(CheckpointFolder(folder / "checkpoints").steps(), default=0)
    if any((folder / DIVERGED_FOLDER).glob("*")):
        return Progress("diverged", step, last_step)
    if step < last_step or not _judged(folder, recipe, step):
        return Progress("begun", step, last_step)
    return Progress("learned" if test_result(run) is None else "done", step, last_step)


def _judged(folder: Path, recipe: Recipe | RefineRecipe, step: int) -> bool:
    """Return whether the last checkpoint was evaluated where the recipe asks for that; resuming makes up for it."""
    if isinstance(recipe, RefineRecipe):
        return not recipe.validation_episodes or any(row["env_steps"] == step for row in Evaluations(folder).rows(step))
    return not recipe.evaluate.checkpoint_episodes or step in CheckpointFolder(folder / "checkpoints").scores()


def advance(run: Run, console: Console, base_hash: str | None = None) -> None:
    """Do what is left of a run: learn from where its folder ends, then evaluate the result on the test seeds.

    Raises:
        RefusedError: see :func:`progress`, and what the commands behind it refuse.
        Interrupted: a signal arrived; everything is saved.
        NonFiniteError: it diverged; from now on :func:`progress` says so.
    """
    recipe = run.recipe
    folder = Path(recipe.run_dir)
    at = progress(run, base_hash)
    if at.kind in ("absent", "begun"):
        console.print(f"{run.name}: {at.words}; {run.command_line}", highlight=False, soft_wrap=True, markup=False)
        if at.kind == "begun":
            (folder / "checkpoints").mkdir(exist_ok=True)  # killed between its description and its first checkpoint
        else:
            for half in folder.glob("*"):  # killed while it was described
                half.unlink()
        if isinstance(recipe, RefineRecipe):
            refine_recipe(recipe, resume=at.kind == "begun", console=console)
        else:
            train_recipe(recipe, resume=at.kind == "begun")
    if progress(run, base_hash).kind == "learned":
        console.print(f"{run.name}: {recipe.evaluate.episodes} test episodes", highlight=False)
        settings = [f"evaluate.episodes={recipe.evaluate.episodes}", f"run_dir={folder}"]
        evaluate(str(folder), settings, recipe=None, out=None, videos=0)
    gc.collect()  # replay and environments of one run must not stay while the next one runs


def collect_for(run: Run, console: Console) -> None:
    """Collect what a training run learns from, unless it has learned already and the demonstrations are there."""
    recipe = cast(Recipe, run.recipe)
    there = (Path(recipe.data.path) / "store.json").exists()
    if not there or progress(run).kind in ("absent", "begun"):
        collect_demonstrations(recipe, console).close()


def test_result(run: Run) -> EvaluationResult | None:
    """Return the finished test episodes of a run; None where there are none or not all.

    Raises:
        RefusedError: they are of other episodes, settings or an older checkpoint than the run's.
    """
    recipe = run.recipe
    folder = Path(recipe.run_dir)
    if not (folder / "evaluation" / EVALUATION_FILE).exists():
        return None
    result = EvaluationResult.load(folder / "evaluation")
    if result.partial or result.interrupted_by is not None:
        return None
    judged = recipe.evaluate
    seeds = tuple(TEST_SEED_BLOCK + judged.seed + i for i in range(judged.episodes))
    wanted = rollout_config(Recipe(evaluate=judged))
    checkpoint = Path(str(result.provenance.get("checkpoint"))).name
    own = find_checkpoint(folder).name
    faults = {
        f"{len(result.seeds)} episodes from seed {min(result.seeds)}": result.seeds == seeds,
        ", ".join(_settings_of(result.config)): (
            replace(result.config, timed_decisions=wanted.timed_decisions, timing_budget_s=wanted.timing_budget_s) == wanted
        ),
        f"checkpoint {checkpoint}": checkpoint == own,
    }
    if wrong := [fault for fault, right in faults.items() if not right]:
        wanted_words = ", ".join((f"{len(seeds)} episodes from seed {seeds[0]}", *_settings_of(wanted), f"checkpoint {own}"))
        raise RefusedError(f"{folder / 'evaluation'} is of {', '.join(wrong)}; the table wants {wanted_words}. Move it away.")
    return result.described(policy=run.name, provenance=result.provenance)


def _settings_of(config: RolloutConfig) -> tuple[str, ...]:
    executor = config.executor
    overlap = ("temporal_overlap",) if executor.temporal_overlap else ()
    delay = f"delay_steps {config.delay_steps}+{config.delay_jitter}"
    return f"exec_horizon {executor.exec_horizon}", f"policy_seed {config.policy_seed}", delay, executor.continuation, *overlap


def outcome(run: Run, base_hash: str | None = None) -> RunOutcome:
    """Return what a table shows of a run.

    Raises:
        RefusedError: see :func:`progress`.
    """
    at = progress(run, base_hash)
    folder = Path(run.recipe.run_dir)
    result = test_result(run) if at.kind == "done" else None
    curve = RunCurve.load(folder) if run.command == "refine" and at.kind != "absent" else None
    return RunOutcome(run.name, run.seed, at.words, run.command_line, result, curve)


def finished_weights(run: Run) -> str | None:
    """Return the hash of the weights of a run that has learned; None before."""
    if progress(run).kind not in ("learned", "done"):
        return None
    policy = load_policy(find_checkpoint(Path(run.recipe.run_dir)), "cpu")
    return weights_hash(policy)  # type: ignore[arg-type]


@contextmanager
def claimed(file: Path) -> Iterator[bool]:
    """Hold a lock file until the block or the process ends; yields whether it was free.

    Raises:
        RefusedError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stream = file.open("w")
    except OSError as error:
        raise RefusedError(f"Cannot write {file}: {error.strerror}.") from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _described(folder: Path, run: Run) -> bool:
    """Return whether the run has begun; one whose folder holds nothing but half a description has not.

    Raises:
        RefusedError: the folder holds something else.
    """
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    description = {RECIPE_FILE, PROVENANCE_FILE} | ({REFINE_FILE} if run.command == "refine" else set())
    if description <= found:
        return True
    if strange := sorted(found - description - {".write-test", f".{PROVENANCE_FILE}.tmp"}):
        raise RefusedError(
            f"{folder} is not a run of `{run.command_line}`: it holds {strange} but lacks {sorted(description - found)}."
        )
    return False


def _require_same_settings(folder: Path, run: Run, recipe: Recipe | RefineRecipe) -> None:
    file = folder / (REFINE_FILE if run.command == "refine" else RECIPE_FILE)
    require_same_recipe(folder, _settings(run.command, file, file.stat().st_mtime_ns), recipe)


@cache
def _settings(command: Command, file: Path, modified_ns: int) -> Recipe | RefineRecipe:
    """Return what a run folder's description says; a table looks at the same ones again and again."""
    return load(RefineRecipe, file=file) if command == "refine" else load(Recipe, file=file)
