"""Experts routed by the noise level: fused and cached inference equals the plain path, losses by hand, twins of equal size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.types import ACTION, STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.nets.images import ImageConfig
from robolearn.nets.moe import Experts, MoeConfig, Route, Router, apply_fused, balance_loss, z_loss
from robolearn.nets.prefix_transformer import PrefixTransformerConfig
from robolearn.policies.edm_transformer import EdmConfig, GoalConfig
from robolearn.policies.moe_diffusion import Config, Policy
from robolearn.train.config import TrainConfig
from robolearn.train.update import LossModule, Updater

GOAL, CAMERA = "observation.goal", "observation.images.front"
SPACES = Spaces(
    robot="panda",
    observation={STATE: FeatureSpec((4,)), GOAL: FeatureSpec((3,)), CAMERA: FeatureSpec((48, 48, 3), "uint8")},
    action=FeatureSpec((2,)),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    control_rate_hz=20.0,
)
SMALL = PrefixTransformerConfig(width=16, layers=2, heads=2)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(transformer=SMALL, keys=(STATE,), seed=0, **changes):
    """A policy whose output layer is not zero, as it is after training."""
    config = Config(pred_horizon=6, observation_keys=keys, transformer=transformer, image=ImageConfig(1.0, 4), **changes)
    torch.manual_seed(seed)
    normalizer = Normalizer(flat_streams(select_observation(SPACES, keys)), "identity")
    policy = Policy(config, SPACES, normalizer).eval()
    with torch.no_grad():
        for name, p in policy.denoiser.net.named_parameters():
            if "out" in name or "clean" in name or "no_goal" in name:
                p.normal_(std=0.3)
            elif "routers" in name:
                p.mul_(20.0)  # levels then choose different experts
    return policy


def condition(policy, rows=3, seed=1):
    return torch.randn(rows, policy.encoder.condition_dim, generator=torch.Generator().manual_seed(seed))


TWINS = [
    MoeConfig(),
    MoeConfig(experts=5, top_k=1),
    MoeConfig(experts=3, top_k=3, shared_expert=True),
    MoeConfig(twin="dense_total"),
]


@pytest.mark.parametrize("prefix", ["clean", "noise"])
@pytest.mark.parametrize("moe", TWINS, ids=["top2", "top1", "shared", "dense"])
@pytest.mark.parametrize("causal", [True, False])
def test_the_cached_and_fused_path_equals_the_plain_one(prefix, moe, causal):
    policy = make(
        replace(SMALL, prefix=prefix, moe=moe, causal_actions=causal), goal=GoalConfig(GOAL, guidance=1.5), keys=(STATE, GOAL)
    )
    seen = condition(policy)
    noisy = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(2))
    fast = policy.fast_denoiser(seen)
    for index in range(10):
        plain = policy.denoised(noisy, torch.full((3,), index), seen)
        torch.testing.assert_close(fast(noisy, index), plain, rtol=0, atol=1e-5)
    routes = policy.denoiser.expert_shares(policy.denoiser.table)
    if len(routes):
        assert len({tuple(row.nonzero()[:, 0].tolist()) for layer in routes for row in layer}) > 1 or moe.top_k == 3


def test_known_actions_and_cameras_go_the_same_way_through_both_paths():
    policy = make(keys=(STATE, CAMERA), max_delay=3)
    seen = condition(policy)
    noisy = torch.randn(3, 6, 2, generator=torch.Generator().manual_seed(2))
    known = torch.arange(6)[None] < torch.tensor([[0], [2], [3]])
    fast = policy.fast_denoiser(seen, known)
    for index in (0, 4, 9):
        plain = policy.denoised(noisy, torch.full((3,), index), seen, known)
        torch.testing.assert_close(fast(noisy, index), plain, rtol=0, atol=1e-5)
    assert not torch.allclose(fast(noisy, 0)[1], policy.fast_denoiser(seen)(noisy, 0)[1])


def test_changed_weights_are_noticed():
    policy = make()
    seen, noisy = condition(policy), torch.ones(3, 6, 2)
    policy.fast_denoiser(seen)(noisy, 0)
    with torch.no_grad():
        policy.denoiser.net.blocks[0].experts.w_out.mul_(2.0)
    torch.testing.assert_close(
        policy.fast_denoiser(seen)(noisy, 0), policy.denoised(noisy, torch.zeros(3, dtype=torch.long), seen)
    )


def test_training_is_noticed():
    # The fused AdamW did not count as a change of the weights: after it, the levels of the weights before went on deciding.
    policy = make()
    seen, noisy = condition(policy), torch.ones(3, 6, 2)
    policy.fast_denoiser(seen)(noisy, 0)
    batch = {STATE: torch.ones(3, 2, 4), ACTION: torch.ones(3, 6, 2), "action_is_pad": torch.zeros(3, 6, dtype=torch.bool)}
    updater = Updater(LossModule(policy, "fp32", "cpu"), policy, TrainConfig(), torch.device("cpu"))
    updater.step(batch, torch.Generator().manual_seed(0), 0.1)
    torch.testing.assert_close(
        policy.fast_denoiser(seen)(noisy, 0), policy.denoised(noisy, torch.zeros(3, dtype=torch.long), seen)
    )


def test_deciding_in_bfloat16_leaves_no_rounded_levels_behind():
    # What the weights decide about the levels was kept as autocast had made it, for decisions in float32, too.
    policy = make()
    seen, noisy = condition(policy), torch.ones(3, 6, 2)
    with torch.autocast("cpu", torch.bfloat16):
        policy.fast_denoiser(seen)(noisy, 0)
    torch.testing.assert_close(
        policy.fast_denoiser(seen)(noisy, 0), policy.denoised(noisy, torch.zeros(3, dtype=torch.long), seen)
    )


def test_two_fused_experts_are_their_weighted_sum():
    torch.manual_seed(0)
    experts = Experts(4, MoeConfig(experts=3, top_k=2, hidden_ratio=2.0))
    x, weights = torch.randn(5, 4), torch.tensor([0.25, 0.0, 0.75])
    plain = experts(x, weights.expand(5, -1))
    alone = 0.25 * experts(x, torch.eye(3)[0].expand(5, -1)) + 0.75 * experts(x, torch.eye(3)[2].expand(5, -1))
    torch.testing.assert_close(plain, alone)
    fused = experts.fuse((0, 2))
    assert fused.w_in.shape == (2 * 16, 4)
    torch.testing.assert_close(apply_fused(x, fused, experts.fused_scale(weights[[0, 2]])), plain)


def test_all_experts_in_one_product_are_the_chosen_ones_gradients_too():
    torch.manual_seed(0)
    experts = Experts(4, MoeConfig(experts=3, top_k=2, hidden_ratio=2.0))
    x, weights = torch.randn(5, 4), torch.rand(5, 3) * (torch.rand(5, 3) > 0.4)
    found = []
    for way in (experts.of_chosen, experts.of_all):
        out = way(x, weights)
        found.append([out, *torch.autograd.grad(out.square().sum(), [experts.w_in, experts.b_in, experts.w_out])])
    torch.testing.assert_close(*found)


def test_losses_by_hand():
    # Two levels, two experts, top-1. Both chose expert 0 with probabilities 0.9 and 0.7: f = (1, 0), p = (0.8, 0.2),
    # load balance 2 (1 * 0.8 + 0 * 0.2) = 1.6.
    chosen = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    route = Route(chosen, torch.tensor([[0.9, 0.1], [0.7, 0.3]]), torch.zeros(2, 2))
    assert balance_loss(route).item() == pytest.approx(1.6)
    # Logits 0, 0: log-sum-exp ln 2, squared 0.48045.
    assert z_loss(route).item() == pytest.approx(0.480453)
    even = Route(torch.eye(2), torch.full((2, 2), 0.5), torch.zeros(2, 2))
    assert balance_loss(even).item() == pytest.approx(1.0)


def test_a_router_keeps_the_best_k_and_draws_by_probability():
    router = Router(4, MoeConfig(experts=3, top_k=2))
    with torch.no_grad():
        router.net[-1].weight.zero_()
        router.net[-1].bias.copy_(torch.tensor([0.6, 0.3, 0.1]).log())
    level = torch.zeros(4000, 4)
    # Kept: 0.6 and 0.3, renormalised to 2/3 and 1/3.
    torch.testing.assert_close(router(level[:1]).weights, torch.tensor([[2 / 3, 1 / 3, 0.0]]))
    drawn = (router(level, torch.Generator().manual_seed(0)).weights > 0).float().mean(dim=0)
    # Without replacement: P(expert 2 chosen) = 0.1 + 0.6 * 0.1/0.4 + 0.3 * 0.1/0.7 = 0.29286; standard error 0.007.
    assert drawn[2].item() == pytest.approx(0.29286, abs=0.03)


@pytest.mark.parametrize("shared", [False, True])
def test_dense_twins_have_the_parameters_of_the_working_and_of_all_experts(shared):
    def expert_parameters(twin):
        moe = MoeConfig(experts=4, top_k=2, twin=twin, shared_expert=shared)
        return sum(p.numel() for p in Experts(8, moe).parameters())

    # One expert of width 8 and ratio 4: 2 * 32 * 8 + 2 * 32 + 8 * 32 = 832.
    assert expert_parameters("moe") == (4 + shared) * 832
    assert expert_parameters("dense_active") == (2 + shared) * 832
    assert expert_parameters("dense_total") == (4 + shared) * 832
    assert not make(replace(SMALL, moe=MoeConfig(twin="dense_total"))).denoiser.net.routers


def test_a_goal_is_hidden_whole_and_guidance_extrapolates_from_acting_without_it():
    policy = make(keys=(STATE, GOAL), goal=GoalConfig(GOAL, dropout=0.5))
    net, seen = policy.denoiser.net, condition(policy)
    other = seen.clone()
    goal = policy.encoder.positions(GOAL)[-1]
    other[:, goal] += 1.0
    features = net.embed_levels(torch.zeros(3))
    hidden = torch.tensor([True, True, False])

    def tokens(c):
        return net(torch.zeros(3, 6, 2), features, c, routes=net.routes(features), hide_goal=hidden)

    difference = (tokens(seen) - tokens(other)).abs().amax(dim=(1, 2))
    assert difference[:2].max() == 0, "no element of a hidden goal may be seen"
    assert difference[2] > 1e-3
    # D(guidance) is a straight line: D(2) - D(1) = D(1) - D(0).
    noisy, index = torch.randn(3, 6, 2) * 0.1, torch.full((3,), 9)
    outputs = []
    for guidance in (0.0, 1.0, 2.0):
        policy.denoiser.goal = GoalConfig(GOAL, dropout=0.5, guidance=guidance)
        policy.denoiser.config = replace(policy.denoiser.config, clip=0.0)
        outputs.append(policy.denoised(noisy, index, seen))
    torch.testing.assert_close(outputs[2] - outputs[1], outputs[1] - outputs[0], rtol=1e-4, atol=1e-5)


def test_training_balances_experts_and_reports_the_least_used():
    policy = make(seed=3).train()
    rng = torch.Generator().manual_seed(0)
    batch = {STATE: torch.randn(64, 2, 4), ACTION: torch.rand(64, 6, 2), "action_is_pad": torch.zeros(64, 6, dtype=torch.bool)}
    loss, metrics = policy.loss(batch, rng)
    assert set(metrics) == {"loss", "load_balance", "router_z", "expert_min_share"}
    assert loss.item() == pytest.approx(
        metrics["loss"].item() + 0.01 * metrics["load_balance"].item() + 0.001 * metrics["router_z"].item(), rel=1e-5
    )
    with torch.no_grad():  # collapse: the routers' last bias sends everything to experts 0 and 1
        for router in policy.denoiser.net.routers:
            router.net[-1].bias.copy_(torch.tensor([100.0, 100.0, 0.0, 0.0]))
    assert policy.eval().loss(batch, rng)[1]["expert_min_share"].item() == 0.0
    assert policy.loss(batch, rng)[1]["load_balance"].item() == pytest.approx(2.0, rel=0.01)  # 4 (0.5 * 0.5 + 0.5 * 0.5)


def test_sampling_draws_what_the_latent_says():
    policy = make(edm=EdmConfig(sampler="euler_ancestral", sampler_steps=4))
    assert policy.latent_shape == (4, 6, 2)
    seen = {STATE: np.zeros((2, 2, 4), np.float32)}
    assert policy.decode(seen, np.ones((2, 4, 6, 2), np.float32)).actions.shape == (2, 6, 2)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: MoeConfig(experts=2, top_k=3), r"top_k=3 must lie in \[1, experts=2\]"),
        (lambda: PrefixTransformerConfig(width=6, heads=2, moe=MoeConfig(hidden_ratio=0.75)), "is no whole number"),
        (lambda: PrefixTransformerConfig(width=10, heads=4), "heads must divide"),
        (lambda: EdmConfig(sampler_steps=0), "at least one step, got sampler_steps=0"),
        (lambda: EdmConfig(sigma_min=2.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
        (lambda: GoalConfig(GOAL, dropout=0.0, guidance=2.0), r"guidance=2\.0 needs a model of acting without a goal"),
        (lambda: make(goal=GoalConfig("observation.wish")), "'observation.wish' is not among observation_keys"),
        (lambda: make(max_delay=6), r"max_delay=6 must lie in \[0, 5\]"),
        (lambda: make(edm=EdmConfig(sampler="rk4")), "Unknown sampler 'rk4'"),
    ],
)
def test_bad_settings_are_refused_by_name(build, words):
    with pytest.raises(RefusedError, match=words):
        build()


def test_a_goal_of_another_size_is_refused_by_name():
    policy = make(keys=(STATE, GOAL), goal=GoalConfig(GOAL))
    seen = {STATE: np.zeros((1, 2, 4), np.float32), GOAL: np.zeros((1, 2, 5), np.float32)}
    with pytest.raises(RefusedError, match=r"observation.goal must have shape \(1, 2, 3\).*got \(1, 2, 5\)"):
        policy.predict(seen, np.random.default_rng(0))
