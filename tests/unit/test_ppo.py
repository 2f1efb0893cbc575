"""Residual PPO: advantages, the clipped loss and the ratio worked by hand."""

import math

import numpy as np
import pytest
import torch

from robolearn.core.observation import flat_streams
from robolearn.core.types import STATE, FeatureSpec, Spaces, Step
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import CriticConfig
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import chunk_bc
from robolearn.refine import ppo_residual
from robolearn.refine.ppo_residual import DRAWN, advantages, clipped_loss
from robolearn.train.lanes import Outcome
from robolearn.train.refiner import Phase


def column(*values, kind=torch.float32):
    return torch.tensor(values, dtype=kind)[:, None]


def flags(*steps, length):
    return column(*(t in steps for t in range(length)), kind=torch.bool)


def gae(reward, value, *, terminated=(), truncated=()):
    ends = (flags(*which, length=len(reward)) for which in (terminated, truncated))
    return advantages(column(*reward), *ends, column(*value), discount=0.5, gae_lambda=0.5)[:, 0].tolist()


def test_advantages_worked_by_hand():
    # d = l = 0.5. Errors: 1 + 0.5 * 4 - 2 = 1; 0 + 0.5 * 8 - 4 = 0; 2 + 0.5 * 16 - 8 = 2.
    # A_2 = 2; A_1 = 0 + 0.25 * 2 = 0.5; A_0 = 1 + 0.25 * 0.5 = 1.125.
    assert gae([1, 0, 2], [2, 4, 8, 16]) == [1.125, 0.5, 2.0]


def test_nothing_flows_back_over_a_terminated_step():
    # Step 1 terminates: e_1 = 0 - 4 = -4 = A_1, and A_0 = 1 + 0.25 * -4 = 0.
    assert gae([1, 0, 2], [2, 4, 8, 16], terminated=[1]) == [0.0, -4.0, 2.0]


def test_the_last_step_of_a_cut_episode_is_left_out_and_its_state_bootstrapped_from():
    # Step 1 is cut; what it led to is unknown. A_0 = e_0 = 1 + 0.5 * V(1) - V(0) = 1, and A_1 counts nothing.
    assert gae([1, 0, 2], [2, 4, 8, 16], truncated=[1]) == [1.0, 0.0, 2.0]


def test_with_lambda_one_advantage_plus_value_is_the_return():
    reward, value = torch.rand(6, 3), torch.rand(7, 3)
    none = torch.zeros(6, 3, dtype=torch.bool)
    last = none.clone()
    last[-1] = True
    found = advantages(reward, last, none, value, discount=0.9, gae_lambda=1.0) + value[:-1]
    powers = 0.9 ** torch.arange(6.0)[:, None]
    torch.testing.assert_close(found[0], (powers * reward).sum(dim=0))


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted", "slope"),
    [
        (1.1, 2.0, -2.2, -2.0),  # inside: -p A
        (1.5, 2.0, -2.4, 0.0),  # a good action is not made likelier than 1.2 times
        (0.5, 2.0, -1.0, -2.0),  # one that has become too rare is still brought back
        (0.5, -2.0, 1.6, 0.0),  # a bad action is not made rarer than 0.8 times
        (1.5, -2.0, 3.0, 2.0),  # one that has become too likely is still brought back
    ],
)
def test_the_clipped_loss_worked_by_hand(ratio, advantage, wanted, slope):
    log_ratio = torch.tensor([math.log(ratio)], requires_grad=True)
    loss = clipped_loss(log_ratio, torch.tensor([advantage]), 0.2)
    (gradient,) = torch.autograd.grad(loss, log_ratio)
    assert loss.item() == pytest.approx(wanted, rel=1e-6)
    # d loss / d log p = p d loss / dp.
    assert gradient.item() == pytest.approx(ratio * slope, rel=1e-6, abs=1e-7)


LANES = 64


def refiner(**settings):
    """Residual PPO of two action elements on a small regressed base."""
    torch.manual_seed(0)
    spaces = Spaces("point", {STATE: FeatureSpec((2,))}, FeatureSpec((2,)), (-1.0, -1.0), (1.0, 1.0), 10.0)
    rows = np.random.default_rng(0).normal(size=(50, 2))
    normalizer = Normalizer(flat_streams(spaces)).fit(dict.fromkeys(flat_streams(spaces), Statistics.of(rows)))
    net = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=8, blocks=1, level_width=4))
    base = chunk_bc.Policy(chunk_bc.Config(obs_horizon=1, pred_horizon=2, observation_keys=(STATE,), net=net), spaces, normalizer)
    small = {"actor": ActorConfig(width=16, layers=1), "critic": CriticConfig(members=1, width=16, layers=1, subset=1)}
    config = ppo_residual.Config(rollout_steps=LANES * 4, **small, **settings)
    return ppo_residual.Refiner(ppo_residual.refined_policy(base.eval(), config), config)


def rollout(learner, *, actor=True):
    """Five steps in which an episode lasts one step and is solved where the first element drew a positive number."""
    rng = torch.Generator().manual_seed(0)
    for _ in range(5):
        drawn = math.exp(-1.5) * torch.randn((LANES, 2), generator=rng)
        fields = {"condition": torch.zeros(LANES, 2), "plan": torch.zeros(LANES, 2), DRAWN: drawn}
        solved = (drawn[:, 0] > 0).numpy()
        step = Step({}, solved.astype(np.float32), np.ones(LANES, bool), np.zeros(LANES, bool), solved)
        metrics = learner.observe(Outcome({}, fields, np.zeros((LANES, 2), np.float32), step), rng, Phase(actor=actor))
    return metrics


def residual(learner):
    return learner.policy().residual(torch.zeros(1, 2), torch.zeros(1, 2))[0]


def test_the_first_pass_sees_the_policy_that_acted():
    metrics = rollout(refiner(epochs=1))
    assert metrics["kl"] == 0
    assert metrics["clipped"] == 0


def test_what_was_rewarded_becomes_likelier():
    learner = refiner(epochs=20, actor_learning_rate=1e-2, target_kl=10.0)
    assert residual(learner).abs().max() == 0
    metrics = rollout(learner)
    assert metrics["kl"] > 0
    first, second = residual(learner).tolist()
    assert first > 0
    assert abs(second) < first / 3


def test_the_passes_end_when_the_policy_has_moved_too_far():
    assert rollout(refiner(epochs=50, actor_learning_rate=1e-2))["epochs"] < 50
    assert rollout(refiner(epochs=5, target_kl=100.0))["epochs"] == 5


def test_the_warm_up_teaches_the_values_alone_and_none_of_its_steps_is_kept():
    learner = refiner(epochs=50)
    before, after = rollout(learner, actor=False), rollout(learner, actor=False)
    assert after["value_loss"] < before["value_loss"]
    assert residual(learner).abs().max() == 0
    half = {k: v for k, v in learner.tensors().items() if k.startswith("rollout/")}
    assert not half
