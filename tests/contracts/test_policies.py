"""What every file of ``robolearn/policies`` keeps: walks the folder, so a new policy is held to it without being named here."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from no_waiting import NoWaiting

from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.protocols import LatentPolicy, Policy
from robolearn.core.seeding import standard_normal
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.nets.moe import Experts
from robolearn.policies import config_class, make_policy, policy_names
from robolearn.policies.loading import load_policy, save_policy

JOINTS = "observation.joint_position"
SPACES = Spaces(
    robot="panda",
    observation={STATE: FeatureSpec((4,)), ENVIRONMENT_STATE: FeatureSpec((3,)), JOINTS: FeatureSpec((7,))},
    action=FeatureSpec((5,), names=("dx", "dy", "dz", "yaw", "gripper")),
    action_low=(-1.0, -1.0, -1.0, -0.5, -1.0),
    action_high=(1.0, 1.0, 1.0, 0.5, 1.0),
    control_rate_hz=20.0,
)

every_policy = pytest.mark.parametrize("name", policy_names())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fitted(dims, seed=0):
    """A normaliser fitted on streams of different centres and spreads."""
    rng = np.random.default_rng(seed)
    rows = {key: rng.normal(rng.uniform(-2, 2, d), rng.uniform(0.1, 3, d), (200, d)) for key, d in dims.items()}
    return Normalizer(dims).fit({key: Statistics.of(values) for key, values in rows.items()})


def fresh(name, seed=0, normalizer=None):
    """A policy of the default configuration; weights, if it has any, from ``seed``."""
    config = config_class(name)()
    torch.manual_seed(seed)
    keys = getattr(getattr(config, "base", config), "config", config)
    keys = getattr(keys, "observation_keys", None)
    if keys is None:
        return make_policy(name, config, SPACES, None)
    return make_policy(name, config, SPACES, normalizer or fitted(flat_streams(select_observation(SPACES, keys))))


def observation(policy, rows, seed=1):
    """Raw observations as an environment gives them, with a stream that the policy may not read."""
    rng = np.random.default_rng(seed)
    shape = (rows, policy.obs_horizon)
    return {k: rng.normal(size=(*shape, *f.shape)).astype(np.float32) for k, f in SPACES.observation.items()}


def batch(policy, rows=32, seed=2):
    """A training batch whose actions are a function of the observation."""
    seen = {k: torch.from_numpy(v) for k, v in observation(policy, rows, seed).items()}
    drive = seen[STATE][:, -1, :1] + torch.linspace(0, 1, policy.pred_horizon)
    action = torch.tanh(drive)[:, :, None].repeat(1, 1, SPACES.action_dim)
    pad = torch.zeros(rows, policy.pred_horizon, dtype=torch.bool)
    pad[:, -2:] = torch.arange(rows)[:, None] % 2 == 0
    return seen | {ACTION: action, "action_is_pad": pad}


def generators(*seeds):
    return [np.random.default_rng(seed) for seed in seeds]


@every_policy
@pytest.mark.parametrize("rows", [1, 3])
def test_a_chunk_has_the_promised_shape_and_is_finite(name, rows):
    policy = fresh(name)
    assert isinstance(policy, Policy)
    chunk = policy.predict(observation(policy, rows), np.random.default_rng(0)).actions
    assert chunk.shape == (rows, policy.pred_horizon, SPACES.action_dim)
    assert chunk.dtype == np.float32
    assert np.isfinite(chunk).all()


@every_policy
def test_the_same_rng_gives_the_same_chunk(name):
    policy = fresh(name)
    seen = observation(policy, 3)
    first, again = (policy.predict(seen, np.random.default_rng(5)).actions for _ in range(2))
    np.testing.assert_array_equal(first, again)


@every_policy
def test_a_row_does_not_depend_on_its_batch_mates(name):
    policy = fresh(name)
    seen = observation(policy, 3)
    together = policy.predict(seen, generators(10, 11, 12)).actions
    for row in range(3):
        alone = policy.predict({k: v[row : row + 1] for k, v in seen.items()}, generators(10 + row)).actions
        np.testing.assert_allclose(alone[0], together[row], atol=2e-5)


@every_policy
def test_acting_leaves_the_observation_and_torchs_generator_alone(name):
    policy = fresh(name)
    seen = observation(policy, 2)
    before, state = {k: v.copy() for k, v in seen.items()}, torch.get_rng_state()
    policy.predict(seen, np.random.default_rng(0))
    assert torch.equal(torch.get_rng_state(), state)
    for key in seen:
        np.testing.assert_array_equal(seen[key], before[key])


@every_policy
@pytest.mark.parametrize("weights", ["raw", "ema"])
def test_a_saved_policy_loads_equal(name, weights, tmp_path):
    policy, other = fresh(name, seed=0), fresh(name, seed=1)
    averaged = other.state_dict() if isinstance(other, torch.nn.Module) else None
    save_policy(tmp_path, policy, averaged=averaged)
    loaded = load_policy(tmp_path, weights=weights, spaces=SPACES)
    seen = observation(policy, 3)
    wanted = (policy if weights == "raw" else other).predict(seen, generators(1, 2, 3)).actions
    np.testing.assert_array_equal(loaded.predict(seen, generators(1, 2, 3)).actions, wanted)
    assert loaded.config == policy.config
    assert loaded.spaces == policy.spaces


@every_policy
def test_the_card_is_json_and_names_the_policy(name):
    policy = fresh(name)
    card = json.loads(json.dumps(policy.card()))
    assert card["policy"] == name
    assert Spaces.from_json(card["spaces"]) == policy.spaces
    assert set(policy.spaces.observation) <= set(SPACES.observation)


@every_policy
def test_bad_observations_are_refused_by_name(name):
    policy = fresh(name)
    key = next(iter(policy.spaces.observation))
    good, rng = observation(policy, 2), np.random.default_rng(0)
    bad = {
        "lacks": {k: v for k, v in good.items() if k != key},
        r"shape \(2, ": good | {key: good[key][:, :, :-1]},
        r"obs_horizon": good | {key: np.repeat(good[key], 2, axis=1)},
        "not finite, first in row 1": good | {key: np.where(np.arange(2)[:, None, None] == 1, np.nan, good[key])},
        "floating point, got int64": good | {key: good[key].astype(np.int64)},
    }
    for words, seen in bad.items():
        with pytest.raises(RefusedError, match=f"(?s)(?=.*{re.escape(key)}).*{words}"):
            policy.predict(seen, rng)


@every_policy
def test_one_generator_per_row_is_demanded_by_a_policy_that_draws(name):
    policy = fresh(name)
    one, another = (policy.predict(observation(policy, 3), np.random.default_rng(seed)).actions for seed in (0, 1))
    if np.array_equal(one, another):
        pytest.skip("draws nothing")
    with pytest.raises(RefusedError, match="1 generators for 3 rows"):
        policy.predict(observation(policy, 3), generators(0))


@every_policy
def test_other_spaces_are_refused(name, tmp_path):
    save_policy(tmp_path, fresh(name))
    weights = "raw"
    with pytest.raises(RefusedError, match="robot 'panda', but 'ur5e' is offered"):
        load_policy(tmp_path, weights=weights, spaces=replace(SPACES, robot="ur5e"))
    with pytest.raises(RefusedError, match=r"control_rate_hz needs 20\.0, offered 10\.0"):
        load_policy(tmp_path, weights=weights, spaces=replace(SPACES, control_rate_hz=10.0))


def trainable(name):
    policy = fresh(name)
    if not hasattr(policy, "loss"):
        pytest.skip("has nothing to train")
    return policy


@every_policy
def test_the_loss_falls_on_32_samples(name):
    policy = trainable(name)
    data, rng = batch(policy), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam([p for p in policy.parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(60):
        loss, metrics = policy.loss(data, rng)
        assert loss.ndim == 0
        assert all(torch.isfinite(value) and not value.requires_grad for value in metrics.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


@every_policy
def test_the_loss_draws_from_its_generator_alone(name):
    policy = trainable(name).eval()
    data, state = batch(policy), torch.get_rng_state()
    first, again = (policy.loss(data, torch.Generator().manual_seed(3))[0] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)


@every_policy
def test_the_loss_and_its_gradient_never_make_the_host_wait(name, monkeypatch):
    monkeypatch.setattr(Experts, "of_chosen", Experts.of_all)  # as on a GPU
    policy = trainable(name)
    data, rng = batch(policy), torch.Generator().manual_seed(0)
    policy.loss(data, rng)  # some things are looked at once
    with NoWaiting():
        policy.loss(data, rng)[0].backward()


def test_waiting_is_noticed():
    for wait in (lambda x: float(x[0]), lambda x: x[x > 0], lambda x: bool(x.any()), torch.nonzero):
        with pytest.raises(AssertionError), NoWaiting():
            wait(torch.ones(3))


@every_policy
def test_every_parameter_learns_and_the_normaliser_does_not(name):
    policy = trainable(name)
    policy.loss(batch(policy), torch.Generator().manual_seed(0))[0].backward()
    assert {n for n, p in policy.named_parameters() if p.grad is None} == set()
    assert not any(n.startswith("normalizer") for n, _ in policy.named_parameters())


@every_policy
def test_bf16_autocast_gives_nearly_the_same_loss(name):
    policy = trainable(name)
    data = batch(policy)
    exact = policy.loss(data, torch.Generator().manual_seed(0))[0]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = policy.loss(data, torch.Generator().manual_seed(0))[0]
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)


@every_policy
def test_bad_batches_are_refused_by_name(name):
    policy = trainable(name)
    good, rng = batch(policy), torch.Generator()
    key = next(iter(policy.spaces.observation))
    with pytest.raises(RefusedError, match=f"lacks '{key}'"):
        policy.loss({k: v for k, v in good.items() if k != key}, rng)
    with pytest.raises(RefusedError, match=rf"{key} must have shape \(b, {policy.obs_horizon}"):
        policy.loss(good | {key: good[key][:, :, :-1]}, rng)
    with pytest.raises(RefusedError, match=rf"action must have shape \(b, {policy.pred_horizon}, 5\), got \(32, 3, 5\)"):
        policy.loss(good | {ACTION: good[ACTION][:, :3]}, rng)
    with pytest.raises(RefusedError, match="lacks 'action'"):
        policy.loss({k: v for k, v in good.items() if k != ACTION}, rng)


@every_policy
def test_a_normaliser_that_is_unfitted_or_of_other_streams_is_refused(name):
    policy = trainable(name)
    dims = flat_streams(policy.spaces)
    with pytest.raises(RefusedError, match="has not been fitted"):
        fresh(name, normalizer=Normalizer(dims)).predict(observation(policy, 1), np.random.default_rng(0))
    with pytest.raises(RefusedError, match=r"must know exactly \['action', .*; it knows"):
        fresh(name, normalizer=fitted({ACTION: SPACES.action_dim}))


@every_policy
def test_broken_checkpoints_are_refused(name, tmp_path):
    policy = trainable(name)
    save_policy(tmp_path, policy)
    card, file = policy.card(), tmp_path / "config.json"

    def refuses(words, weights="raw"):
        with pytest.raises(RefusedError, match=words):
            load_policy(tmp_path, weights=weights)

    refuses(r"ema\.safetensors is missing", weights="ema")
    refuses("weights='best' must be one of", weights="best")
    file.write_text(json.dumps(card | {"policy": name + "x"}))
    refuses(f"Unknown policy '{name}x'.*Did you mean '{name}'")
    file.write_text(json.dumps(card | {"config": card["config"] | {"pred_horizont": 3}}))
    refuses("unknown key 'pred_horizont'.*Did you mean 'pred_horizon'")
    file.write_text(json.dumps(card | {"config": card["config"] | {"pred_horizon": 2 * policy.pred_horizon}}))
    refuses(r"tensor '.*' must be .*, got")
    file.write_text(json.dumps({k: v for k, v in card.items() if k != "spaces"}))
    refuses("lacks the field 'spaces'")
    file.write_text(json.dumps(card))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    refuses("truncated or damaged")


def latent(name):
    policy = fresh(name)
    if not isinstance(policy, LatentPolicy):
        pytest.skip("is not generative")
    return policy


@every_policy
def test_predicting_is_decoding_standard_normal_noise(name):
    policy = latent(name)
    seen = observation(policy, 3)
    noise = standard_normal(generators(1, 2, 3), (3, *policy.latent_shape))
    predicted = policy.predict(seen, generators(1, 2, 3)).actions
    np.testing.assert_array_equal(policy.decode(seen, noise).actions, predicted)
    assert not np.allclose(policy.decode(seen, -noise).actions, predicted), "the latent must matter"


@every_policy
def test_decoding_is_differentiable_with_respect_to_the_latent(name):
    policy = latent(name)
    seen = {k: torch.from_numpy(v) for k, v in observation(policy, 2).items()}
    noise = torch.randn((2, *policy.latent_shape), generator=torch.Generator().manual_seed(0)) * 0.1
    noise.requires_grad_()
    chunk = policy.decode_tensor(seen, noise)
    (gradient,) = torch.autograd.grad(chunk[0].sum(), noise)
    assert torch.isfinite(gradient).all()
    assert gradient[0].abs().max() > 0
    assert gradient[1].abs().max() == 0, "row 0 must not depend on row 1's latent"


@every_policy
def test_a_latent_of_another_shape_is_refused(name):
    policy = latent(name)
    with pytest.raises(RefusedError, match=r"latent_noise must have shape \(2, .*got \(2, 3\)"):
        policy.decode(observation(policy, 2), np.zeros((2, 3), np.float32))


def test_an_unknown_policy_is_refused_with_the_nearest_name():
    with pytest.raises(RefusedError, match=r"Unknown policy 'difusion'.*Did you mean 'diffusion'"):
        config_class("difusion")
    with pytest.raises(RefusedError, match=r"takes a robolearn\.policies\.diffusion\.Config, got a robolearn\.policies\.hold"):
        make_policy("diffusion", config_class("hold")(), SPACES, None)
