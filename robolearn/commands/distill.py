"""``robolearn distill``: a trained diffusion or flow policy in, a student that decides in one network evaluation out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from robolearn.commands.learnables import Learnables, learnables
from robolearn.commands.policy_reference import follow_up_recipe
from robolearn.commands.recipe import Recipe
from robolearn.commands.train import train_recipe
from robolearn.core.config import Named
from robolearn.core.errors import RefusedError
from robolearn.policies.generative import GenerativePolicy, student_config
from robolearn.policies.loading import load_policy
from robolearn.train.checkpoint import find_checkpoint
from robolearn.train.supervised import TrainResult


def distill(teacher: str, overrides: list[str], *, resume: bool) -> None:
    """Distil a run and say where the student is."""
    result = distill_run(Path(teacher), overrides, resume=resume)
    Console().print(f"{result.stopped} after {result.step} updates: {result.checkpoint}", soft_wrap=True)


def distill_run(teacher: Path, overrides: list[str], *, resume: bool = False) -> TrainResult:
    """Train a one-step student of the policy in a run folder, on the run's own demonstrations.

    The student is the teacher's policy with the sampler ``one_step``; it begins with the teacher's weights and goes to
    ``<teacher>_one_step`` unless ``run_dir`` says otherwise.

    Args:
        teacher: run folder, or checkpoint folder inside one.
        overrides: changes to the run's recipe, as a.b=c; the policy's own settings cannot change.
        resume: continue the student's run.

    Raises:
        RefusedError: no run, no generative policy, or one that is a student already.
    """
    checkpoint = find_checkpoint(teacher)
    recipe = follow_up_recipe(teacher, overrides, suffix="_one_step", fixed="A student is what its teacher is, one step aside")
    policy = load_policy(checkpoint)
    if not isinstance(policy, GenerativePolicy):
        raise RefusedError(f"{checkpoint} holds a {recipe.policy.name!r} policy, which has no sampler to distil.")
    if policy.config == student_config(policy.config):
        raise RefusedError(f"{checkpoint} decides in one step already.")
    recipe = replace(recipe, policy=Named(recipe.policy.name, student_config(policy.config)))

    def learn(recipe: Recipe, device: str) -> Learnables:
        joined = learnables(recipe, device=device, normalizer=policy.normalizer)
        joined.policy.learn_from(policy.to(device))
        return joined

    return train_recipe(recipe, resume=resume, learn=learn)
