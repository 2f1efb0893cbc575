"""Warm-started reinforcement learning: the actor is fitted to the base in the warm-up and led by the critics behind it."""

import numpy as np
import pytest
import torch

from robolearn.core.observation import flat_streams
from robolearn.core.types import STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.data.replay_buffer import ReplayBuffer
from robolearn.nets.actors import ActorConfig
from robolearn.nets.critics import CriticConfig
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import chunk_bc
from robolearn.refine import warm_start
from robolearn.train.refiner import Phase

PLAN = (0.6, -0.4)
"""What the base does: two elements."""


def refiner(chunk_steps=1):
    torch.manual_seed(0)
    spaces = Spaces("point", {STATE: FeatureSpec((2,))}, FeatureSpec((2,)), (-1.0, -2.0), (1.0, 2.0), 10.0)
    rows = np.random.default_rng(0).normal(size=(50, 2))
    normalizer = Normalizer(flat_streams(spaces)).fit(dict.fromkeys(flat_streams(spaces), Statistics.of(rows)))
    net = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=8, blocks=1, level_width=4))
    base = chunk_bc.Policy(chunk_bc.Config(obs_horizon=1, pred_horizon=3, observation_keys=(STATE,), net=net), spaces, normalizer)
    config = warm_start.Config(
        chunk_steps=chunk_steps,
        window_steps=2,
        actor=ActorConfig(width=32, layers=1),
        critic=CriticConfig(members=3, width=32, layers=1, octaves=0),
        fit_learning_rate=1e-2,
        actor_learning_rate=3e-3,
        actor_every=1,
        critic_learning_rate=3e-3,
        target_rate=0.05,
    )
    return warm_start.Refiner(warm_start.refined_policy(base.eval(), config), config)


def replay(steps=400):
    """One-step episodes of random actions, solved where the second element is positive."""
    buffer = ReplayBuffer(lanes=1, capacity=steps, dims={"condition": 2, "action": 2, "plan": 2}, discount=0.99)
    rng, end = torch.Generator().manual_seed(0), torch.tensor([True])
    for _ in range(steps):
        action = torch.rand((1, 2), generator=rng) * 2 - 1
        fields = {"condition": torch.rand((1, 2), generator=rng), "action": action, "plan": torch.tensor([PLAN])}
        buffer.add(fields, reward=(action[:, 1] > 0).float(), terminated=end, truncated=~end)
    return buffer


def learn(learner, updates, *, actor):
    buffer, rng = replay(), torch.Generator().manual_seed(1)
    for _ in range(updates):
        metrics = learner.update(buffer.sample(64, steps=2, rng=rng), rng, Phase(actor=actor))
    return metrics


def mode(learner):
    return learner.policy().actor.mode(torch.full((1, 2), 0.5))[0]


def test_the_warm_up_fits_the_actor_to_the_base_and_then_the_critics_lead_it():
    learner = refiner()
    learn(learner, 300, actor=False)
    assert not learner.policy().acting
    # The first update behind the warm-up puts the fitted actor to work before it moves by a learning rate.
    learn(learner, 1, actor=True)
    assert learner.policy().acting
    assert mode(learner).tolist() == pytest.approx(PLAN, abs=0.05)
    learn(learner, 300, actor=True)
    found = mode(learner)
    assert found[1] > 0.1, "the element that is rewarded where it is positive was -0.4"
    assert found[0] > 0.3, "an element that changes nothing stays about where it was"


def test_a_chunk_is_in_raw_units_and_repeats_its_last_action():
    policy = refiner(2).policy()
    # Bounds +-1 and +-2: normalised (0.5, 0.5) is (0.5, 1.0).
    chunk = policy.chunk(torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
    assert chunk[0].tolist() == [[0.0, 0.0], [0.5, 1.0], [0.5, 1.0]]
