"""``robolearn deploy``: bundle a policy, run it over ROS 2 in real processes, and compare it with the direct evaluator."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.table import Table

from hardware import load_robot
from robolearn.commands.collect import collect_demonstrations
from robolearn.commands.evaluate import evaluate_policy
from robolearn.commands.policy_reference import run_folder
from robolearn.commands.recipe import DataRecipe, Recipe, load_recipe
from robolearn.commands.simulation import make_recipe_env
from robolearn.commands.train import RECIPE_FILE, read_provenance, train_recipe
from robolearn.core.config import load
from robolearn.core.errors import RefusedError
from robolearn.core.run import create_run_dir, read_json, write_json
from robolearn.core.seeding import TEST_SEED_BLOCK
from robolearn.core.types import Spaces, is_image
from robolearn.data.split import select_episodes
from robolearn.data.store import EpisodeStore
from robolearn.deploy.bundle import Bundle, BundleParts, write_bundle
from robolearn.deploy.contracts import contract_from_names
from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.launch_file import read_launch_file
from robolearn.deploy.launcher import Launched, WorkspacePackages, reserve_domain
from robolearn.deploy.novelty import ObservationNovelty
from robolearn.evaluate.compare import Comparison, compare
from robolearn.evaluate.result import EpisodeResult, EvaluationResult
from robolearn.train.checkpoint import find_checkpoint

WORKSPACE = Path(__file__).resolve().parents[2] / "ros_ws" / "src"
BRINGUP = "robolearn_bringup"
ESTOP_TIMEOUT_S = 0.5
"""Silence of the e-stop's publisher at which the gate stops in real time [s]."""


@dataclass(frozen=True)
class DeployRecipe:
    """A policy on a simulated robot, over ROS 2."""

    run_dir: str = "runs/{recipe}"
    """Folder of the bundle, the logs and the results; ``{recipe}`` stands for the recipe file's stem."""
    train: str = "configs/lift_diffusion.yaml"
    """Recipe of the policy: its run is deployed, and made first if it does not exist."""
    policy: str = ""
    """Run or checkpoint folder to deploy instead of that run."""
    robot: str = "panda"
    """File in ``hardware/``."""
    interface: str = "rates"
    """What the robot takes; ``rates`` are the task's own pose deltas, ``joints`` its own joint positions."""
    launch: str = "policy.launch.xml"
    """Launch file of robolearn_bringup."""
    sync: str = "lockstep"
    """``lockstep``: the simulator waits for each command, so no delay is added; ``realtime``: it does not."""
    command_delay_ms: float = 0.0
    """In real time: delay added to every command [ms]."""
    lead_s: float = 0.0
    """In real time: how far ahead of the clock the gate executes chunks [s]."""
    rate_hz: float = 0.0
    """Control rate of the gate; 0 takes the policy's [Hz]."""
    policy_timeout_s: float = 2.0
    """Silence of the policy at which the gate stops [s]; in real time 0.25 is the robots' value."""
    workspace_low: tuple[float, ...] = ()
    """Corner of the tools' box, x y z in the robot's base frame, where the task's differs from the robot's own [m]."""
    workspace_high: tuple[float, ...] = ()
    """The opposite corner [m]."""
    novelty: bool = True
    """Score observations by their distance from the training data: slow down beyond its threshold, fall back to a refined
    policy's base, stop at twice the threshold."""
    exec_horizon: int = 8
    """Actions of a chunk that are executed before the next decision."""
    continuation: Literal["switch", "blend", "guided", "trained"] = "switch"
    """How a new chunk continues the one under way, in real time by the delay that is measured."""
    episodes: int = 50
    """Episodes, each from its own initial state, run both over ROS and by the direct evaluator."""
    seed: int = 0
    """Offset into the block of test seeds."""
    alpha: float = 0.05
    """Error rate of the comparison."""


def load_deployment(file: Path, overrides: list[str]) -> DeployRecipe:
    """Read a deployment recipe and fill the placeholder of its run folder."""
    recipe = load(DeployRecipe, file=file, overrides=overrides)
    if recipe.episodes < 1:
        raise RefusedError(f"{file}: episodes={recipe.episodes} must be at least 1.")
    return replace(recipe, run_dir=recipe.run_dir.format(recipe=file.stem))


def deploy(file: Path, overrides: list[str]) -> None:
    """Train if needed, bundle, run over ROS 2 and directly on the same seeds; print both and their paired difference.

    Raises:
        RefusedError: a recipe, policy or robot does not fit, or a node failed.
    """
    console = Console()
    settings = load_deployment(file, overrides)
    checkpoint = _checkpoint(settings, console)
    training = load_recipe((run_folder(checkpoint) or checkpoint) / RECIPE_FILE, [])
    folder = create_run_dir(Path(settings.run_dir))
    novelty = fit_novelty(checkpoint, training_data(run_folder(checkpoint) or checkpoint)) if settings.novelty else None
    bundle = make_bundle(folder / "bundle", checkpoint, settings, task=training.env.task, novelty=novelty)
    judged = _judged(training, settings)
    env = make_recipe_env(judged)
    try:
        direct = evaluate_policy(str(checkpoint), env, judged, console=console, name="direct")
    finally:
        env.close()
    console.print(f"{settings.episodes} episodes over ROS 2 ({settings.sync}) ...")
    begin = time.monotonic()
    episodes = run_over_ros(bundle, settings, training, folder)
    results = [direct, _result(direct, episodes, f"over ROS 2, {settings.sync}", time.monotonic() - begin)]
    comparison = compare(results, alpha=settings.alpha)
    write_json(folder / "deployment.json", {"episodes": episodes, "comparison": comparison.to_json()})
    _print(comparison, episodes, console)


def training_data(run: Path) -> DataRecipe:
    """Return the demonstrations that the policy of a run learned from; a refined one's are its base's.

    Raises:
        RefusedError: no run folder is known, so that its demonstrations are not either.
    """
    base = read_provenance(run).get("base")
    if base is None:
        return load_recipe(run / RECIPE_FILE, []).data
    return training_data(run_folder(Path(str(base))) or Path(str(base)))


def fit_novelty(checkpoint: Path, data: DataRecipe) -> ObservationNovelty:
    """Return the out-of-distribution score of what a checkpoint's policy reads, fitted to its demonstrations.

    Raises:
        RefusedError: there are no demonstrations at ``data.path``, or too few.
    """
    spaces = _spaces(checkpoint)
    if not Path(data.path).exists():
        raise RefusedError(f"The demonstrations {data.path} are needed to score novelty; novelty=false deploys without a score.")
    with EpisodeStore.open(Path(data.path)) as store:
        keys = [key for key in spaces.observation if not is_image(key)]
        episodes = [store.read(i, keys).data for i in select_episodes(store, successes_only=data.successes_only)]
    return ObservationNovelty.fit(episodes, spaces)


def make_bundle(
    folder: Path, checkpoint: Path, settings: DeployRecipe, *, task: str, novelty: ObservationNovelty | None = None
) -> Bundle:
    """Write the bundle of a checkpoint for a robot whose simulated twin publishes by the names of its observations."""
    spec, spaces = load_robot(settings.robot), _spaces(checkpoint)
    fingers = tuple(f"{spec.name}_finger_joint{i}" for i in (1, 2)) if spec.grippers else ()
    contract = contract_from_names(spaces, arm_joints=spec.joints, finger_joints=fingers)
    # The direct evaluator has no clock to measure by: it and lockstep take no step of delay.
    realtime = settings.sync == "realtime" and settings.continuation != "switch"
    executor = ExecutorConfig(settings.exec_horizon, continuation=settings.continuation, delay_steps=None if realtime else 0)
    bundle = write_bundle(folder, BundleParts(checkpoint, contract, executor, task, novelty=novelty))
    bundle.require_robot(spec.name)
    return bundle


def run_over_ros(bundle: Bundle, settings: DeployRecipe, training: Recipe, folder: Path) -> list[dict[str, object]]:
    """Start the launch file's processes, run every episode and return the supervisor's record of each."""
    results = folder / "episodes.json"
    seeds = [TEST_SEED_BLOCK + settings.seed + i for i in range(settings.episodes)]
    arguments = {
        "robot": settings.robot,
        "bundle": str(bundle.folder.resolve()),
        "interface": settings.interface,
        "sim": "true",
        "supervise": "true",
        "task": training.env.task,
        "fidelity": training.env.fidelity or "",
        "sync": settings.sync,
        "command_delay_ms": str(settings.command_delay_ms),
        "lead_s": str(settings.lead_s),
        "rate_hz": str(settings.rate_hz),
        "policy_timeout_s": str(settings.policy_timeout_s),
        # Nothing moves in lockstep while a process waits its turn on a busy machine, the supervisor's heartbeat among them.
        "estop_timeout_s": str(max(ESTOP_TIMEOUT_S, settings.policy_timeout_s if settings.sync == "lockstep" else 0.0)),
        "workspace_low": json.dumps(list(settings.workspace_low) or [0.0]),
        "workspace_high": json.dumps(list(settings.workspace_high) or [0.0]),
        "seeds": json.dumps(seeds),
        "results": str(results.resolve()),
    }
    packages = WorkspacePackages(WORKSPACE)
    domain, reservation = reserve_domain()
    environ = {"ROS_DOMAIN_ID": str(domain), **os.environ}  # by itself, a domain that nobody else uses
    launch_file = packages.share(BRINGUP) / "launch" / settings.launch
    processes = read_launch_file(launch_file, arguments, find_package=packages.share, environ=environ)
    with reservation, Launched(processes, packages, log_folder=folder / "logs", environ=environ) as launched:
        launched.wait_for("supervisor_node", 120 + 60 * settings.episodes)
    return json.loads(results.read_text(encoding="utf-8"))


def _checkpoint(settings: DeployRecipe, console: Console) -> Path:
    """Return the checkpoint to deploy, training it first if its run does not exist."""
    if settings.policy:
        return find_checkpoint(Path(settings.policy))
    recipe = load_recipe(Path(settings.train), [])
    if not Path(recipe.run_dir).exists():
        console.print(f"{recipe.run_dir} does not exist: collecting demonstrations and training by {settings.train}")
        if not Path(recipe.data.path).exists():
            collect_demonstrations(recipe, console).close()
        train_recipe(recipe)
    return find_checkpoint(Path(recipe.run_dir))


def _spaces(checkpoint: Path) -> Spaces:
    card = read_json(checkpoint / "config.json", what="policy checkpoint's description")
    return Spaces.from_json(card["spaces"])  # type: ignore[arg-type]


def _judged(training: Recipe, settings: DeployRecipe) -> Recipe:
    judged = replace(
        training.evaluate,
        episodes=settings.episodes,
        seed=settings.seed,
        exec_horizon=settings.exec_horizon,
        temporal_overlap=False,
        continuation=settings.continuation,
        policy_seed=0,
    )
    # One environment at a time, as on a robot: a network may round differently in a batch.
    return replace(training, evaluate=judged, env=replace(training.env, num_envs=1))


def _result(direct: EvaluationResult, episodes: list[dict[str, object]], name: str, wall_s: float) -> EvaluationResult:
    """Return the ROS episodes as an evaluation; what was not observed over ROS is NaN."""
    made = tuple(
        EpisodeResult(
            seed=int(e["seed"]),  # type: ignore[call-overload]
            success=bool(e["success"]),
            length=int(e["steps"]),  # type: ignore[call-overload]
            episode_return=float(bool(e["success"])),
            mean_action_change=float("nan"),
            mean_squared_jerk=float("nan"),
            safety_hits={},
        )
        for e in episodes
    )
    return replace(direct, episodes=made, policy=name, wall_s=wall_s)


def _print(comparison: Comparison, episodes: list[dict[str, object]], console: Console) -> None:
    table = Table(
        "path", "solved", "rate", "95 % interval", "mean steps", "wall", title=f"{comparison.task}, same initial states"
    )
    for result in comparison.results:
        low, high = result.interval()
        n = len(result.episodes)
        steps = sum(e.length for e in result.episodes) / n
        row = (
            f"{result.successes}/{n}",
            f"{result.success_rate:.3f}",
            f"{low:.3f}-{high:.3f}",
            f"{steps:.1f}",
            f"{result.wall_s:.0f} s",
        )
        table.add_row(result.policy, *row)
    console.print(table)
    pair = comparison.pairs[0]
    low, high = pair.difference_interval
    console.print(
        f"paired difference ({pair.first} - {pair.second}): {pair.difference:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}; "
        f"only the first {pair.first_only}, only the second {pair.second_only}; p = {pair.p_value:.3g} (McNemar)",
        highlight=False,
        soft_wrap=True,
    )
    stopped = [e for e in episodes if e["stopped_because"]]
    for episode in stopped:
        console.print(f"seed {episode['seed']} was stopped: {episode['stopped_because']}", highlight=False)
