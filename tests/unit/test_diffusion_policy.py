"""The diffusion policy does what regression cannot: it keeps both ways of a demonstration that goes left or right."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.types import ACTION, STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.images import ImageConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.nets.transformer import TransformerConfig
from robolearn.nets.unet import UnetConfig
from robolearn.policies import chunk_bc, diffusion

CAMERA = "observation.images.front"
SPACES = Spaces(
    robot="panda",
    observation={STATE: FeatureSpec((1,)), CAMERA: FeatureSpec((48, 48, 3), "uint8")},
    action=FeatureSpec((2,)),
    action_low=(-5.0, -5.0),
    action_high=(5.0, 5.0),
    control_rate_hz=20.0,
)
MLP = DenoiserConfig(mlp=MlpConfig(width=64, blocks=2, level_width=32))
NETS = {
    "mlp": MLP,
    "unet": DenoiserConfig("unet", unet=UnetConfig(down_dims=(16, 32), level_width=16)),
    "transformer": DenoiserConfig("transformer", transformer=TransformerConfig(width=32, layers=2, level_width=16)),
}
AROUND = np.sin(np.linspace(0.0, np.pi, 4)) * 2.0
"""Sideways motion around an obstacle, to be done left (+) or right (-) with equal chance."""


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def two_way_data(rows, seed=0):
    """Chunks (rows, 4, 2): element 0 goes around left or right with 2 % noise, element 1 follows the state and has one mode."""
    rng = np.random.default_rng(seed)
    state = rng.uniform(-1, 1, (rows, 1, 1)).astype(np.float32)
    side = rng.choice([-1.0, 1.0], (rows, 1))
    sideways = side * AROUND + rng.normal(0, 0.04, (rows, 4))
    forward = np.repeat(state[:, :, 0], 4, axis=1)
    return {
        STATE: torch.from_numpy(state),
        ACTION: torch.from_numpy(np.stack((sideways, forward), axis=-1).astype(np.float32)),
        "action_is_pad": torch.zeros(rows, 4, dtype=torch.bool),
    }


def make(module, config, data):
    normalizer = Normalizer(flat_streams(select_observation(SPACES, config.observation_keys)))
    statistics = {key: data[key].flatten(0, 1).numpy() for key in normalizer.modes}
    torch.manual_seed(0)
    return module.Policy(config, SPACES, normalizer.fit({key: Statistics.of(rows) for key, rows in statistics.items()}))


def fit(policy, data, updates, learning_rate=2e-3):
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(policy.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    for _ in range(updates):
        rows = torch.randint(len(data[ACTION]), (256,), generator=rng)
        loss, _ = policy.loss({key: value[rows] for key, value in data.items()}, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return policy.eval()


def probe(rows):
    state = np.linspace(-0.9, 0.9, rows, dtype=np.float32)
    return {STATE: state[:, None, None]}, state


@pytest.mark.parametrize(("prediction", "share"), [("epsilon", 0.6), ("sample", 0.95), ("v_prediction", 0.6)])
def test_both_ways_are_kept(prediction, share):
    data = two_way_data(2_000)
    config = diffusion.Config(1, 4, (STATE,), MLP, prediction=prediction)
    policy = fit(make(diffusion, config, data), data, 400)
    seen, state = probe(300)
    chunk = policy.predict(seen, np.random.default_rng(0)).actions
    sideways = chunk[:, :, 0]
    off = np.minimum(np.abs(sideways - AROUND).max(axis=1), np.abs(sideways + AROUND).max(axis=1))
    # So early in training predicting the clean chunk is ahead: 0.99 against 0.73 and 0.71, which 1,000 updates raise to 0.9.
    assert np.mean(off < 0.35) > share, "chunks lie on one of the two ways as a whole"
    left = np.mean(sideways[:, 1] > 0)
    assert 0.3 < left < 0.7, "both ways are taken; 300 draws at 1/2 have a deviation of 0.03"
    assert np.abs(chunk[:, :, 1] - state[:, None]).mean() < 0.1, "the element with one mode follows the observation"


def test_regression_averages_the_two_ways():
    data = two_way_data(2_000)
    policy = fit(make(chunk_bc, chunk_bc.Config(1, 4, (STATE,), MLP, norm="l2"), data), data, 200)
    seen, state = probe(300)
    chunk = policy.predict(seen, np.random.default_rng(0)).actions
    # The least squared error is at the mean, 0: straight into the obstacle, sqrt(3) = 1.7 away from both ways.
    assert np.abs(chunk[:, 1, 0]).max() < 0.5
    assert np.abs(chunk[:, :, 1] - state[:, None]).mean() < 0.1


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_every_net_and_sampler_acts(kind, sampler):
    data = two_way_data(64)
    policy = make(diffusion, diffusion.Config(1, 4, (STATE,), NETS[kind], sampler=sampler, sampler_steps=5), data)
    assert policy.latent_shape == ((1 if sampler == "ddim" else 5), 4, 2)
    seen, _ = probe(3)
    chunk = policy.predict(seen, np.random.default_rng(0)).actions
    # The clean estimate is clipped to the range of the data and DDIM and DDPM end on it.
    low, high = data[ACTION].amin((0, 1)).numpy(), data[ACTION].amax((0, 1)).numpy()
    assert (chunk >= low - 1e-5).all()
    assert (chunk <= high + 1e-5).all()


def test_predicting_tensors_is_decoding_their_noise():
    data = two_way_data(64)
    policy = make(diffusion, diffusion.Config(1, 4, (STATE,), MLP), data)
    noise = torch.randn((64, 1, 4, 2), generator=torch.Generator().manual_seed(3))
    drawn = policy.predict_tensor(data, torch.Generator().manual_seed(3))
    torch.testing.assert_close(drawn, policy.decode_tensor(data, noise))


def test_images_reach_the_action():
    data = two_way_data(8) | {CAMERA: torch.randint(0, 256, (8, 1, 48, 48, 3), dtype=torch.uint8)}
    policy = make(diffusion, diffusion.Config(1, 4, (STATE, CAMERA), MLP, ImageConfig(keypoints=4)), data)
    loss, _ = policy.loss(data, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad.abs().max() > 0 for p in policy.encoder.images[0].keypoints.parameters() if p.ndim > 1)
    seen = {STATE: data[STATE].numpy(), CAMERA: data[CAMERA].numpy()}
    noise = np.zeros((8, *policy.latent_shape), np.float32)
    dark = policy.decode(seen | {CAMERA: np.zeros_like(seen[CAMERA])}, noise).actions
    assert not np.allclose(policy.decode(seen, noise).actions, dark)
    with pytest.raises(RefusedError, match=f"{CAMERA} must be uint8, got float32"):
        policy.decode(seen | {CAMERA: seen[CAMERA].astype(np.float32)}, noise)


@pytest.mark.parametrize(("module", "make_config"), [(diffusion, diffusion.Config), (chunk_bc, chunk_bc.Config)])
def test_padding_counts_unless_masked(module, make_config):
    data = two_way_data(16)
    padded = data | {"action_is_pad": torch.arange(4).expand(16, 4) >= 2}
    spoiled = padded | {ACTION: torch.where(padded["action_is_pad"][:, :, None], 0.5 * data[ACTION], data[ACTION])}

    def loss(config, batch):
        # The masked loss may still see padding as the net's input, so only the target's part is looked at: same noise, level 0.
        return make(module, config, data).eval().loss(batch, torch.Generator().manual_seed(0))[0].item()

    counted = make_config(1, 4, (STATE,), MLP)
    assert loss(counted, padded) == loss(counted, data)
    assert loss(counted, spoiled) != loss(counted, padded)
    masked = make_config(1, 4, (STATE,), MLP, mask_padding=True)
    assert loss(masked, padded) != loss(counted, padded)
    if module is chunk_bc:
        assert loss(masked, spoiled) == loss(masked, padded)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sampler_steps": 101}, r"sampler_steps=101 must lie in \[1, noise_levels=100\]"),
        ({"pred_horizon": 0}, "pred_horizon=0 must be >= 1"),
        ({"clip": -1.0}, "clip=-1.0 must not be negative"),
    ],
)
def test_impossible_settings_are_refused(changes, words):
    with pytest.raises(RefusedError, match=words):
        diffusion.Config(**changes)


def test_pictures_too_small_to_locate_anything_are_refused():
    spaces = replace(SPACES, observation=SPACES.observation | {CAMERA: FeatureSpec((32, 32, 3), "uint8")})
    config = diffusion.Config(observation_keys=(STATE, CAMERA))
    with pytest.raises(RefusedError, match=rf"{CAMERA} of shape \(32, 32, 3\) is too small"):
        diffusion.Policy(config, spaces, Normalizer({STATE: 1, ACTION: 2}))


def test_streams_that_are_not_offered_are_refused():
    config = diffusion.Config(observation_keys=("observation.stat",))
    with pytest.raises(RefusedError, match=r"'observation\.stat' is not offered.*Did you mean 'observation\.state'"):
        diffusion.Policy(config, SPACES, Normalizer({ACTION: 2}))
