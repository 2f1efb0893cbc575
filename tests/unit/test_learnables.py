"""What a recipe trains on, and what it refuses to."""

import pytest
from episode_samples import new_store

from robolearn.commands.learnables import learnables
from robolearn.commands.recipe import load_recipe
from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION

SMALL = {
    "chunk_bc": ["policy.net.mlp.width=8"],
    "diffusion": ["policy.denoiser.mlp.width=8"],
    "moe_diffusion": ["policy.transformer.width=8", "policy.transformer.layers=1", "policy.transformer.heads=1"],
}


@pytest.fixture
def recipe(tmp_path):
    new_store(tmp_path / "s", (9, 12)).close()

    def make(policy, *changes):
        own = [
            "env.task=lift",
            f"data.path={tmp_path / 's'}",
            "data.episodes=0",
            "data.validation_fraction=0",
            f"policy.name={policy}",
        ]
        return load_recipe(None, [*own, *SMALL[policy], *changes])

    return make


@pytest.mark.parametrize(("policy", "clip"), [("diffusion", "policy.clip"), ("moe_diffusion", "policy.edm.clip")])
def test_actions_scaled_by_their_deviation_are_not_cut_off_at_one_of_them(recipe, policy, clip):
    # Policies that bound their clean estimate bounded it to one standard deviation: a third of all actions was out of reach.
    with pytest.raises(RefusedError, match=rf"data\.normalization=mean_std: .* {clip}=1 cuts them off\. Set {clip}=0"):
        learnables(recipe(policy, "data.normalization=mean_std"), device="cpu")
    for bound in (0, 100):
        made = learnables(recipe(policy, "data.normalization=mean_std", f"{clip}={bound}"), device="cpu")
        assert made.policy.normalizer.modes[ACTION] == "mean_std"


def test_actions_scaled_by_their_extremes_or_without_a_bound_are_trained_on(recipe):
    learnables(recipe("diffusion"), device="cpu")
    learnables(recipe("chunk_bc", "data.normalization=mean_std"), device="cpu")
