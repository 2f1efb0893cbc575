"""The recipe: the one place where a task, a policy and the loops meet. ``configs/*.yaml`` are recipes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from robolearn.core.config import load, variant
from robolearn.core.errors import RefusedError
from robolearn.train.config import TrainConfig


def _policy_config(name: str) -> type:
    from robolearn.policies import config_class

    return config_class(name)


@dataclass(frozen=True)
class EnvRecipe:
    """The simulated task."""

    task: str = "native_lift"
    """Name of a file in ``sim_envs/tasks``; ``robolearn tasks`` lists them."""
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
class DataRecipe:
    """The demonstrations: how many are collected, and which part of them is learned from."""

    path: str = "data/{task}"
    """Folder of the episode store; ``{task}`` stands for the task's name."""
    episodes: int = 200
    """Successful demonstrations to collect."""
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
        if self.data.episodes < 2:
            raise RefusedError(f"data.episodes={self.data.episodes} must be at least 2: one to learn from, one to hold out.")
        if not 0 <= self.data.quality <= 1:
            raise RefusedError(f"data.quality={self.data.quality} must lie in [0, 1].")


def load_recipe(file: Path | None, overrides: list[str]) -> Recipe:
    """Read a recipe and fill the placeholders in its paths.

    Raises:
        RefusedError: see :func:`robolearn.core.config.load`; or a path holds an unknown placeholder.
    """
    import dataclasses

    recipe = load(Recipe, file=file, overrides=overrides)
    words = {"task": recipe.env.task, "recipe": file.stem if file else recipe.env.task}
    try:
        run_dir, path = recipe.run_dir.format(**words), recipe.data.path.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise RefusedError(f"Paths of a recipe know the placeholders {{task}} and {{recipe}}, not {error}.") from error
    return dataclasses.replace(recipe, run_dir=run_dir, data=dataclasses.replace(recipe.data, path=path))
