"""A recorded training curve: a change that is not meant to change learning keeps it.

Where learning is meant to change (other initial weights, another loss), run this file as a script and paste what it prints.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from robolearn.core.observation import flat_streams
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, FeatureSpec, Spaces
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import make_policy
from robolearn.policies.diffusion import Config
from robolearn.train.config import TrainConfig
from robolearn.train.metrics import read_metrics
from robolearn.train.supervised import train

STEPS, LOG_EVERY = 300, 50
GOLDEN = {
    "train/loss": [0.85716, 0.24487, 0.15653, 0.13625, 0.11875, 0.11513],
    "train/grad_norm": [0.9993, 0.55455, 0.49917, 0.47728, 0.42647, 0.42515],
    "validation/loss": [0.15591, 0.11689],
    "validation/action_error": [0.26829, 0.24614],
}
TOLERANCE = 0.01
"""Relative. SSE4, AVX2 and AVX-512 kernels round differently and agreed to 1e-5; wrong constants shift the curve by far more."""
SPACES = Spaces(
    "golden", {STATE: FeatureSpec((3,)), ENVIRONMENT_STATE: FeatureSpec((2,))}, FeatureSpec((2,)), (-1.0,) * 2, (1.0,) * 2, 20.0
)


class Windows:
    """500 windows of a made-up task: the chunk turns from where the state points to where the goal lies."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        state, goal = rng.uniform(-1, 1, (500, 1, 3)), rng.uniform(-1, 1, (500, 1, 2))
        share = np.linspace(0, 1, 8)[None, :, None]
        action = (1 - share) * np.tanh(state[..., :2] * state[..., 2:]) + share * goal
        self.data = {
            STATE: np.repeat(state, 2, 1).astype(np.float32),
            ENVIRONMENT_STATE: np.repeat(goal, 2, 1).astype(np.float32),
            ACTION: action.astype(np.float32),
        }

    def __len__(self) -> int:
        return 500

    def batch(self, indices):
        batch = {key: torch.from_numpy(rows)[indices] for key, rows in self.data.items()}
        return batch | {f"{ACTION}_is_pad": torch.zeros(len(indices), 8, dtype=torch.bool)}

    def statistics(self):
        return {key: Statistics.of(rows.reshape(-1, rows.shape[-1])) for key, rows in self.data.items()}


def curve(run_dir: Path) -> dict[str, list[float]]:
    """Train a small diffusion-mlp policy and return what was logged."""
    windows = Windows(seed=0)
    config = Config(pred_horizon=8, denoiser=DenoiserConfig(kind="mlp", mlp=MlpConfig(width=64, blocks=2)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = make_policy("diffusion", config, SPACES, Normalizer(flat_streams(SPACES)).fit(windows.statistics()))
    settings = TrainConfig(
        steps=STEPS, batch_size=64, learning_rate=1e-3, warmup_steps=30, log_every=LOG_EVERY, validate_every=STEPS // 2,
        validation_windows=200, action_error_windows=64, tensorboard=False, device="cpu",
    )  # fmt: skip
    train(policy, windows, Windows(seed=1), settings, run_dir)
    rows = read_metrics(run_dir)
    return {name: [row[name] for row in rows if name in row] for name in GOLDEN}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_the_curve_is_the_recorded_one(name, measured):
    assert measured[name] == pytest.approx(GOLDEN[name], rel=TOLERANCE)


def test_the_recorded_curve_shows_learning():
    assert GOLDEN["train/loss"][-1] < 0.5 * GOLDEN["train/loss"][0]
    assert GOLDEN["validation/action_error"][-1] < GOLDEN["validation/action_error"][0]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return curve(tmp_path_factory.mktemp("golden"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for metric, values in curve(Path(folder)).items():
            sys.stdout.write(f"    {metric!r}: {[round(v, 5) for v in values]},\n")
