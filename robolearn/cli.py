"""The command line. Nothing heavy is imported before a command runs, so ``robolearn --help`` answers at once.

Exit codes: 0 done; 1 a defect of ours (with a traceback) or corruption found by ``data verify``; 2 the input was refused;
3 training diverged (state saved); 130 and 143 stopped by Ctrl-C and SIGTERM with everything saved.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from robolearn.commands.data_app import data_app
from robolearn.core.errors import RefusedError

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Learn robot policies from demonstrations and evaluate them.",
)
app.add_typer(data_app, name="data")

RecipeArgument = Annotated[Path, typer.Argument(help="Recipe, a YAML file such as configs/can_diffusion.yaml.")]
OverridesArgument = Annotated[list[str] | None, typer.Argument(help="Changes to the recipe, as a.b=c.", show_default=False)]


@app.command()
def collect(recipe: RecipeArgument, overrides: OverridesArgument = None) -> None:
    """Record demonstrations of the recipe's task from its scripted expert."""
    from robolearn.commands.collect import collect

    collect(recipe, overrides or [])


@app.command()
def teleop(
    task: Annotated[str, typer.Argument(help="Task, such as native_lift; 'robolearn tasks' lists them.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Changes such as motion.linear_speed_m_s=0.2.", show_default=False)
    ] = None,
    *,
    device: Annotated[
        list[str] | None, typer.Option(help="web (default), keyboard, gamepad, spacemouse or lerobot:KIND; may be repeated.")
    ] = None,
    store: Annotated[str | None, typer.Option(help="Episode store; by default data/teleop/TASK. It is continued.")] = None,
    operator: Annotated[str, typer.Option(help="Who drives; kept with every episode.")] = "",
    policy: Annotated[str | None, typer.Option(help="Run folder of a policy that drives until you take over.")] = None,
    host: Annotated[
        str, typer.Option(help="Where the page is offered; other than loopback needs the printed token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Its port; 0 takes a free one.")] = 8400,
    certificate: Annotated[Path | None, typer.Option(help="TLS certificate: phones give their tilt to https pages only.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Offer the page at all.")] = True,
) -> None:
    """Drive a simulated robot yourself and record demonstrations, or correct a policy while it drives."""
    from robolearn.commands.teleop import teleop
    from robolearn.teleop.server import ServerConfig

    named = {"task": task, "store": store, "policy": policy, "recorder.operator": operator or None}
    changes = [f"{name}={value}" for name, value in named.items() if value is not None]
    teleop([*changes, *(overrides or [])], device or ["web"], ServerConfig(host, port, certificate, key) if page else None)


@app.command()
def train(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run_dir, bit-exactly.")] = False,
) -> None:
    """Train the recipe's policy on its episode store."""
    from robolearn.commands.train import train

    train(recipe, overrides or [], resume=resume)


@app.command()
def refine(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in run_dir, bit-exactly.")] = False,
) -> None:
    """Refine a trained policy by online reinforcement learning: robolearn refine configs/can_residual.yaml base=RUN."""
    from robolearn.commands.refine import refine

    refine(recipe, overrides or [], resume=resume)


@app.command()
def distill(
    teacher: Annotated[str, typer.Argument(help="Run folder of a trained diffusion or flow policy.")],
    overrides: OverridesArgument = None,
    *,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the student's run, bit-exactly.")] = False,
) -> None:
    """Distil a policy into a student that decides in one network evaluation, in <run>_one_step."""
    from robolearn.commands.distill import distill

    distill(teacher, overrides or [], resume=resume)


@app.command()
def correct(
    base: Annotated[str, typer.Argument(help="Run folder of a trained diffusion or flow policy.")],
    overrides: OverridesArgument = None,
    *,
    oldest: Annotated[int | None, typer.Option(help="Largest age of a corrected action [control steps].")] = None,
    scale: Annotated[float, typer.Option(help="Largest correction, in half ranges of the action.")] = 0.5,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run, bit-exactly.")] = False,
) -> None:
    """Train a head that corrects each action when its turn comes, for late decisions, in <run>_corrected."""
    from robolearn.commands.correct import correct

    correct(base, overrides or [], oldest=oldest, scale=scale, resume=resume)


@app.command()
def experts(
    run: Annotated[str, typer.Argument(help="Run or checkpoint folder of a mixture-of-experts policy.")],
    *,
    out: Annotated[Path | None, typer.Option(help="Picture; by default experts.png in the run folder.")] = None,
) -> None:
    """Show which experts work at which noise level, and whether some never do."""
    from robolearn.commands.experts import experts

    experts(run, out)


@app.command()
def evaluate(
    policy: Annotated[str, typer.Argument(help="Run folder, checkpoint folder, or 'hold' or 'random'.")],
    overrides: OverridesArgument = None,
    *,
    recipe: Annotated[Path | None, typer.Option(help="Recipe that names the task; a run folder holds its own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the result; by default inside the run folder.")] = None,
    videos: Annotated[int, typer.Option(help="Episodes to film.")] = 9,
) -> None:
    """Roll a policy out on the fixed test seeds; write evaluation.json and report.html."""
    from robolearn.commands.evaluate import evaluate

    evaluate(policy, overrides or [], recipe=recipe, out=out, videos=videos)


@app.command()
def compare(
    policies: Annotated[list[str], typer.Argument(help="Evaluated runs or evaluation.json files.")],
    *,
    alpha: Annotated[float, typer.Option(help="Family-wise error rate.")] = 0.05,
    common_seeds: Annotated[bool, typer.Option("--common-seeds", help="Compare on the seeds that all results share.")] = False,
    sequential: Annotated[bool, typer.Option("--sequential", help="Roll both out in turns; stop when decided.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="With --sequential: recipe that names the task.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="With --sequential: a.b=c changes to the recipe.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write comparison.json and report.html to this folder.")] = None,
) -> None:
    """Compare policies, paired on the same initial states: McNemar, sequential e-values, Holm, letters."""
    from robolearn.commands.compare import compare, compare_online

    if sequential:
        compare_online(policies, changes or [], alpha=alpha, recipe=recipe)
    else:
        compare([Path(p) for p in policies], alpha=alpha, common_seeds=common_seeds, out=out)


@app.command()
def table(
    recipe: Annotated[Path, typer.Argument(help="Recipe of a table, such as configs/bench/can_table.yaml.")],
    overrides: OverridesArgument = None,
    *,
    only: Annotated[str | None, typer.Option(help="Make one cell alone, or one run: CELL or CELL:SEED, or 'base'.")] = None,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; write the table from what is there.")] = False,
) -> None:
    """Make a result table: base, every method and seed, final evaluations, Markdown and curves. Run again to continue."""
    from robolearn.commands.table import table

    table(recipe, overrides or [], only=only, report=report)


@app.command()
def quickstart(
    overrides: OverridesArgument = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder for the demos, the run and the report.")] = Path("runs/quickstart"),
) -> None:
    """Collect demonstrations, train a diffusion policy, evaluate it before and after, refine a weak one, and report."""
    from robolearn.commands.quickstart import quickstart

    quickstart(out, overrides or [])


@app.command()
def deploy(
    recipe: Annotated[Path, typer.Argument(help="Deployment recipe, such as configs/panda_lift_sim.yaml.")],
    overrides: OverridesArgument = None,
) -> None:
    """Bundle a policy, run it over ROS 2 on a simulated robot, and compare it with the direct evaluator."""
    from robolearn.commands.deploy import deploy

    deploy(recipe, overrides or [])


@app.command()
def export(
    run: Annotated[str, typer.Argument(help="Run or checkpoint folder of a diffusion policy.")],
    folder: Annotated[Path, typer.Argument(help="Where LeRobot's pretrained_model folder goes.")],
    *,
    exec_horizon: Annotated[int | None, typer.Option(help="Actions executed per decision; by default the run's.")] = None,
) -> None:
    """Write a policy in LeRobot's layout, so that stock lerobot loads, evaluates and runs it."""
    from robolearn.commands.export import export

    export(run, folder, exec_horizon=exec_horizon)


@app.command()
def tasks() -> None:
    """List the tasks, their fidelities and what they offer."""
    from robolearn.commands.tasks import tasks

    tasks()


@app.command(context_settings={"ignore_unknown_options": True})  # they are the benchmark's
def bench(
    name: Annotated[str, typer.Argument(help="A file tests/bench/bench_NAME.py, or 'all'.")],
    arguments: Annotated[list[str] | None, typer.Argument(help="Passed on to the benchmark.", show_default=False)] = None,
) -> None:
    """Run the benchmarks of a checkout and print their tables."""
    from robolearn.commands.bench import bench

    bench(name, arguments or [])


def main() -> None:
    """Run the command line and turn typed errors into exit codes."""
    # One thread a process: spinning OpenMP barriers collapse when environments step on the other core (docs/results).
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        app()
    except RefusedError as error:
        _complain(str(error))
        sys.exit(2)
    except Exception as error:
        # Typed outcomes of a run (stopped by a signal, diverged) carry their exit code; everything else is a defect of ours.
        code = getattr(error, "exit_code", None)
        if not isinstance(code, int):
            raise
        _complain(str(error))
        sys.exit(code)


def _complain(message: str) -> None:
    from rich.console import Console
    from rich.text import Text

    # A Text and not markup: messages quote shapes and lists, whose brackets markup would swallow.
    Console(stderr=True).print(Text.assemble(("robolearn: ", "bold red"), message), soft_wrap=True)


if __name__ == "__main__":
    main()
