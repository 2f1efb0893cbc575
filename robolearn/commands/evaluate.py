"""``robolearn evaluate``: a policy on the fixed test seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from robolearn.commands.policy_reference import BASELINES, default_name, open_policy, run_folder
from robolearn.commands.recipe import Recipe, load_recipe, task_recipes
from robolearn.commands.reporting import write_report
from robolearn.commands.simulation import make_recipe_env, rollout_config
from robolearn.commands.train import RECIPE_FILE
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.core.run import provenance
from robolearn.core.seeding import TEST_SEED_BLOCK
from robolearn.evaluate.result import EpisodeResult, EvaluationResult
from robolearn.evaluate.rollout import evaluate as run_episodes
from robolearn.train.interrupts import Interrupted


def evaluate(policy: str, overrides: list[str], *, recipe: Path | None, out: Path | None, videos: int) -> None:
    """Evaluate a policy; write ``evaluation.json``, ``report.html`` and ``rollouts.mp4``, for several tasks into a folder each.

    Raises:
        RefusedError: no such policy or recipe, or the policy does not fit the task.
        Interrupted: a signal arrived; ``evaluation.json`` holds the finished episodes and says so.
    """
    console = Console()
    run_dir = None if policy in BASELINES else run_folder(Path(policy))
    settings = load_recipe(recipe or (run_dir / RECIPE_FILE if run_dir else None), overrides)
    folder = out or (run_dir or Path("runs") / f"{settings.env.task}_{policy}") / "evaluation"
    rates = []
    for single in task_recipes(settings):
        own = folder / single.env.task if settings.env.tasks else folder
        rates.append(_evaluate_task(policy, single, own, videos=videos, console=console).success_rate)
    if settings.env.tasks:
        console.print(f"{len(rates)} tasks: mean success {sum(rates) / len(rates):.3f}, least {min(rates):.3f}", highlight=False)


def _evaluate_task(policy: str, recipe: Recipe, folder: Path, *, videos: int, console: Console) -> EvaluationResult:
    """Evaluate on one task and write its files into ``folder``."""
    env = make_recipe_env(recipe)
    result = evaluate_policy(policy, env, recipe, console=console)
    result.save(folder)
    print_result(result, console)
    if result.interrupted_by is not None:
        raise Interrupted(result.interrupted_by, f"Stopped by signal {result.interrupted_by}; {folder} keeps what was finished.")
    title = f"{result.policy} on {result.task}"
    report = write_report(title, [result], env, folder, policy=policy, recipe=recipe, videos=videos)
    console.print(f"report: {report}", soft_wrap=True)
    env.close()
    return result


def evaluate_policy(reference: str, env: Env, recipe: Recipe, *, console: Console, name: str | None = None) -> EvaluationResult:
    """Run the recipe's test episodes; the result is partial if a signal arrives.

    Args:
        reference: ``hold``, ``random``, or a run or checkpoint folder.
        env: the recipe's environments.
        recipe: episodes, seeds, execution.
        console: where the progress bar goes.
        name: what tables call the policy; by default the run folder's name.

    Raises:
        RefusedError: see :func:`open_policy`; or ``evaluate.episodes`` or ``exec_horizon`` do not fit.
    """
    policy, origin = open_policy(reference, env, recipe)
    if recipe.evaluate.episodes < 1:
        raise RefusedError(f"evaluate.episodes={recipe.evaluate.episodes} must be at least 1.")
    config = rollout_config(recipe)
    if reference in BASELINES:
        config = replace(
            config, executor=replace(config.executor, exec_horizon=min(config.executor.exec_horizon, policy.pred_horizon))
        )
    seeds = [TEST_SEED_BLOCK + recipe.evaluate.seed + i for i in range(recipe.evaluate.episodes)]
    with progress_bar(console) as bar:
        result = run_episodes(env, policy, seeds, config, progress=_counter(bar, recipe.env.task, len(seeds)))
    facts = provenance(seed=recipe.evaluate.seed, device=recipe.train.device) | origin
    return result.described(policy=name or default_name(reference), provenance=facts)


def print_result(result: EvaluationResult, console: Console) -> None:
    """Print the headline numbers of one evaluation."""
    low, high = result.interval() if result.episodes else (0.0, 1.0)
    summary: dict[str, Any] = result.summary()
    latency = summary["single_latency"]
    name = f"{result.policy} on {result.task} ({result.fidelity})"
    success = f"{result.successes}/{len(result.episodes)} = {result.success_rate:.3f}, 95 % interval {low:.3f}-{high:.3f}"
    timing = f"decision p50 {latency.get('p50_ms', float('nan')):.1f} ms, p99 {latency.get('p99_ms', float('nan')):.1f} ms"
    speed = f"mean length {summary['mean_length'] or 0:.1f} steps; {summary['env_steps_per_s'] or 0:.0f} steps/s"
    console.print(f"{name}: {success}; {timing}; {speed}", highlight=False, soft_wrap=True)


def progress_bar(console: Console) -> Progress:
    """Return the progress bar of rollouts and collections."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _counter(bar: Progress, task: str, total: int) -> Callable[[EpisodeResult], None]:
    bar_id = bar.add_task(task, total=total)
    wins = 0

    def count(episode: EpisodeResult) -> None:
        nonlocal wins
        wins += episode.success
        done = int(bar.tasks[bar_id].completed) + 1
        bar.update(bar_id, advance=1, description=f"{task}: {wins}/{done} solved")

    return count
