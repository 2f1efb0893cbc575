"""From a recipe to its environments and to the settings of its rollouts."""

from __future__ import annotations

from robolearn.commands.recipe import Recipe
from robolearn.core.protocols import Env
from robolearn.deploy.executor import ExecutorConfig
from robolearn.evaluate.result import RolloutConfig
from sim_envs.task import EnvOptions, make_env


def make_recipe_env(recipe: Recipe) -> Env:
    """Build the recipe's batch of environments."""
    env = recipe.env
    return make_env(env.task, EnvOptions(env.num_envs, env.fidelity, env.cameras, env.image_size, env.num_threads))


def rollout_config(recipe: Recipe) -> RolloutConfig:
    """Return how the recipe's episodes are run."""
    judged = recipe.evaluate
    expected = judged.delay_steps + judged.delay_jitter if judged.continuation != "switch" else 0
    executor = ExecutorConfig(
        judged.exec_horizon, judged.temporal_overlap, continuation=judged.continuation, delay_steps=expected
    )
    return RolloutConfig(executor, judged.delay_steps, judged.delay_jitter, policy_seed=judged.policy_seed)
