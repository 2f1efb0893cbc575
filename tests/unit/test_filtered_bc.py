"""Filtered behaviour cloning: which steps are kept, worked by hand, and what is learned from them."""

import numpy as np
import torch
from episode_samples import episode, new_store, spaces

from robolearn.core.observation import flat_streams
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, Step
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import chunk_bc
from robolearn.refine import filtered_bc
from robolearn.train.lanes import Outcome
from robolearn.train.refiner import Phase


def refiner(**settings):
    torch.manual_seed(0)
    own = spaces()
    dims = flat_streams(own)
    rows = np.random.default_rng(0)
    normalizer = Normalizer(dims).fit({k: Statistics.of(rows.uniform(-1, 1, (50, d))) for k, d in dims.items()})
    net = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=16, blocks=1, level_width=4))
    base = chunk_bc.Policy(chunk_bc.Config(obs_horizon=2, pred_horizon=3, net=net), own, normalizer).eval()
    config = filtered_bc.Config(**settings)
    return filtered_bc.Refiner(filtered_bc.refined_policy(base, config), config)


def observe(learner, t, *, solved=(), cut=(), actor=False):
    """Step t of two lanes; lane i sees 10 i + t and executes (t, i)."""
    lane = np.arange(2, dtype=np.float32)[:, None]
    seen = {STATE: np.repeat(10 * lane + t, 3, axis=1), ENVIRONMENT_STATE: np.zeros((2, 2), np.float32)}
    won, over = np.isin(np.arange(2), solved), np.isin(np.arange(2), cut)
    sent = np.concatenate((np.full_like(lane, t), lane), axis=1)
    outcome = Outcome(seen, {}, sent, Step({}, won.astype(np.float32), won, over, won))
    return learner.observe(outcome, torch.Generator().manual_seed(t), Phase(actor=actor))


def test_whole_successes_are_kept_and_nothing_else():
    learner = refiner()
    observe(learner, 0)
    observe(learner, 1, cut=[1])  # lane 1 has failed: its steps 0 and 1 are forgotten
    observe(learner, 2, solved=[0])  # lane 0 has solved it in steps 0, 1, 2
    observe(learner, 3, solved=[1])  # lane 1 in its second episode's steps 2, 3
    observe(learner, 4)
    kept = learner.tensors()
    assert kept["own/rows/action"].tolist() == [[0, 0], [1, 0], [2, 0], [2, 1], [3, 1]]
    assert kept[f"own/rows/{STATE}"][:, 0].tolist() == [0, 1, 2, 12, 13]
    assert kept["own/episodes"] == 2
    # Lane 0 has been under way since step 3, lane 1 since step 4: two steps of all lanes are remembered.
    assert kept["ages"].tolist() == [2, 1]
    assert kept[f"log/{ACTION}"][:, 0].tolist() == [[3, 0], [4, 0]]


def test_nothing_moves_before_the_first_success_or_in_the_warm_up():
    learner = refiner(updates_per_step=1.0, batch_size=4)
    before = {k: v.clone() for k, v in learner.policy().state_dict().items()}
    assert observe(learner, 0, actor=True) == {}
    assert observe(learner, 1, solved=[0], actor=False) == {}
    assert all(torch.equal(v, before[k]) for k, v in learner.policy().state_dict().items())
    assert observe(learner, 2, actor=True)["kept_episodes"] == 1
    assert learner.policy().acting


def test_it_learns_to_repeat_its_success():
    learner = refiner(updates_per_step=20.0, batch_size=16, learning_rate=1e-2, average_rate=0.1)
    for t in range(4):
        observe(learner, t, solved=[0] if t == 3 else [])
    first = observe(learner, 4, actor=True)["loss"]
    for t in range(5, 9):
        last = observe(learner, t, actor=True)["loss"]
    assert last < 0.3 * first


def test_of_demonstrations_the_successes_are_imitated(tmp_path):
    learner = refiner(updates_per_step=1.0, batch_size=4)
    with new_store(tmp_path / "store", (5,)) as store:
        store.append(episode(7, success=False))
        learner.imitate(store, [0, 1])
    assert len(learner._cloning._given) == 5
    assert "loss" in observe(learner, 0, actor=True)
    assert not any("given" in name for name in learner.tensors()), "they lie in their store already"
