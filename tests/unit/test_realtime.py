"""Real-time chunking: what the executor keeps of a running plan, and chunks that continue it."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from robolearn.core.config import Named
from robolearn.core.continuation import soft_weights
from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams
from robolearn.core.protocols import ContinuingPolicy
from robolearn.core.types import ACTION, STATE, ActionChunk, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer
from robolearn.deploy.executor import ChunkExecutor, ExecutorConfig
from robolearn.diffusion import edm, samplers
from robolearn.diffusion.guidance import guided
from robolearn.evaluate.result import RolloutConfig
from robolearn.evaluate.rollout import evaluate
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import config_class, make_policy

SPACES = Spaces("r", {STATE: FeatureSpec((1,))}, FeatureSpec((2,), names=("x", "gripper")), (-2.0,) * 2, (2.0,) * 2, 10.0)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Ramps:
    """Chunk number k (0, 1, ...) of 6 steps is 10 k + (0, ..., 5) in x; the gripper says k."""

    obs_horizon, pred_horizon, spaces = 1, 6, SPACES

    def __init__(self):
        self.asked = []

    def predict(self, observation, rng):
        self.asked.append(None)
        k = len(self.asked) - 1
        return ActionChunk(np.float32([[[10 * k + i, k] for i in range(6)]]))

    def continue_chunk(self, observation, rng, committed, *, delay, method):
        chunk = self.predict(observation, rng)
        self.asked[-1] = (committed[0, :, 0].tolist(), delay, method)
        return chunk


def run(config, steps=6, late=None):
    policy = Ramps()
    lateness = None if late is None else lambda rngs: np.full(len(rngs), late)
    executor = ChunkExecutor(policy, config, num_rows=1, lateness=lateness)
    actions = [executor.act({STATE: np.zeros((1, 1), np.float32)}, [np.random.default_rng(0)])[0, 0] for _ in range(steps)]
    return [float(a) for a in actions], policy, executor


def test_a_late_chunk_takes_over_at_its_own_row():
    # Chunk 0 is there from the start. Chunk 1 is asked for at step 3 and comes 2 steps later: steps 3, 4 are rows 3, 4 of
    # chunk 0, step 5 is row 2 of chunk 1. There the old chunk says 5 and the new one 12: half range 2, seam 3.5 (the gripper
    # does not count).
    actions, _, executor = run(ExecutorConfig(exec_horizon=3), late=2)
    assert actions == [0, 1, 2, 3, 4, 12]
    assert executor.seams[0] == pytest.approx(3.5)
    assert executor.seam_counts[0] == 1


def test_a_decision_that_takes_longer_than_exec_horizon_puts_the_next_one_off():
    # exec_horizon 2, 3 late: asked at step 2, used from step 5 on, the next at step 5 (not 4).
    actions, policy, _ = run(ExecutorConfig(exec_horizon=2), steps=7, late=3)
    assert actions == [0, 1, 2, 3, 4, 13, 14]
    assert len(policy.asked) == 3


@pytest.mark.parametrize("method", ["guided", "trained"])
def test_the_policy_is_asked_to_continue_what_is_planned(method):
    actions, policy, _ = run(ExecutorConfig(exec_horizon=3, continuation=method, delay_steps=2), steps=7)
    assert policy.asked[0] is None, "a first chunk continues nothing"
    assert policy.asked[1] == ([3.0, 4.0, 5.0], 2, method)
    # Even where the decision is not late, what was promised for 2 steps is kept.
    assert actions == [0, 1, 2, 3, 4, 12, 13]  # step 6 continues chunk 1, whose rows 3 and 4 are 13 and 14


def test_blending_by_hand():
    # Asked at step 3 with 3 steps left and no delay: c = 3/4, 2/4, 1/4, share c (e^c - 1) / (e - 1).
    shares = [c * math.expm1(c) / (math.e - 1) for c in (0.75, 0.5, 0.25)]
    assert soft_weights(0, 3, 6) == pytest.approx([*shares, 0, 0, 0])
    actions, _, _ = run(ExecutorConfig(exec_horizon=3, continuation="blend"))
    expected = [s * old + (1 - s) * new for s, old, new in zip(shares, (3, 4, 5), (10, 11, 12), strict=True)]
    assert actions == pytest.approx([0, 1, 2, *expected])


def test_soft_weights_are_hard_for_the_delay_and_zero_behind_the_plan():
    weights = soft_weights(2, 5, 8)
    assert weights[:2].tolist() == [1, 1]
    assert weights[5:].tolist() == [0, 0, 0]
    assert (np.diff(weights[1:6]) < 0).all()


def test_bad_delays_are_refused_by_name():
    with pytest.raises(RefusedError, match=r"delay of 4 steps after exec_horizon=3 is longer than the chunk of 6"):
        ChunkExecutor(Ramps(), ExecutorConfig(exec_horizon=3, delay_steps=4), num_rows=1)
    with pytest.raises(RefusedError, match=r"delay of 4 steps must lie in \[0, 3\]"):
        soft_weights(4, 3, 6)
    with pytest.raises(RefusedError, match="continuation='jump' is unknown"):
        ExecutorConfig(continuation="jump")
    with pytest.raises(RefusedError, match="needs a policy that can continue a chunk"):
        ChunkExecutor(
            make_policy("hold", config_class("hold")(), SPACES, None), ExecutorConfig(1, continuation="guided"), num_rows=1
        )
    with pytest.raises(RefusedError, match="delay_steps=-1"):
        ExecutorConfig(delay_steps=-1)
    policy = trained_policy("diffusion")
    seen, plan = {STATE: np.zeros((1, 2, 1), np.float32)}, np.zeros((1, 8, 2), np.float32)
    with pytest.raises(RefusedError, match=r"delay of 5 steps exceeds max_delay=4"):
        policy.continue_chunk(seen, np.random.default_rng(0), plan, delay=5, method="trained")
    with pytest.raises(RefusedError, match=r"delay of 9 steps must lie in \[0, 8\]"):
        policy.continue_chunk(seen, np.random.default_rng(0), plan, delay=9, method="guided")
    with pytest.raises(RefusedError, match=r"committed must have shape \(1, 1 to 16, 2\), got \(1, 17, 2\)"):
        policy.continue_chunk(seen, np.random.default_rng(0), np.zeros((1, 17, 2)), delay=1, method="guided")


def ar1(horizon=20, rho=0.95):
    step = torch.arange(horizon, dtype=torch.float64)
    return rho ** (step[:, None] - step[None]).abs()


def gaussian_denoiser(covariance, sigmas):
    """The exact denoiser of chunks (b, h, 1) of covariance C: C (C + sigma^2)^-1 x."""
    eye = torch.eye(len(covariance), dtype=torch.float64)
    gains = [covariance @ torch.linalg.inv(covariance + sigma**2 * eye) for sigma in sigmas[:-1]]
    return lambda noisy, index: torch.einsum("ij,bja->bia", gains[index], noisy)


def test_guidance_closes_the_seam_of_a_chunk_whose_steps_belong_together():
    # Chunks are an AR(1) process with rho 0.95, so the first free step differs from the last committed one by
    # sqrt(1 - 0.95^2) = 0.312 in a true continuation, and by about sqrt(2) = 1.41 in an independent chunk.
    sigmas = edm.sigma_steps("exponential", 10, low=0.1, high=80.0)
    denoise = gaussian_denoiser(ar1(), sigmas)
    rng = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(ar1())
    plan = root @ torch.randn(2000, 20, 1, generator=rng, dtype=torch.float64)
    latent = torch.randn(2000, 1, 20, 1, generator=rng, dtype=torch.float64)
    weights = torch.from_numpy(soft_weights(4, 12, 20)).double()

    def seam(denoiser):
        chunk = samplers.euler(denoiser, sigmas, latent)
        return (chunk[:, 4] - plan[:, 3]).std().item(), (chunk[:, :4] - plan[:, :4]).std().item()

    free, _ = seam(denoise)
    guided_seam, prefix = seam(guided(denoise, sigmas, plan, weights, beta=5.0, sigma_data=1.0))
    assert free > 1.1
    assert guided_seam < free / 3
    assert prefix < 0.2


def test_guidance_is_the_true_vector_jacobian_product():
    # A linear denoiser G x: the correction is min(beta s, 1 + s^2) G^T [w (y - G x)]. With s = 2 / 0.5 = 4 and beta 3 the
    # bound 12 rules.
    gain = torch.tensor([[0.5, 0.2], [0.0, 0.4]], dtype=torch.float64)
    x, y = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64), torch.tensor([[[0.0], [1.0]]], dtype=torch.float64)
    weights = torch.tensor([1.0, 0.5], dtype=torch.float64)
    got = guided(lambda noisy, _: gain @ noisy, (2.0, 0.0), y, weights, beta=3.0, sigma_data=0.5)(x, 0)
    # G x = (0.9, 0.8); w (y - G x) = (-0.9, 0.1); G^T of it = (-0.45, -0.18 + 0.04); times 12, plus G x.
    assert got[0, :, 0].tolist() == pytest.approx([0.9 - 12 * 0.45, 0.8 - 12 * 0.14])


def trained_policy(name):
    settings = {"max_delay": 4, "observation_keys": (STATE,)}
    torch.manual_seed(0)
    return make_policy(name, config_class(name)(**settings), SPACES, Normalizer({STATE: 1, ACTION: 2}, "identity")).eval()


@pytest.mark.parametrize("name", ["diffusion", "moe_diffusion", "beso", "flow"])
def test_every_generative_policy_continues_a_chunk(name):
    policy = trained_policy(name)
    assert isinstance(policy, ContinuingPolicy)
    optimizer = torch.optim.Adam(policy.parameters(), 2e-3)
    rng = torch.Generator().manual_seed(0)
    for _ in range(40):  # chunks are constant, at a value that differs from chunk to chunk
        action = (torch.rand(64, 1, 1, generator=rng) * 2 - 1).expand(64, 16, 2)
        batch = {STATE: torch.zeros(64, 2, 1), ACTION: action, "action_is_pad": torch.zeros(64, 16, dtype=torch.bool)}
        loss, _ = policy.train().loss(batch, rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval().requires_grad_(False)
    seen, plan = {STATE: np.zeros((2, 2, 1), np.float32)}, np.full((2, 10, 2), 0.7, np.float32)
    plan[1] = -0.7
    for method in ("trained", "guided"):
        first, again = (
            policy.continue_chunk(seen, np.random.default_rng(5), plan, delay=4, method=method).actions for _ in range(2)
        )
        np.testing.assert_array_equal(first, again)
        assert first.shape == (2, 16, 2)
        if method == "trained":
            np.testing.assert_allclose(first[:, :4], plan[:, :4], atol=1e-6)
        # Continues on the side of the plan, which the observation says nothing of.
        assert first[0, 4:8].mean() > first[1, 4:8].mean() + 0.5, method


def test_the_evaluator_refuses_delays_that_leave_nothing_to_execute():
    from reach_env import NoisyReacher, ReachEnv

    config = RolloutConfig(ExecutorConfig(2), delay_steps=2, timed_decisions=0)
    result = evaluate(ReachEnv(2), NoisyReacher(), range(4), config)
    assert result.successes == 4
    # The reacher says the same at every step of the way, so nothing jumps where chunks meet.
    assert [e.mean_seam for e in result.episodes] == [0.0] * 4
    with pytest.raises(RefusedError, match=r"delay of up to 3 steps after exec_horizon=2 is longer than the chunk of 4"):
        evaluate(ReachEnv(2), NoisyReacher(), [1], RolloutConfig(ExecutorConfig(2), delay_steps=2, delay_jitter=1))


@pytest.mark.parametrize("method", ["guided", "trained"])
@pytest.mark.parametrize("name", ["corrected", "tuned", "steered", "constant_latent"])
def test_a_refined_policy_continues_a_chunk_as_its_base_does_until_it_has_learned(name, method):
    base = Named(
        "flow",
        config_class("flow")(max_delay=4, observation_keys=(STATE,), denoiser=DenoiserConfig(mlp=MlpConfig(width=16, blocks=1))),
    )
    dims = flat_streams(SPACES)
    torch.manual_seed(0)
    refined: Any = make_policy(name, config_class(name)(base=base), SPACES, Normalizer(dims, "identity")).eval()
    for zero in (p for p in refined.base.parameters() if not p.any()):
        torch.nn.init.normal_(zero, std=0.3)
    if name == "tuned":
        refined.tuned.load_state_dict(refined.base.state_dict())
    assert isinstance(refined, ContinuingPolicy)
    rng = np.random.default_rng(1)
    seen = {k: rng.normal(size=(2, 2, *f.shape)).astype(np.float32) for k, f in SPACES.observation.items()}
    plan = rng.uniform(-1, 1, (2, 9, SPACES.action_dim)).astype(np.float32)

    def chunk(policy):
        return policy.continue_chunk(seen, np.random.default_rng(5), plan, delay=3, method=method).actions

    np.testing.assert_array_equal(chunk(refined), chunk(refined.base))
    if name == "constant_latent":
        refined.found.fill_(True)
        refined.latent.fill_(0.5)
    elif name == "steered":
        refined.steered.fill_(True)
        torch.nn.init.normal_(next(p for p in reversed(list(refined.actor.parameters())) if p.ndim == 1), std=1.0)
    elif name == "tuned":
        refined.acting.fill_(True)
        torch.nn.init.normal_(refined.tuned.denoiser.chunk_out[1].bias, std=0.3)
    else:
        return  # its corrections come when an action is due, not in the plan
    assert np.abs(chunk(refined) - chunk(refined.base)).max() > 1e-3


@pytest.mark.parametrize("name", ["selected", "replaced"])
def test_refined_policies_that_denoise_no_chunk_of_their_own_offer_no_continuation(name):
    keys = {"observation_keys": (STATE,)}
    config = config_class(name)(base=Named("flow", config_class("flow")(**keys)))
    refined = make_policy(name, config, SPACES, Normalizer(flat_streams(SPACES), "identity"))
    assert not isinstance(refined, ContinuingPolicy)
