"""``robolearn compare``: which policy is better, on the same initial states."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from robolearn.commands.evaluate import progress_bar
from robolearn.commands.policy_reference import default_name, open_policy, run_folder
from robolearn.commands.recipe import load_recipe
from robolearn.commands.simulation import make_recipe_env, rollout_config
from robolearn.commands.train import RECIPE_FILE
from robolearn.core.errors import RefusedError
from robolearn.core.run import write_json
from robolearn.core.seeding import TEST_SEED_BLOCK
from robolearn.evaluate.compare import Comparison, compare_sequentially
from robolearn.evaluate.compare import compare as compare_results
from robolearn.evaluate.result import EvaluationResult
from robolearn.evaluate.statistics import SequentialTest
from robolearn.train.interrupts import Interrupted


def compare(results: list[Path], *, alpha: float, common_seeds: bool, out: Path | None) -> None:
    """Print the comparison of finished evaluations; write ``comparison.json`` if a folder is given."""
    loaded = [EvaluationResult.load(path / "evaluation" if (path / "evaluation").is_dir() else path) for path in results]
    comparison = compare_results(loaded, alpha=alpha, seeds="common" if common_seeds else "equal")
    _print(comparison, Console())
    if out:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / "comparison.json", comparison.to_json())


def compare_online(references: list[str], overrides: list[str], *, alpha: float, recipe: Path | None) -> None:
    """Roll two policies out in turns on the same initial states, and stop as soon as the evidence decides.

    Raises:
        RefusedError: not exactly two policies, or one does not fit the task.
        Interrupted: a signal arrived; what was seen is printed first.
    """
    if len(references) != 2:
        raise RefusedError(f"A sequential comparison takes two policies, got {len(references)}.")
    console = Console()
    run_dir = next((folder for r in references if Path(r).is_dir() and (folder := run_folder(Path(r)))), None)
    settings = load_recipe(recipe or (run_dir / RECIPE_FILE if run_dir else None), overrides)
    env = make_recipe_env(settings)
    policies = {default_name(r): open_policy(r, env, settings)[0] for r in references}
    if len(policies) != 2:
        raise RefusedError(f"Both policies are called {default_name(references[0])!r}; give run folders of different names.")
    seeds = [TEST_SEED_BLOCK + settings.evaluate.seed + i for i in range(settings.evaluate.episodes)]
    with progress_bar(console) as bar:
        bar_id = bar.add_task(f"{settings.env.task}, pairs", total=2 * len(seeds))
        done = compare_sequentially(
            env,
            policies,
            seeds,
            rollout_config(settings),
            test=SequentialTest(alpha=alpha),
            progress=lambda _: bar.update(bar_id, advance=1),
        )
    for result in done.results:
        low, high = result.interval()
        n = len(result.episodes)
        console.print(f"{result.policy}: {result.successes}/{n} = {result.success_rate:.3f}, 95 % interval {low:.3f}-{high:.3f}")
    verdict = f"{done.winner} is better" if done.winner else "not decided"
    console.print(
        f"{verdict} (anytime-valid p = {done.test.p_value:.4g}, alpha = {alpha:g}, {len(done.results[0].episodes)} pairs)"
    )
    if done.interrupted_by is not None:
        raise Interrupted(done.interrupted_by)


def _print(comparison: Comparison, console: Console) -> None:
    title = f"{comparison.task} ({comparison.fidelity}), {len(comparison.seeds)} shared initial states"
    policies = Table("policy", "solved", "rate", "95 % interval", "letters", title=title)
    for result, letters in zip(comparison.results, comparison.letters, strict=True):
        low, high = result.interval()
        counts = f"{result.successes}/{len(result.episodes)}"
        policies.add_row(result.policy, counts, f"{result.success_rate:.3f}", f"{low:.3f}-{high:.3f}", letters)
    console.print(policies)
    pairs = Table("pair", "both", "only first", "only second", "neither", "difference", "p (McNemar, Holm)", "e value")
    for pair in comparison.pairs:
        low, high = pair.difference_interval
        pairs.add_row(
            f"{pair.first} - {pair.second}",
            *(str(n) for n in (pair.both, pair.first_only, pair.second_only, pair.neither)),
            f"{pair.difference:+.3f} ({low:+.3f} to {high:+.3f})",
            f"{pair.adjusted_p_value:.4g}",
            f"{pair.e_value:.3g}",
        )
    console.print(pairs)
    console.print(f"Policies that share no letter differ at family-wise error {comparison.alpha:g}.", highlight=False)
