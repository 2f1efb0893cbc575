"""What we export, stock lerobot 0.6.1 loads by its own means and computes as we do."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.types import ENVIRONMENT_STATE, STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.deploy.lerobot_export import export_lerobot
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.unet import UnetConfig
from robolearn.policies import make_policy
from robolearn.policies.diffusion import Config
from robolearn.policies.loading import load_policy

SPACES = Spaces(
    robot="panda",
    observation={STATE: FeatureSpec((4,)), ENVIRONMENT_STATE: FeatureSpec((3,)), "observation.joint_position": FeatureSpec((7,))},
    action=FeatureSpec((5,)),
    action_low=(-1.0,) * 5,
    action_high=(1.0,) * 5,
    control_rate_hz=20.0,
)
UNET = DenoiserConfig(kind="unet", unet=UnetConfig((16, 32), level_width=16))
CONFIG = Config(obs_horizon=1, pred_horizon=8, denoiser=UNET, sampler_steps=5)


def policy_of(config, keys=None, mode="min_max"):
    torch.manual_seed(0)
    config = replace(config, observation_keys=keys) if keys else config
    dims = flat_streams(select_observation(SPACES, config.observation_keys))
    rng = np.random.default_rng(0)
    rows = {key: rng.normal(rng.uniform(-2, 2, d), rng.uniform(0.1, 3, d), (200, d)) for key, d in dims.items()}
    rows[STATE][:, 1] = 0.7  # never moves
    normalizer = Normalizer(dims, mode).fit({key: Statistics.of(values) for key, values in rows.items()})
    return make_policy("diffusion", config, SPACES, normalizer).eval()


def lerobot_chunk(folder, seen, latent):
    """Load the folder as LeRobot's evaluator does, and play a chunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
        from lerobot.policies.factory import make_pre_post_processors
    policy = DiffusionPolicy.from_pretrained(folder)
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(folder))
    policy.reset()
    noise, actions = torch.from_numpy(latent[:, 0]), []
    for _ in range(policy.config.n_action_steps):
        batch = before({key: torch.from_numpy(value[:, 0]) for key, value in seen.items()})
        actions.append(after(policy.select_action(batch, noise=noise)))
    return torch.stack(actions, dim=1).numpy()


@pytest.mark.parametrize(
    ("changes", "keys", "mode"),
    [
        ({}, None, "min_max"),
        ({"prediction": "sample", "clip": 0.0}, (ENVIRONMENT_STATE, STATE), "mean_std"),
        ({"schedule": "linear", "clip": 2.0}, None, "identity"),
        ({"denoiser": replace(UNET, unet=replace(UNET.unet, modulate_scale=False, kernel_size=3))}, None, "min_max"),
    ],
)
def test_stock_lerobot_computes_the_same_chunk(changes, keys, mode, tmp_path):
    policy = policy_of(replace(CONFIG, **changes), keys, mode)
    export_lerobot(policy, tmp_path / "out", exec_horizon=8)
    rng = np.random.default_rng(1)
    seen = {k: rng.normal(size=(2, 1, *SPACES.observation[k].shape)).astype(np.float32) for k in (STATE, ENVIRONMENT_STATE)}
    latent = rng.normal(size=(2, *policy.latent_shape)).astype(np.float32)
    ours = policy.decode(seen, latent).actions
    np.testing.assert_allclose(lerobot_chunk(tmp_path / "out", seen, latent), ours, rtol=1e-5, atol=1e-5)
    # And back: our reader of LeRobot's folders opens it.
    again = load_policy(tmp_path / "out", spaces=SPACES)
    np.testing.assert_allclose(again.decode(seen, latent).actions, ours, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"obs_horizon": 2}, "policy.obs_horizon=2 must be 1"),
        ({"denoiser": replace(UNET, unet=UnetConfig((16, 32), groups=4))}, "policy.denoiser.unet.groups=4 must be 8"),
        ({"denoiser": DenoiserConfig()}, "policy.denoiser.kind='mlp' must be unet"),
        ({"sampler": "ddpm"}, "policy.sampler='ddpm' must be ddim"),
        ({"prediction": "v_prediction"}, "policy.prediction='v_prediction' must be epsilon or sample"),
        ({"spacing": "trailing"}, "policy.spacing='trailing' must be leading"),
        ({"max_delay": 2}, "policy.max_delay=2 must be 0"),
        ({"observation_keys": (STATE, "observation.joint_position")}, "joint_position'] must be"),
        ({"pred_horizon": 6}, "policy.pred_horizon=6 must be a multiple of 4"),
    ],
)
def test_what_lerobot_cannot_say_is_refused_by_name(changes, what, tmp_path):
    policy = policy_of(replace(CONFIG, **changes))
    with pytest.raises(RefusedError) as refused:
        export_lerobot(policy, tmp_path / "out", exec_horizon=4)
    assert what in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_an_action_count_beyond_the_chunk_and_another_policy_are_refused(tmp_path):
    with pytest.raises(RefusedError, match=r"exec_horizon=9 must be in \[1, 8\]"):
        export_lerobot(policy_of(CONFIG), tmp_path / "out", exec_horizon=9)
    dims = flat_streams(select_observation(SPACES, (STATE, ENVIRONMENT_STATE)))
    from robolearn.policies.flow import Config as Flow

    flow = make_policy("flow", Flow(), SPACES, Normalizer(dims, "identity"))
    with pytest.raises(RefusedError, match="kind 'diffusion', not 'flow'"):
        export_lerobot(flow, tmp_path / "out", exec_horizon=4)
