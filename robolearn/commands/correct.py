"""``robolearn correct``: a trained policy in, the same with a head that corrects each action when its turn comes, out."""

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
from robolearn.core.multitask import tasks_of
from robolearn.policies.generative import GenerativePolicy
from robolearn.policies.loading import load_policy
from robolearn.refine.correction_head import CorrectionHead
from robolearn.train.checkpoint import find_checkpoint
from robolearn.train.supervised import TrainResult


def correct(base: str, overrides: list[str], *, oldest: int | None, scale: float, resume: bool) -> None:
    """Train a correction head for a run and say where the corrected policy is."""
    result = correct_run(Path(base), overrides, oldest=oldest, scale=scale, resume=resume)
    Console().print(f"{result.stopped} after {result.step} updates: {result.checkpoint}", soft_wrap=True)


def correct_run(
    base: Path, overrides: list[str], *, oldest: int | None = None, scale: float = 0.5, resume: bool = False
) -> TrainResult:
    """Train a correction head on a run's own demonstrations (A2C2, arXiv 2509.23224); the policy itself stays as it is.

    The result goes to ``<base>_corrected`` unless ``run_dir`` says otherwise.

    Args:
        base: run folder, or checkpoint folder inside one.
        overrides: changes to the run's recipe, as a.b=c; the policy's own settings cannot change.
        oldest: largest age [control steps] at which an action is corrected: exec_horizon plus delay, less one. None: as old as
            a chunk's last action.
        scale: largest correction, in half ranges of the action.
        resume: continue the run.

    Raises:
        RefusedError: no run, no generative policy of one task, or an age that its chunks do not reach.
    """
    checkpoint = find_checkpoint(base)
    recipe = follow_up_recipe(base, overrides, suffix="_corrected", fixed="Only the head is trained")
    policy = load_policy(checkpoint)
    if not isinstance(policy, GenerativePolicy) or tasks_of(policy.spaces):
        raise RefusedError(f"{checkpoint} holds no generative policy of one task: its chunks are not corrected.")
    oldest = policy.pred_horizon - 1 if oldest is None else oldest
    if not 1 <= oldest < policy.pred_horizon:
        raise RefusedError(f"{oldest=} must lie in [1, {policy.pred_horizon - 1}]: the ages of a chunk's actions.")
    long = Named(recipe.policy.name, replace(policy.config, obs_horizon=policy.obs_horizon + oldest))
    head = CorrectionHead.around(policy, residual_scale=scale)

    def learn(recipe: Recipe, device: str) -> Learnables:
        joined = learnables(replace(recipe, policy=long), device=device, normalizer=policy.normalizer)
        return replace(joined, policy=head.to(device))

    # Windows that reach further back than the policy are none that it could decide on: only the loss is validated.
    training = replace(recipe.train, action_error_windows=0)
    return train_recipe(replace(recipe, policy=Named("corrected", head.config), train=training), resume=resume, learn=learn)
