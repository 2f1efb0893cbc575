"""The fast decision function: the policy's own numbers, for one batch size and one device."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.protocols import ContinuingPolicy, LatentPolicy
from robolearn.core.types import ENVIRONMENT_STATE, STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.deploy.decision import DecisionConfig, DecisionFunction, _Decode, pin_threads
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import config_class, make_policy
from robolearn.policies.loading import load_decision, save_policy

CAMERA = "observation.images.front"
SPACES = Spaces(
    robot="panda",
    observation={
        STATE: FeatureSpec((4,)),
        CAMERA: FeatureSpec((40, 40, 3), dtype="uint8"),
        ENVIRONMENT_STATE: FeatureSpec((3,)),
    },
    action=FeatureSpec((5,)),
    action_low=(-1.0,) * 5,
    action_high=(1.0,) * 5,
    control_rate_hz=20.0,
)
KEYS = (STATE, ENVIRONMENT_STATE)


def policy_of(name, keys=KEYS, **settings):
    """A small policy whose normaliser is far from the identity, and whose output is not zero."""
    torch.manual_seed(0)
    dims = flat_streams(select_observation(SPACES, keys))
    rng = np.random.default_rng(0)
    rows = {k: rng.normal(rng.uniform(-2, 2, d), rng.uniform(0.1, 1, d), (100, d)) for k, d in dims.items()}
    normalizer = Normalizer(dims).fit({key: Statistics.of(values) for key, values in rows.items()})
    if name in ("diffusion", "flow"):
        settings = {"denoiser": DenoiserConfig(mlp=MlpConfig(width=32, blocks=1))} | settings
    config = config_class(name)(pred_horizon=4, observation_keys=keys, **settings)
    policy = make_policy(name, config, SPACES, normalizer).eval()
    for parameter in policy.denoiser.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def observation(rows, keys=KEYS, seed=1):
    rng = np.random.default_rng(seed)
    seen = {k: rng.normal(size=(rows, 2, *SPACES.observation[k].shape)).astype(np.float32) for k in keys if k != CAMERA}
    if CAMERA in keys:
        seen[CAMERA] = rng.integers(0, 256, (rows, 2, 40, 40, 3), dtype=np.uint8)
    return seen


@pytest.mark.parametrize("name", ["diffusion", "flow", "moe_diffusion", "beso"])
@pytest.mark.parametrize(("batch", "mode"), [(1, "traced"), (3, "traced"), (3, "eager")])
def test_it_decides_as_its_policy_does(name, batch, mode):
    policy = policy_of(name)
    fast = DecisionFunction(policy, DecisionConfig(batch=batch, mode=mode))
    assert isinstance(fast, LatentPolicy)
    assert isinstance(fast, ContinuingPolicy)
    for seed in range(3):
        seen = observation(batch, seed=seed)
        wanted = policy.predict(seen, np.random.default_rng(seed)).actions
        np.testing.assert_allclose(fast.predict(seen, np.random.default_rng(seed)).actions, wanted, atol=1e-5)
    assert fast.difference <= 1e-5


def test_what_the_weights_alone_decide_is_not_computed_again_in_a_traced_decision():
    # Routes and fused experts of all noise levels had been recorded as part of every decision.
    fast = DecisionFunction(policy_of("moe_diffusion"), DecisionConfig(batch=1))
    assert "aten::gelu" not in {node.kind() for node in fast._run.graph.nodes()}  # only routers have one


def test_cameras_are_seen_in_the_policys_own_order():
    keys = (CAMERA, *KEYS)
    policy = policy_of("diffusion", keys)
    fast = DecisionFunction(policy, DecisionConfig())
    seen = observation(1, keys)
    wanted = policy.predict(seen, np.random.default_rng(0)).actions
    np.testing.assert_allclose(fast.predict(seen, np.random.default_rng(0)).actions, wanted, atol=1e-5)
    changed = seen | {CAMERA: 255 - seen[CAMERA]}
    assert np.abs(fast.predict(changed, np.random.default_rng(0)).actions - wanted).max() > 1e-4


def test_a_chunk_that_was_handed_out_is_not_written_to_by_the_next_decision():
    fast = DecisionFunction(policy_of("diffusion"), DecisionConfig())
    first = fast.predict(observation(1), np.random.default_rng(0)).actions
    kept = first.copy()
    fast.predict(observation(1, seed=5), np.random.default_rng(1))
    np.testing.assert_array_equal(first, kept)


def test_another_batch_or_device_is_refused_by_name():
    policy = policy_of("diffusion")
    fast = DecisionFunction(policy, DecisionConfig(batch=2))
    with pytest.raises(RefusedError, match="built for a batch of 2, it got 3 rows"):
        fast.decode(observation(3), np.zeros((3, *policy.latent_shape), np.float32))
    with pytest.raises(RefusedError, match="built for a batch of 2, it got 1 rows"):
        fast.continue_chunk(observation(1), np.random.default_rng(0), np.zeros((1, 2, 5)), delay=1, method="guided")
    with pytest.raises(RefusedError, match="environment_state must have shape"):
        fast.decode(observation(2) | {ENVIRONMENT_STATE: np.zeros((2, 2, 4), np.float32)}, np.zeros((2, *policy.latent_shape)))
    policy.to("meta")
    with pytest.raises(RefusedError, match="built for cpu; its policy is on meta"):
        fast.predict(observation(2), np.random.default_rng(0))
    with pytest.raises(RefusedError, match="CUDA graph needs a policy on a GPU; this one is on cpu"):
        DecisionFunction(policy_of("diffusion"), DecisionConfig(mode="eager", cuda_graph=True))
    with pytest.raises(RefusedError, match="batch >= 1"):
        DecisionConfig(batch=0)
    with pytest.raises(RefusedError, match="a CUDA graph is made of eager or compiled only"):
        DecisionConfig(cuda_graph=True)


def test_bf16_is_refused_where_it_changes_the_actions_too_much():
    policy = policy_of("diffusion")
    fast = DecisionFunction(policy, DecisionConfig(precision="bf16", tolerance=1.0))
    assert 1e-5 < fast.difference < 1.0
    with pytest.raises(RefusedError, match=r"more than 1e-05 \(bf16"):
        DecisionFunction(policy, DecisionConfig(precision="bf16", tolerance=1e-5))


def test_numbers_that_are_not_finite_are_refused(monkeypatch):
    # The largest of 0 and not-a-number was 0: a fast path that gave nothing else passed the comparison.
    forward = _Decode.forward
    monkeypatch.setattr(_Decode, "forward", lambda self, *inputs: forward(self, *inputs) * torch.nan)
    with pytest.raises(RefusedError, match="differs from its policy by nan"):
        DecisionFunction(policy_of("diffusion"), DecisionConfig(mode="eager"))


def test_an_action_without_a_range_is_compared_in_its_own_unit(monkeypatch):
    # A gap was divided by a half range of 0, and 0 / 0 taken for no difference.
    held = replace(SPACES, action_low=(-1.0,) * 4 + (0.0,), action_high=(1.0,) * 4 + (0.0,))
    policy = policy_of("diffusion")
    policy.spaces = select_observation(held, KEYS)
    assert DecisionFunction(policy, DecisionConfig(mode="eager")).difference <= 1e-5
    forward = _Decode.forward
    shift = torch.tensor([0.0, 0.0, 0.0, 0.0, 0.5])
    monkeypatch.setattr(_Decode, "forward", lambda self, *inputs: forward(self, *inputs) + shift)
    with pytest.raises(RefusedError, match=r"differs from its policy by 0\.5 half ranges"):
        DecisionFunction(policy, DecisionConfig(mode="eager"))


def test_operations_are_counted_at_the_operators():
    policy = policy_of("diffusion", sampler_steps=1)
    # Multiply-adds of one step at width 32, chunk 4 x 5, condition 2 x 7, level features 64 -> 256 -> 64 -> 2 x 32:
    # levels 64*256 + 256*64 + 64*64; condition 14*32 + 32*32; in 20*32; block 2 layers of 32*h; out 32*20.
    fast = DecisionFunction(policy, DecisionConfig())
    linear = [m for m in policy.denoiser.modules() if isinstance(m, torch.nn.Linear)]
    assert fast.operations() == 2 * sum(m.in_features * m.out_features for m in linear)
    four = DecisionFunction(policy, DecisionConfig(batch=4)).operations()
    level = 2 * (64 * 256 + 256 * 64 + 64 * 64)
    assert four == 4 * (fast.operations() - level) + level


def test_a_checkpoint_becomes_a_decision_function_in_one_call(tmp_path):
    policy = policy_of("flow")
    save_policy(tmp_path, policy, averaged=policy.state_dict())
    fast = load_decision(tmp_path, spaces=SPACES)
    wanted = policy.predict(observation(1), np.random.default_rng(2)).actions
    np.testing.assert_allclose(fast.predict(observation(1), np.random.default_rng(2)).actions, wanted, atol=1e-5)
    with pytest.raises(RefusedError, match="made for robot"):
        load_decision(tmp_path, spaces=replace(SPACES, robot="ur5e"))


def test_threads_are_pinned_to_processors_that_exist(monkeypatch):
    bound = []
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr("os.sched_setaffinity", lambda _, cpus: bound.append(cpus))
    monkeypatch.setattr(torch, "set_num_threads", bound.append)
    pin_threads([1])
    assert bound == [{1}, 1]
    with pytest.raises(RefusedError, match=r"\[2\] cannot be bound; available are \[0, 1\]"):
        pin_threads([2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["diffusion", "flow", "moe_diffusion", "beso"])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_recorded_decision_is_the_policys_own(name, compiled):
    policy = policy_of(name).to("cuda")
    fast = DecisionFunction(policy, DecisionConfig(batch=2, mode="compiled" if compiled else "eager", cuda_graph=True))
    for seed in range(3):
        seen = observation(2, seed=seed)
        wanted = policy.predict(seen, np.random.default_rng(seed)).actions
        np.testing.assert_allclose(fast.predict(seen, np.random.default_rng(seed)).actions, wanted, atol=1e-4)
