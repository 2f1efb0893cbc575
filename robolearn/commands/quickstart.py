"""``robolearn quickstart``: the whole way, from demonstrations to a report, in minutes on two cores."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from robolearn.commands.collect import collect_demonstrations
from robolearn.commands.evaluate import evaluate_policy
from robolearn.commands.learnables import learnables
from robolearn.commands.recipe import Recipe, load_recipe
from robolearn.commands.refine import load_refine_recipe, refine_recipe
from robolearn.commands.reporting import write_report
from robolearn.commands.simulation import make_recipe_env
from robolearn.commands.train import train_recipe
from robolearn.core.errors import RefusedError
from robolearn.core.run import create_run_dir
from robolearn.evaluate.result import EvaluationResult
from robolearn.policies.loading import save_policy
from robolearn.train.interrupts import Interrupted

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPE = CONFIGS / "native_lift_diffusion.yaml"
WEAK_RECIPE, REFINE_RECIPE = CONFIGS / "bench/native_lift_base.yaml", CONFIGS / "native_lift_refine.yaml"


def quickstart(out: Path, overrides: list[str]) -> None:
    """Collect, train, evaluate before and after, refine a weak policy, report; print the table and where the report lies.

    Args:
        out: folder of everything that is made.
        overrides: of the trained policy's recipe; ``weak.a.b=c`` and ``refine.a.b=c`` of the weak policy's and its refinement.

    Raises:
        RefusedError: ``out`` is in use; everything of an earlier quickstart is kept.
        Interrupted: a signal arrived; what was finished is in ``out``.
    """
    console = Console()
    begun = time.monotonic()
    if not RECIPE.is_file():
        raise RefusedError(f"The quickstart needs a checkout of the repository; no recipe at {RECIPE}.")
    create_run_dir(out)
    plain = [o for o in overrides if not o.startswith(("weak.", "refine."))]
    recipe = _inside(load_recipe(RECIPE, plain), out)
    _say(console, 1, f"collect {recipe.data.episodes} demonstrations of {recipe.env.task} from a scripted expert")
    collect_demonstrations(recipe, console).close()
    env = make_recipe_env(recipe)
    _say(console, 2, f"evaluate the untrained policy on {recipe.evaluate.episodes} initial states")
    untrained = _save_untrained(recipe, out / "untrained")
    before = _judged(evaluate_policy(str(untrained), env, recipe, console=console, name="before training"), out)
    _say(console, 3, f"train a {recipe.policy.name} policy for {recipe.train.steps} updates")
    result = train_recipe(recipe)
    _say(console, 4, "evaluate the trained policy on the same initial states")
    after = _judged(evaluate_policy(str(result.checkpoint), env, recipe, console=console, name="after training"), out)
    # All four stand in one report, so on the same initial states.
    shared = [f"evaluate.episodes={recipe.evaluate.episodes}", f"evaluate.seed={recipe.evaluate.seed}"]
    weak, refined = _refine_weak(console, out, [*_beginning(overrides, "weak."), *shared], _beginning(overrides, "refine."))
    _say(console, 8, "write the report")
    results = [after, before, weak, refined]
    report = write_report(
        "robolearn quickstart: native lift", results, env, out, policy=str(result.checkpoint), recipe=recipe, videos=9
    )
    _print_table(console, [before, after, weak, refined])
    console.print(
        f"report: {report.resolve()}\ntook {(time.monotonic() - begun) / 60:.1f} minutes", soft_wrap=True, highlight=False
    )


def _beginning(overrides: list[str], prefix: str) -> list[str]:
    return [override.removeprefix(prefix) for override in overrides if override.startswith(prefix)]


def _refine_weak(
    console: Console, out: Path, weak_overrides: list[str], refine_overrides: list[str]
) -> tuple[EvaluationResult, EvaluationResult]:
    """Train a weak policy from a few poor demonstrations, refine it online, and return what both reach on the test seeds."""
    recipe = _inside(load_recipe(WEAK_RECIPE, weak_overrides), out / "weak")
    _say(console, 5, f"train a weak policy from {recipe.data.episodes} demonstrations of quality {recipe.data.quality}")
    collect_demonstrations(recipe, console)
    base = train_recipe(recipe).checkpoint
    env = make_recipe_env(recipe)
    weak = _judged(evaluate_policy(str(base), env, recipe, console=console, name="weak policy"), out)
    places = [f"base={base}", f"run_dir={out / 'refined'}", f"demos.path={recipe.data.path}"]
    refine = load_refine_recipe(REFINE_RECIPE, [*places, *refine_overrides])
    _say(console, 6, f"refine it by {refine.method.name} for {refine.online.env_steps} control steps")
    checkpoint = refine_recipe(refine, console=console).checkpoint
    _say(console, 7, "evaluate the refined policy on the same initial states")
    return weak, _judged(evaluate_policy(str(checkpoint), env, recipe, console=console, name="refined"), out)


def _inside(recipe: Recipe, out: Path) -> Recipe:
    """Return the recipe with everything it writes below ``out``."""
    return replace(recipe, run_dir=str(out / "run"), data=replace(recipe.data, path=str(out / "demonstrations")))


def _save_untrained(recipe: Recipe, folder: Path) -> Path:
    """Save the policy with its initial weights: what training starts from."""
    policy = learnables(recipe, device="cpu").policy
    save_policy(folder, policy, averaged=policy.state_dict())
    return folder


def _judged(result: EvaluationResult, out: Path) -> EvaluationResult:
    """Save a result; stop here if it was cut short."""
    result.save(out / "evaluation" / result.policy.replace(" ", "_"))
    if result.interrupted_by is not None:
        raise Interrupted(result.interrupted_by)
    return result


def _say(console: Console, number: int, what: str) -> None:
    console.print(f"[bold]{number}/8[/bold] {what}", highlight=False)


def _print_table(console: Console, results: list[EvaluationResult]) -> None:
    table = Table(
        "policy", "solved", "rate", "95 % interval", "mean steps", "decision p50 / p99", title="Native lift, test seeds"
    )
    for result in results:
        low, high = result.interval()
        latency = result.single_latency
        table.add_row(
            result.policy,
            f"{result.successes}/{len(result.episodes)}",
            f"{result.success_rate:.2f}",
            f"{low:.2f}-{high:.2f}",
            f"{result.env_steps / max(1, len(result.episodes)):.0f}",
            f"{1e3 * latency.percentile(50):.1f} / {1e3 * latency.percentile(99):.1f} ms",
        )
    console.print(table)
