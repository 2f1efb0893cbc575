"""The recipe: the one place where a task, a policy and the loops meet. ``configs/*.yaml`` are recipes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from robolearn.core.config import load, variant
from robolearn.core.errors import RefusedError
from robolearn.core.seeding import ONLINE_SEED_BLOCK, SEEDS_PER_RUN
from robolearn.train.config import TrainConfig


def _policy_config(name: str) -> type:
    from robolearn.policies import config_class

    return config_class(name)


@dataclass(frozen=True)
class EnvRecipe:
    """The simulated task."""

    task: str = "native_lift"
    """Name of a file in ``sim_envs/tasks``; ``robolearn tasks`` lists them."""
    tasks: tuple[str, ...] = ()
    """Several tasks for one policy, in place of ``task``. It reads which one is meant from ``observation.task``."""
    fidelity: str | None = None
    """``exact``, ``reference``, ``turbo`` or ``native``; null takes the task's first."""
    cameras: tuple[str, ...] = ()
    """Cameras whose pictures are observed and recorded."""
    image_size: int = 84
    """Height and width of those pictures in pixels."""
    num_envs: int = 10
    """Environments that step together."""
    num_threads: int = 1
    """Threads that step them."""


@dataclass(frozen=True)
class GoalRecipe:
    """Goals for a policy that reads ``observation.goal``.

    In training a goal is what the same episode reached later (hindsight), in simulation the last state of a demonstration that
    succeeded.
    """

    keys: tuple[str, ...] = ()
    """Flat observation streams that a goal is made of, one after the other; none makes no goals."""
    per_window: int = 4
    """Goals that each window is given, one after the other."""
    furthest: int | None = None
    """Steps ahead that a goal lies at most; null allows all of them to the end of the episode."""


@dataclass(frozen=True)
class DataRecipe:
    """The demonstrations: how many are collected, and which part of them is learned from."""

    path: str = "data/{task}"
    """Folder of the episode store, one per task; ``{task}`` stands for the task's name."""
    episodes: int = 200
    """Successful demonstrations to collect, and the first so many to learn from; 0 learns from all that there are."""
    quality: float = 1.0
    """Quality of the scripted expert in [0, 1]; 1 is the best it can do."""
    seed: int = 0
    """First seed of the demonstrations' initial states."""
    action: Literal["action", "action.sent"] = "action"
    """Learn from the intended action, or from the one that was sent with the expert's deliberate noise."""
    successes_only: bool = True
    """Learn from successful episodes only; failures stay in the store."""
    validation_fraction: float = 0.05
    """Part of the episodes that is held out of training."""
    weights: str | None = None
    """File of sampling weights, one per episode, made by ``robolearn data quality --weights``; null draws all alike."""
    normalization: Literal["min_max", "mean_std"] = "min_max"
    """How observations and actions are scaled."""
    balanced: bool = True
    """With several tasks: draw each equally often, however many demonstrations it has; false draws every window alike."""
    goals: GoalRecipe = field(default_factory=GoalRecipe)
    """What the policy is asked to reach."""


@dataclass(frozen=True)
class EvaluateRecipe:
    """How a policy is judged."""

    episodes: int = 100
    """Episodes, each from its own initial state."""
    exec_horizon: int = 8
    """Actions of a chunk that are executed before the next decision."""
    temporal_overlap: bool = False
    """Average the overlapping predictions of successive chunks, as ACT does."""
    continuation: Literal["switch", "blend", "guided", "trained"] = "switch"
    """How a new chunk continues the one under way; ``guided`` and ``trained`` are real-time chunking."""
    delay_steps: int = 0
    """Simulated control steps that a decision takes; the old chunk is executed meanwhile."""
    delay_jitter: int = 0
    """Up to so many further steps, at random."""
    seed: int = 0
    """Offset into the block of test seeds; initial states are equal for equal seeds."""
    policy_seed: int = 0
    """Seed of the policy's own randomness."""
    checkpoint_episodes: int = 0
    """Episodes, on validation seeds, by which the best checkpoint is chosen; 0 takes the last checkpoint."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise RefusedError(f"evaluate.seed={self.seed} must not be negative: the initial states below are not the test's.")


@dataclass(frozen=True)
class Recipe:
    """Everything that a run depends on."""

    run_dir: str = "runs/{recipe}"
    """Folder of the run; ``{recipe}`` stands for the recipe file's stem, ``{task}`` for the task's name."""
    env: EnvRecipe = field(default_factory=EnvRecipe)
    data: DataRecipe = field(default_factory=DataRecipe)
    policy: Any = variant("diffusion", _policy_config)
    train: TrainConfig = field(default_factory=TrainConfig)
    evaluate: EvaluateRecipe = field(default_factory=EvaluateRecipe)

    def __post_init__(self) -> None:
        if self.data.episodes < 2 and self.data.episodes != 0:
            raise RefusedError(
                f"data.episodes={self.data.episodes} must be at least 2 (one to learn from, one to hold out), or 0 for all."
            )
        if not 0 <= self.data.seed <= ONLINE_SEED_BLOCK - SEEDS_PER_RUN:
            raise RefusedError(
                f"data.seed={self.data.seed} must lie in [0, {ONLINE_SEED_BLOCK - SEEDS_PER_RUN}]: "
                "the initial states above belong to refinement, validation and tests."
            )
        if not 0 <= self.data.quality <= 1:
            raise RefusedError(f"data.quality={self.data.quality} must lie in [0, 1].")


def load_recipe(file: Path | None, overrides: list[str]) -> Recipe:
    """Read a recipe and fill the placeholders in its paths.

    Raises:
        RefusedError: see :func:`robolearn.core.config.load`; or a path holds an unknown placeholder.
    """
    recipe = load(Recipe, file=file, overrides=overrides)
    tasks = recipe.env.tasks
    if len(set(tasks)) != len(tasks):
        raise RefusedError(f"env.tasks={list(tasks)} names a task twice.")
    if tasks and "{task}" not in recipe.data.path:
        raise RefusedError(f"data.path={recipe.data.path!r} must hold {{task}} where env.tasks names several: a store each.")
    # Each task fills in its own name later, see task_recipes.
    words = {"task": "_".join(tasks) or recipe.env.task, "recipe": file.stem if file else recipe.env.task}
    run_dir = _fill(recipe.run_dir, words)
    path = _fill(recipe.data.path, words | {"task": "{task}"} if tasks else words)
    return replace(recipe, run_dir=run_dir, data=replace(recipe.data, path=path))


def task_recipes(recipe: Recipe) -> list[Recipe]:
    """Return the recipe itself, or where ``env.tasks`` names several tasks one recipe for each."""
    return [
        replace(
            recipe,
            env=replace(recipe.env, task=task, tasks=()),
            data=replace(recipe.data, path=_fill(recipe.data.path, {"task": task})),
        )
        for task in recipe.env.tasks
    ] or [recipe]


def _fill(path: str, words: dict[str, str]) -> str:
    try:
        return path.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise RefusedError(f"Paths of a recipe know the placeholders {{task}} and {{recipe}}, not {error}.") from error
