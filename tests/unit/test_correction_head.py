"""The correction head: which old chunks it is trained on, that it learns, and the commands that train heads and students."""

from pathlib import Path

import numpy as np
import pytest
import torch
from episode_samples import new_store

from robolearn.commands.correct import correct_run
from robolearn.commands.distill import distill_run
from robolearn.commands.recipe import load_recipe
from robolearn.commands.train import train_recipe
from robolearn.core.errors import RefusedError
from robolearn.core.protocols import ContinuingPolicy, CorrectingPolicy
from robolearn.core.types import ACTION, STATE, FeatureSpec, Spaces
from robolearn.data.dataset import PAD_SUFFIX
from robolearn.data.normalizer import Normalizer
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import config_class, make_policy
from robolearn.policies.loading import load_policy
from robolearn.refine.correction_head import CorrectionHead

SPACES = Spaces("r", {STATE: FeatureSpec((1,))}, FeatureSpec((1,)), (-1.0,), (1.0,), 10.0)
OBS, HORIZON, REACH = 2, 6, 4


def head(scale=1.0):
    torch.manual_seed(0)
    small = DenoiserConfig(mlp=MlpConfig(width=16, blocks=1))
    config = config_class("flow")(observation_keys=(STATE,), obs_horizon=OBS, pred_horizon=HORIZON, denoiser=small)
    base = make_policy("flow", config, SPACES, Normalizer({STATE: 1, ACTION: 1}, "identity"))
    return CorrectionHead.around(base, residual_scale=scale)


def windows(rows, real, state=None):
    """Windows of ``rows``: the newest observation and action are 0; a step further back is one less, or as given."""
    steps = OBS + REACH
    seen = torch.arange(1.0 - steps, 1.0).expand(rows, steps) if state is None else state
    pad = torch.arange(steps).expand(rows, steps) < (steps - torch.tensor(real))[:, None]
    return {STATE: seen[..., None].clone(), STATE + PAD_SUFFIX: pad, ACTION: torch.zeros(rows, HORIZON, 1)}


def test_ages_reach_as_far_back_as_the_windows_and_no_further_than_the_episode(monkeypatch):
    policy, asked = head(), []
    rows = torch.arange(HORIZON) / 10.0

    def chunk(old, rng):
        asked.append(old[STATE][..., 0])
        return rows[None, :, None].expand(len(old[STATE]), -1, -1)

    monkeypatch.setattr(policy.base, "predict_tensor", chunk)
    real = [1, 3, 6] * 200  # steps of the episode that the windows hold, padding aside
    _, metrics = policy.loss(windows(600, real), torch.Generator().manual_seed(0))
    newest, before = asked[0][:, -1], asked[0][:, 0]
    torch.testing.assert_close(newest - before, torch.ones(600))
    ages = -newest
    for n in (1, 3, 6):
        assert set(ages[torch.tensor(real) == n].tolist()) == set(range(min(n - 1, REACH) + 1))
    # The base's action is the row of its age: age / 10 against demonstrated zeros.
    assert metrics["base_loss"].item() == pytest.approx((ages / 10).square().mean().item())


def test_an_untrained_head_leaves_the_loss_and_a_trained_one_corrects_what_the_base_could_not_know():
    policy = head()
    rng = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 3e-3)
    weights = {name: p.clone() for name, p in policy.base.state_dict().items()}
    losses = []
    for _ in range(120):
        state = torch.rand(64, OBS + REACH, generator=rng) * 1.6 - 0.8  # nothing of it can be foreseen
        batch = windows(64, [OBS + REACH] * 64, state) | {ACTION: state[:, -1, None, None].expand(-1, HORIZON, 1)}
        loss, metrics = policy.loss(batch, rng)
        losses.append((loss.item(), metrics["base_loss"].item()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0][0] == losses[0][1]
    assert losses[-1][0] < 0.15 * losses[-1][1]
    assert all(torch.equal(p, weights[name]) for name, p in policy.base.state_dict().items())
    assert not policy.base.training


@pytest.mark.parametrize("reach", [0, HORIZON])
def test_windows_that_reach_no_chunk_are_refused_by_name(reach):
    batch = {STATE: torch.zeros(2, OBS + reach, 1), STATE + PAD_SUFFIX: torch.zeros(2, OBS + reach, dtype=torch.bool)}
    with pytest.raises(RefusedError, match=rf"{OBS + reach} observation steps .* must lie in \[1, {HORIZON - 1}\]"):
        head().loss(batch | {ACTION: torch.zeros(2, HORIZON, 1)}, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two updates on a small store."""
    folder = tmp_path_factory.mktemp("runs")
    new_store(folder / "demos", (9, 12, 8)).close()
    recipe = [
        f"run_dir={folder}/base", f"data.path={folder}/demos", "data.episodes=3", "data.validation_fraction=0.4", "env.task=lift",
        "env.fidelity=exact", "policy.name=flow", "policy.pred_horizon=6", "policy.max_delay=2",
        "policy.denoiser.mlp.width=16", "policy.denoiser.mlp.blocks=1", "train.steps=2", "train.batch_size=8",
        "train.checkpoint_every=2", "train.validate_every=2", "train.tensorboard=false",
    ]  # fmt: skip
    train_recipe(load_recipe(None, recipe))
    return folder / "base"


def test_a_run_gets_a_head_and_acts_continues_and_corrects_as_its_base_does_until_it_has_learned(run):
    result = correct_run(run, ["train.steps=2"], oldest=3, scale=0.25)
    assert (result.step, result.checkpoint.parents[1]) == (2, Path(f"{run}_corrected"))
    policy = load_policy(result.checkpoint)
    assert isinstance(policy, ContinuingPolicy)
    assert isinstance(policy, CorrectingPolicy)
    assert (policy.config.residual_scale, policy.obs_horizon) == (0.25, 2)
    base = load_policy(run / "checkpoints" / "last")
    seen = {key: np.zeros((1, 2, *f.shape), np.float32) for key, f in base.spaces.observation.items()}
    draws = [np.random.default_rng(0) for _ in range(2)]
    np.testing.assert_array_equal(policy.predict(seen, draws[0]).actions, base.predict(seen, draws[1]).actions)


def test_a_run_is_distilled(run):
    student = load_policy(distill_run(run, ["train.steps=2"]).checkpoint)
    assert student.config.sampler == "one_step"


@pytest.mark.parametrize(
    ("overrides", "settings", "words"),
    [
        (["policy.pred_horizon=4"], {}, "settings cannot be overridden"),
        ([], {"oldest": 6}, r"oldest=6 must lie in \[1, 5\]"),
        ([], {"oldest": 0}, r"oldest=0 must lie in \[1, 5\]"),
        ([], {"scale": 0.0}, r"residual_scale=0\.0 must lie in"),
    ],
)
def test_bad_wishes_are_refused_by_name(run, overrides, settings, words):
    with pytest.raises(RefusedError, match=words):
        correct_run(run, [f"run_dir={run}_refused", *overrides], **settings)
