"""``robolearn collect``: scripted demonstrations into an episode store."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robolearn.commands.demonstrations import demonstrate
from robolearn.commands.recipe import Recipe, load_recipe, task_recipes
from robolearn.commands.simulation import make_task_env
from robolearn.core.errors import RefusedError
from robolearn.core.run import provenance
from robolearn.core.seeding import TRAIN_SEED_BLOCK
from robolearn.core.types import Spaces
from robolearn.data.store import EpisodeStore
from robolearn.evaluate.statistics import clopper_pearson
from robolearn.train.interrupts import InterruptGuard
from sim_envs.task import get_task


def collect(file: Path, overrides: list[str]) -> None:
    """Collect demonstrations of the recipe's task or tasks; what is in a store counts, so a stopped collection is continued."""
    for recipe in task_recipes(load_recipe(file, overrides)):
        collect_demonstrations(recipe, Console()).close()


def collect_demonstrations(recipe: Recipe, console: Console) -> EpisodeStore:
    """Append episodes until the store holds the wanted number of successes; return it, open for reading.

    Raises:
        RefusedError: no number of episodes, or the store is of another task or robot, or was made with other settings.
        Interrupted: a signal arrived; every finished episode is in the store.
    """
    data = recipe.data
    if not data.episodes:
        raise RefusedError("data.episodes=0 learns from all that there are; how many are to be collected?")
    task = get_task(recipe.env.task)
    env = make_task_env(recipe)
    expert = task.make_expert(recipe.env.num_envs, data.quality)
    begun = time.monotonic()
    with (
        InterruptGuard() as guard,
        _open_or_create(recipe, env.spec.fidelity, env.spec.spaces) as store,
        _progress(console) as bar,
    ):
        bar_id = bar.add_task(f"{recipe.env.task} demonstrations", total=data.episodes, completed=int(store.successes.sum()))
        next_seed = store.unseen_seed(TRAIN_SEED_BLOCK + data.seed)
        if store.successes.sum() < data.episodes:
            for episode in demonstrate(env, expert, first_seed=next_seed):
                guard.raise_if_asked()
                store.append(episode)
                bar.update(bar_id, completed=int(store.successes.sum()))
                if store.successes.sum() >= data.episodes:
                    break
                _require_some_success(store)
        successes, total, steps = int(store.successes.sum()), len(store), int(store.lengths.sum())
    env.close()
    interval = clopper_pearson(successes, total)
    console.print(
        f"{store.path}: {total} episodes, {successes} successes (expert {successes}/{total} = {successes / total:.3f}, "
        f"95 % interval {interval[0]:.3f}-{interval[1]:.3f}), {steps} steps, {time.monotonic() - begun:.1f} s"
    )
    return EpisodeStore.open(store.path)


def _open_or_create(recipe: Recipe, fidelity: str, spaces: Spaces) -> EpisodeStore:
    path = Path(recipe.data.path)
    wanted = {"quality": recipe.data.quality, "seed": recipe.data.seed}
    if not (path / "store.json").exists():
        made = provenance(seed=recipe.data.seed) | {"expert": wanted}
        return EpisodeStore.create(path, spaces, task=recipe.env.task, fidelity=fidelity, provenance=made)
    store = EpisodeStore.open(path, "a", spaces=spaces, task=recipe.env.task, fidelity=fidelity)
    found = store.header.provenance.get("expert")
    if found != wanted:
        store.close()
        raise RefusedError(f"{path} was collected with {found}, the recipe wants {wanted}; choose another data.path.")
    return store


def _require_some_success(store: EpisodeStore) -> None:
    """Stop an expert that cannot do the task at all, instead of filling the disk."""
    if len(store) >= 200 and store.successes.mean() < 0.01:
        raise RefusedError(f"The expert solved {int(store.successes.sum())} of {len(store)} episodes; {store.path} keeps them.")


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
