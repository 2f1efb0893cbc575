"""``robolearn refine``: a trained policy in, a run folder with a better one out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from robolearn.commands.recipe import EnvRecipe, EvaluateRecipe, Recipe
from robolearn.commands.same_recipe import FREE, require_same_recipe
from robolearn.commands.simulation import make_recipe_env, rollout_config
from robolearn.commands.train import PROVENANCE_FILE, RECIPE_FILE, read_provenance
from robolearn.core.config import load, to_yaml, variant
from robolearn.core.errors import RefusedError
from robolearn.core.run import create_run_dir, provenance, write_json
from robolearn.core.seeding import VALIDATION_SEED_BLOCK, generator
from robolearn.core.types import require_compatible
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.data.split import select_episodes
from robolearn.data.store import EpisodeStore
from robolearn.evaluate.rollout import evaluate as run_episodes
from robolearn.policies.loading import load_policy
from robolearn.refine import config_class, method
from robolearn.refine.base import weights_hash
from robolearn.refine.demonstrations import demonstration_replay
from robolearn.train.checkpoint import find_checkpoint
from robolearn.train.device import choose_device
from robolearn.train.interrupts import Interrupted
from robolearn.train.online import OnlineResult
from robolearn.train.online import refine as run_online
from robolearn.train.online_config import OnlineConfig
from robolearn.train.refiner import ObservingRefiner, ReplayRefiner

REFINE_FILE = "refine.yaml"


@dataclass(frozen=True)
class DemosRecipe:
    """Demonstrations that are mixed into every batch."""

    path: str = ""
    """Folder of the episode store; empty uses no demonstrations."""
    episodes: int = 0
    """First so many; 0 means all."""
    successes_only: bool = True
    """Leave failed demonstrations out."""


@dataclass(frozen=True)
class RefineRecipe:
    """Everything that a refinement depends on."""

    base: str = ""
    """Run or checkpoint folder of the policy that is refined."""
    run_dir: str = "runs/{recipe}"
    """Folder of the run; ``{recipe}`` stands for the recipe file's stem, ``{task}`` for the task's name."""
    env: EnvRecipe = field(default_factory=EnvRecipe)
    demos: DemosRecipe = field(default_factory=DemosRecipe)
    method: Any = variant("residual", config_class)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    evaluate: EvaluateRecipe = field(default_factory=lambda: EvaluateRecipe(exec_horizon=4))
    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    validation_episodes: int = 50
    """Episodes, on validation seeds, of each evaluation during the run; 0 evaluates nothing."""

    def __post_init__(self) -> None:
        judged, valued = self.evaluate, getattr(getattr(self.method, "config", None), "chunk_steps", None)
        if valued is not None and valued != judged.exec_horizon:
            raise RefusedError(
                f"method.chunk_steps={valued} must equal evaluate.exec_horizon={judged.exec_horizon}: what is valued is executed."
            )
        if judged.delay_steps or judged.delay_jitter or judged.temporal_overlap or judged.continuation != "switch":
            raise RefusedError(
                "A refinement acts without delays and switches chunks: leave evaluate.delay_steps, delay_jitter, continuation "
                "and temporal_overlap as they are and give them to `robolearn evaluate` afterwards."
            )


def load_refine_recipe(file: Path | None, overrides: list[str]) -> RefineRecipe:
    """Read a refinement recipe and fill the placeholders in its paths.

    Raises:
        RefusedError: see :func:`robolearn.core.config.load`; or no base is named.
    """
    import dataclasses

    recipe = load(RefineRecipe, file=file, overrides=overrides)
    if not recipe.base:
        raise RefusedError("Which policy shall be refined? Give base=<run or checkpoint folder>.")
    words = {"task": recipe.env.task, "recipe": file.stem if file else recipe.env.task}
    try:
        run_dir, demos = recipe.run_dir.format(**words), recipe.demos.path.format(**words)
    except (KeyError, IndexError, ValueError) as error:
        raise RefusedError(f"Paths of a recipe know the placeholders {{task}} and {{recipe}}, not {error}.") from error
    return dataclasses.replace(recipe, run_dir=run_dir, demos=dataclasses.replace(recipe.demos, path=demos))


def refine(file: Path, overrides: list[str], *, resume: bool) -> None:
    """Refine the recipe's base policy; with ``resume`` continue the run in its run folder."""
    recipe = load_refine_recipe(file, overrides)
    result = refine_recipe(recipe, resume=resume, console=Console())
    console = Console()
    for row in result.evaluations[:1] + result.evaluations[-1:]:
        console.print(_sentence(row), highlight=False, soft_wrap=True)
    console.print(f"finished after {result.env_steps} control steps: {result.checkpoint}", soft_wrap=True)


def refine_recipe(recipe: RefineRecipe, *, resume: bool = False, console: Console | None = None) -> OnlineResult:
    """Refine in the recipe's run folder.

    Raises:
        RefusedError: no usable base or demonstrations, or the run folder is taken, or there is nothing to resume.
        Interrupted, NonFiniteError: see :func:`robolearn.train.online.refine`.
    """
    import torch

    device = str(choose_device(recipe.device))
    env = make_recipe_env(_as_recipe(recipe), max_episode_steps=recipe.online.episode_steps or None)
    checkpoint = find_checkpoint(Path(recipe.base))
    base: Any = load_policy(checkpoint, device, spaces=env.spec.spaces)
    if not isinstance(base, torch.nn.Module):
        raise RefusedError(f"{checkpoint} holds no policy with weights; there is nothing to refine.")
    chosen = method(recipe.method.name)
    config = recipe.method.config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(generator(recipe.online.seed, "weights").integers(2**62)))
        policy = chosen.refined_policy(base, config)
        refiner = chosen.Refiner(policy, config)
    store = _store(recipe)
    demos = _demos(recipe, store, base, refiner) if store is not None else None
    base_hash = weights_hash(base)
    record = provenance(seed=recipe.online.seed, device=device) | {"base": str(checkpoint), "base_hash": base_hash}
    record["demonstrations"] = store.checksum() if store is not None else None
    run_dir = Path(recipe.run_dir)
    create_run_dir(run_dir, resume=resume)
    if resume:
        _require_same_run(recipe, run_dir, record)
    else:
        (run_dir / RECIPE_FILE).write_text(to_yaml(_as_recipe(recipe)), encoding="utf-8")
        (run_dir / REFINE_FILE).write_text(to_yaml(recipe), encoding="utf-8")
        write_json(run_dir / PROVENANCE_FILE, record)
    result = run_online(
        env,
        refiner,
        demos,
        recipe.online,
        run_dir,
        exec_horizon=recipe.evaluate.exec_horizon,
        evaluate=_judge(recipe, console) if recipe.validation_episodes else None,
        resume=resume,
        provenance=record,
    )
    if weights_hash(refiner.policy().base) != base_hash:
        raise RefusedError(f"The base's weights changed during the run: {base_hash} before.")
    return result


def _as_recipe(recipe: RefineRecipe) -> Recipe:
    """Return the recipe by which the refined policy is evaluated."""
    return Recipe(run_dir=recipe.run_dir, env=recipe.env, evaluate=recipe.evaluate)


def _require_same_run(recipe: RefineRecipe, run_dir: Path, record: Mapping[str, object]) -> None:
    """Refuse to continue a run with other settings or demonstrations; only its length may change."""
    if not (run_dir / REFINE_FILE).exists():
        return  # it holds no run, which the loop says
    made = load(RefineRecipe, file=run_dir / REFINE_FILE)
    require_same_recipe(run_dir, made, recipe, free=FREE | {"online.env_steps"})
    before = read_provenance(run_dir).get("demonstrations")
    if before != record["demonstrations"]:
        raise RefusedError(
            f"{run_dir} learned from demonstrations {before}; {recipe.demos.path!r} now holds {record['demonstrations']}."
        )


def _store(recipe: RefineRecipe) -> EpisodeStore | None:
    """Return the demonstrations that the recipe asks for."""
    if not recipe.demos.path:
        return None
    if not recipe.method.config.uses_demonstrations:
        raise RefusedError(f"Method {recipe.method.name!r} uses no demonstrations; leave demos.path={recipe.demos.path!r} empty.")
    if recipe.online.demo_fraction == 0:
        return None
    path = Path(recipe.demos.path)
    if not (path / "store.json").exists():
        raise RefusedError(f"No episode store at {path}; collect demonstrations first or set demos.path to nothing.")
    return EpisodeStore.open(path, task=recipe.env.task, fidelity=recipe.env.fidelity)


def _demos(recipe: RefineRecipe, store: EpisodeStore, base: Any, refiner: Any) -> ReplayBuffer | None:
    """Return the demonstrations in replay form; a method that keeps its own memory is given them as they are."""
    episodes = select_episodes(store, successes_only=recipe.demos.successes_only, limit=recipe.demos.episodes or None)
    if isinstance(refiner, ObservingRefiner):
        require_compatible(base.spaces, store.header.spaces, what=f"demonstrations of {store.path}")
        refiner.imitate(store, episodes)  # type: ignore[attr-defined]
    if not isinstance(refiner, ReplayRefiner):
        return None
    horizon = recipe.evaluate.exec_horizon
    return demonstration_replay(
        base,
        store,
        episodes,
        exec_horizon=horizon,
        plan_steps=refiner.plan_steps,
        discount=refiner.discount,
        timeouts_fail=recipe.online.truncation == "failure",
        seed=recipe.online.seed,
    )


def _judge(recipe: RefineRecipe, console: Console | None) -> Callable[[Any], dict[str, object]]:
    """Return a function that measures a policy on validation seeds, which no report uses."""
    env = make_recipe_env(_as_recipe(recipe))
    seeds = [VALIDATION_SEED_BLOCK + i for i in range(recipe.validation_episodes)]

    def judge(policy: Any) -> dict[str, object]:
        result = run_episodes(env, policy, seeds, rollout_config(_as_recipe(recipe)))
        if result.interrupted_by is not None:
            raise Interrupted(result.interrupted_by)
        low, high = result.interval()
        lengths = [episode.length for episode in result.episodes]
        row: dict[str, object] = {"successes": result.successes, "episodes": len(result.episodes), "low": low, "high": high}
        row["mean_length"] = sum(lengths) / max(1, len(lengths))
        if console is not None:
            console.print(f"validation: {result.successes}/{len(result.episodes)} [{low:.3f}, {high:.3f}]", highlight=False)
        return row

    return judge


def _sentence(row: Any) -> str:
    low, high = row["low"], row["high"]
    return f"{row['env_steps']} control steps: {row['successes']}/{row['episodes']} solved, 95 % interval {low:.3f}-{high:.3f}"
