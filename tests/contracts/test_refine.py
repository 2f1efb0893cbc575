"""What every file of ``robolearn/refine`` keeps: walks the folder, so a new method is held to it without being named here."""

import copy
import math
from dataclasses import fields

import numpy as np
import pytest
import torch
from no_waiting import NoWaiting
from repeats import Repeats

from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams
from robolearn.core.protocols import CorrectingPolicy, LatentPolicy, Policy
from robolearn.core.types import ENVIRONMENT_STATE, STATE, EnvSpec, FeatureSpec, Spaces, Step
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.data.replay_buffer import ReplayBuffer, sample_mixed
from robolearn.nets.critics import CriticConfig
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import chunk_bc, diffusion
from robolearn.policies.loading import load_policy, save_policy
from robolearn.refine import config_class, method, method_names
from robolearn.refine.base import LearnerConfig, weights_hash
from robolearn.refine.recorded import RECORDERS
from robolearn.train.lanes import Lanes
from robolearn.train.refiner import ObservingRefiner, Phase, ReplayRefiner

SPACES = Spaces(
    robot="panda",
    observation={STATE: FeatureSpec((4,)), ENVIRONMENT_STATE: FeatureSpec((3,))},
    action=FeatureSpec((3,), names=("dx", "dy", "gripper")),
    action_low=(-1.0, -0.5, -1.0),
    action_high=(1.0, 0.5, 1.0),
    control_rate_hz=20.0,
)
ROWS = 6
BRIEF = {"rollout_steps": 24, "epochs": 4, "episodes": 6, "candidates": 4, "batch_size": 32, "updates_per_step": 0.1}
"""Settings of methods that keep their own memory, so that they learn from little."""
NET = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=16, blocks=1, level_width=8))

every_method = pytest.mark.parametrize("name", method_names())


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_base(kind=diffusion, **settings):
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    dims = flat_streams(SPACES)
    normalizer = Normalizer(dims).fit({k: Statistics.of(rng.normal(0, 0.5, (100, d))) for k, d in dims.items()})
    net = {"denoiser": NET, "sampler_steps": 3} if kind is diffusion else {"net": NET}
    return kind.Policy(kind.Config(pred_horizon=6, **net, **settings), SPACES, normalizer).eval().requires_grad_(False)


class TenStepEnv:
    """Random observations whatever is done; every other episode succeeds at its tenth step, the others are cut there."""

    def __init__(self, num_envs=ROWS):
        self.num_envs, self.spec = num_envs, EnvSpec("ten_steps", "native", SPACES, 10)
        self.t, self.episode = np.zeros(num_envs, int), np.arange(num_envs)
        self.rng = np.random.default_rng(0)

    def reset(self, seeds, mask=None):
        mask = np.ones(self.num_envs, bool) if mask is None else mask
        self.t[mask] = 0
        self.episode[mask] += 1
        return self.observe()

    def step(self, action):
        self.t += 1
        over, good = self.t == 10, self.episode % 2 == 0
        return Step(self.observe(), np.float32(over & good), over & good, over & ~good, over & good)

    def observe(self):
        return {k: self.rng.normal(0, 1, (self.num_envs, *f.shape)).astype(np.float32) for k, f in SPACES.observation.items()}


def make(name, **settings):
    """A method's refiner on a small base, and that base."""
    base, chosen = make_base(), config_class(name)
    own = {} if hasattr(method(name).Refiner, "update") else BRIEF
    config = chosen(**{k: v for k, v in own.items() if k in {f.name for f in fields(chosen)}}, **settings)
    torch.manual_seed(1)
    return method(name).Refiner(method(name).refined_policy(base, config), config), base


def observation(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.normal(0, 1, (rows, 2, *f.shape)).astype(np.float32) for k, f in SPACES.observation.items()}


def replay(refiner, steps=60):
    """A lane of random steps in which every tenth succeeds."""
    dims = {"condition": refiner.policy().encoder.condition_dim, "action": 3, "plan": 3 * refiner.plan_steps}
    made = ReplayBuffer(lanes=1, capacity=steps, dims=dims, discount=refiner.discount)
    rng = torch.Generator().manual_seed(2)
    for t in range(steps):
        fields = {k: torch.rand((1, d), generator=rng) * 2 - 1 for k, d in dims.items()}
        end = torch.tensor([t % 10 == 9])
        made.add(fields, reward=end.float(), terminated=end, truncated=torch.tensor([False]))
    return made


def learn(refiner, updates=12, actor=True, seed=0):
    if not isinstance(refiner, ReplayRefiner):
        return learn_by_observing(refiner, updates, actor, seed)
    if isinstance(refiner, ObservingRefiner):
        learn_by_observing(refiner, 4, actor, seed)
    rng = torch.Generator().manual_seed(seed)
    made = replay(refiner)
    for _ in range(updates):
        metrics = refiner.update(made.sample(32, steps=refiner.window_steps, rng=rng), rng, Phase(actor=actor))
    return metrics


def learn_by_observing(refiner, updates, actor, seed):
    """Take five steps of all lanes per update; the first ten, whole episodes, are warm-up."""
    behaviour = refiner.behaviour()
    sizes = {"exec_horizon": 4, "plan_steps": refiner.plan_steps, "latent_size": refiner.latent_size}
    lanes = Lanes(TenStepEnv(), behaviour, **sizes, timeouts_fail=False, seed=seed)
    metrics, rng = {}, torch.Generator().manual_seed(seed)
    for step in range(5 * updates):
        moving = actor and step >= 10
        lanes.decide(warmup=not moving)
        metrics = refiner.observe(lanes.step(), rng, Phase(actor=moving)) or metrics
    return metrics


def act(policy, seed=3, noise=5):
    """The chunk of a decision and, where the policy corrects, its first action as executed."""
    seen = observation(seed=seed)
    chunk = policy.predict(seen, [np.random.default_rng(noise + i) for i in range(ROWS)]).actions
    if isinstance(policy, CorrectingPolicy):
        rngs = [np.random.default_rng(i) for i in range(ROWS)]
        return np.concatenate([policy.correct(seen, chunk[:, 0], rngs)[:, None], chunk[:, 1:]], axis=1)
    return chunk


@every_method
@pytest.mark.parametrize("actor", [False, True])
def test_an_update_from_replay_never_makes_the_host_wait(name, actor, monkeypatch):
    # Steering, warm-started RL and Q-chunking asked the device for a flag or for the size of a selection in every update.
    monkeypatch.setattr(f"{method(name).__name__}.bootstrapped_rows", lambda batch, weight: slice(None), raising=False)
    monkeypatch.setattr("robolearn.refine.best_of_n.bootstrapped_rows", lambda batch, weight: slice(None))
    refiner, _ = make(name)
    if not isinstance(refiner, ReplayRefiner):
        pytest.skip("learns from no replay")
    learn(refiner, actor=actor)  # some things are looked at once
    made, demos, rng = replay(refiner), replay(refiner, 20), torch.Generator().manual_seed(0)
    for _ in range(8):
        with NoWaiting():
            batch = sample_mixed(made, demos, 8, 32, steps=refiner.window_steps, rng=rng)
            refiner.update(batch, rng, Phase(actor=actor))


@pytest.mark.parametrize("actor", [False, True])
@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {}) for name in method_names()), ("dsrl", {"gradient": "distilled", "form": "absolute"})],
    ids=lambda given: given if isinstance(given, str) else "-".join(given.values()),
)
def test_recorded_updates_are_the_updates(name, settings, actor, monkeypatch):
    monkeypatch.setitem(RECORDERS, "cpu", Repeats())
    if not issubclass(config_class(name), LearnerConfig):
        pytest.skip("learns from no replay")
    (plain, _), (recorded, _) = make(name, **settings), make(name, **settings, cuda_graph=True)
    metrics = {key: float(value) for key, value in learn(plain, actor=actor, updates=16).items()}
    assert {key: float(value) for key, value in learn(recorded, actor=actor, updates=16).items()} == metrics
    after = recorded.tensors() | recorded.policy().state_dict()
    for key, value in (plain.tensors() | plain.policy().state_dict()).items():
        assert torch.equal(after[key], value), key


@every_method
def test_zero_updates_equal_the_base_exactly(name):
    refiner, base = make(name)
    assert isinstance(refiner.policy(), Policy)
    np.testing.assert_array_equal(act(refiner.policy()), act(base))


@every_method
def test_critics_alone_leave_the_policy_as_it_is(name):
    refiner, base = make(name)
    learn(refiner, actor=False)
    np.testing.assert_array_equal(act(refiner.policy()), act(base))


@every_method
def test_updates_move_the_policy_and_nothing_of_its_base(name):
    refiner, base = make(name)
    metrics = learn(refiner)
    assert metrics
    assert all(bool(value.isfinite()) for value in metrics.values())
    assert "loss" in metrics or not isinstance(refiner, ReplayRefiner)
    assert weights_hash(refiner.policy().base) == weights_hash(base)
    assert np.abs(act(refiner.policy()) - act(base)).max() > 0


@every_method
def test_the_warm_up_acts_like_the_base_up_to_its_exploration(name):
    refiner, base = make(name)
    learn(refiner)
    behaviour = refiner.behaviour()
    behaviour.warmup = True
    bound = getattr(config_class(name)(), "residual_scale", 0.0)
    assert np.abs(act(behaviour) - act(base)).max() <= bound + 1e-6


@every_method
def test_what_is_learned_is_bounded_whatever_the_weights(name):
    refiner, base = make(name)
    policy = refiner.policy()
    learn(refiner, 4)
    if hasattr(policy.config, "candidates"):  # it only chooses: every chunk is one that the base proposed
        rng, seen = np.random.default_rng(4), observation(rows=1)
        chunk = policy.predict(seen, rng).actions[0]
        rng = np.random.default_rng(4)
        noise = [rng.standard_normal((1, *base.latent_shape), dtype=np.float32)]
        noise += [*rng.standard_normal((policy.config.candidates - 1, 1, *base.latent_shape), dtype=np.float32)]
        proposer = getattr(policy, "proposer", base)
        assert any(np.allclose(proposer.decode(seen, n).actions[0], chunk, atol=1e-5) for n in noise)
        return
    for key, parameter in policy.named_parameters():
        if not key.startswith("base."):
            parameter.data.mul_(0).add_(100.0)
    condition = policy.condition({k: torch.from_numpy(v) for k, v in observation().items()})
    if isinstance(policy, CorrectingPolicy):
        residual = policy.residual(condition, torch.zeros(ROWS, 3))
        assert residual.abs().max() == pytest.approx(policy.config.residual_scale)
        assert np.abs(act(policy) - act(policy.base)).max() <= policy.config.residual_scale + 1e-6
    elif isinstance(policy, LatentPolicy):
        noise = torch.zeros(ROWS, *policy.latent_shape)
        assert policy.latent(condition, noise).abs().max() == pytest.approx(policy.config.bound)
    else:  # nothing ties it to its base, but its actions stay in the data's range or within the robot's bounds
        for flag in (v for k, v in policy.named_buffers() if v.dtype == torch.bool and not k.startswith("base.")):
            flag.fill_(True)
        widest = np.abs(base.normalizer.invert("action", torch.tensor([[-1.0] * 3, [1.0] * 3])).numpy()).max(axis=0)
        assert (np.abs(act(policy)) <= np.maximum(widest, SPACES.action_high) + 1e-5).all()


@every_method
def test_saved_and_loaded_it_acts_the_same(name, tmp_path):
    refiner, _ = make(name)
    learn(refiner)
    save_policy(tmp_path, refiner.policy(), averaged=refiner.policy().state_dict())
    np.testing.assert_array_equal(act(load_policy(tmp_path, spaces=SPACES)), act(refiner.policy()))


@every_method
def test_a_restored_refiner_learns_on_as_the_undisturbed_one(name):
    whole, _ = make(name)
    learn(whole, 5)
    halted = {k: v.clone() for k, v in whole.tensors().items()}
    policy = {k: v.clone() for k, v in whole.policy().state_dict().items()}
    learn(whole, 5, seed=9)
    twin, _ = make(name)
    twin.policy().load_state_dict(policy)
    twin.restore(halted)
    learn(twin, 5, seed=9)
    for key, value in whole.tensors().items():
        assert torch.equal(value, twin.tensors()[key]), key
    np.testing.assert_array_equal(act(whole.policy()), act(twin.policy()))


@every_method
def test_other_networks_are_not_restored(name):
    refiner, _ = make(name)
    tensors = dict(refiner.tensors())
    first = next(k for k, v in tensors.items() if v.ndim > 1)
    tensors[first] = torch.zeros(1, 1)
    with pytest.raises(RefusedError, match="must be"):
        refiner.restore(tensors)


def test_a_base_without_latent_noise_cannot_be_steered_but_corrected():
    base = make_base(chunk_bc)
    with pytest.raises(RefusedError, match="no latent noise"):
        method("dsrl").refined_policy(base, config_class("dsrl")())
    corrected = method("residual").refined_policy(base, config_class("residual")())
    np.testing.assert_array_equal(act(corrected), act(base))


def test_the_proposing_copy_learns_from_its_successes_and_keeps_the_encoder():
    refiner, base = make("q_chunking")
    start = weights_hash(base)
    assert weights_hash(refiner.policy().proposer) == start
    learn(refiner, updates=3)
    assert weights_hash(refiner.policy().proposer) == start  # its first update is the critics' fourth
    assert "cloning_loss" in learn(refiner, updates=9)  # the twelfth
    assert weights_hash(refiner.policy().proposer) != start == weights_hash(refiner.policy().base)


@pytest.mark.parametrize("name", ["constant_latent", "dsrl", "best_of_n", "q_chunking"])
def test_methods_that_choose_the_noise_need_a_base_that_decodes_it(name):
    with pytest.raises(RefusedError, match=r"Policy 'chunk_bc' cannot be steered.*no latent noise"):
        method(name).refined_policy(make_base(chunk_bc), config_class(name)())


def test_only_a_base_with_a_supervised_loss_is_trained_on():
    steered, _ = make("dsrl")
    with pytest.raises(RefusedError, match="Policy 'steered' cannot be trained on: it has no supervised loss"):
        method("filtered_bc").refined_policy(steered.policy(), config_class("filtered_bc")())
    with pytest.raises(RefusedError, match="Policy 'steered' cannot be trained on: it has no supervised loss"):
        method("q_chunking").refined_policy(steered.policy(), config_class("q_chunking")())
    made = method("filtered_bc").refined_policy(make_base(chunk_bc), config_class("filtered_bc")())
    np.testing.assert_array_equal(act(made), act(make_base(chunk_bc)))


def test_a_residual_stacks_on_a_steered_policy_and_not_the_other_way_round():
    steered, base = make("dsrl")
    learn(steered)
    stacked = method("residual").refined_policy(steered.policy(), config_class("residual")())
    np.testing.assert_array_equal(act(stacked), act(steered.policy()))
    assert weights_hash(stacked.base.base) == weights_hash(base)
    with pytest.raises(RefusedError, match="no latent noise"):
        method("dsrl").refined_policy(stacked, config_class("dsrl")())
    # An actor took the place of a corrected policy without its corrections.
    with pytest.raises(RefusedError, match="'corrected' corrects every action"):
        method("warm_start").refined_policy(stacked, config_class("warm_start")())


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("dsrl", {"bound": 0.0}, "bound=0.0"),
        ("residual", {"residual_scale": 0.0}, "residual_scale=0.0"),
        ("dsrl", {"soft_backup": True}, "value_range"),
        ("dsrl", {"critic": CriticConfig(members=1, subset=1)}, "critic.members=1"),
        ("dsrl", {"chunk_steps": 9, "window_steps": 9}, "chunk_steps=9"),
        ("residual", {"discount": 1.0}, "discount"),
        ("ppo_residual", {"residual_scale": 0.0}, "residual_scale=0.0"),
        ("ppo_residual", {"clip": 0.0}, "clip"),
        ("filtered_bc", {"updates_per_step": 0.0}, "updates_per_step"),
        ("warm_start", {"chunk_steps": 9, "window_steps": 9}, "chunk_steps=9"),
        ("q_chunking", {"tune_every": 0}, "tune_every=0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(name, settings, named):
    def make_refiner():
        config = config_class(name)(**settings)
        method(name).Refiner(method(name).refined_policy(make_base(), config), config)

    with pytest.raises(RefusedError, match=named):
        make_refiner()


@pytest.mark.parametrize(
    "settings",
    [
        {"form": "absolute", "learn_temperature": True},
        {"form": "absolute", "soft_backup": True, "value_range": None, "gradient": "distilled"},
        {"gradient": "distilled"},
        {"repeat": True},
        {"form": "absolute", "repeat": True, "precision": "bf16"},
    ],
    ids=lambda s: "-".join(map(str, s)),
)
def test_every_form_of_steering_starts_at_the_base_learns_and_is_saved(settings, tmp_path):
    base, config = make_base(), config_class("dsrl")(**settings)
    refiner = method("dsrl").Refiner(method("dsrl").refined_policy(base, config), config)
    np.testing.assert_array_equal(act(refiner.policy()), act(base))
    metrics = learn(refiner)
    assert math.isfinite(float(metrics["actor_loss"]))
    assert np.abs(act(refiner.policy()) - act(base)).max() > 0
    save_policy(tmp_path, refiner.policy(), averaged=copy.deepcopy(refiner.policy().state_dict()))
    np.testing.assert_array_equal(act(load_policy(tmp_path)), act(refiner.policy()))


def test_a_learned_temperature_stays_under_its_cap():
    config = config_class("dsrl")(form="absolute", learn_temperature=True, target_entropy=50.0, actor_learning_rate=0.5)
    refiner = method("dsrl").Refiner(method("dsrl").refined_policy(make_base(), config), config)
    assert float(learn(refiner, 20)["weight"]) / config.actor_every <= config.temperature_cap + 1e-6
