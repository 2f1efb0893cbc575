"""A small real run (episode store -> windows -> diffusion policy -> loop) as a process of its own, so that it can be killed.

Usage: train_worker.py STORE RUN_DIR STEPS [--resume]
"""

import sys
from pathlib import Path

import numpy as np
import torch

from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, Episode, FeatureSpec, Spaces
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.normalizer import Normalizer
from robolearn.data.store import EpisodeStore
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import make_policy
from robolearn.policies.diffusion import Config
from robolearn.train.config import TrainConfig
from robolearn.train.interrupts import Interrupted, NonFiniteError
from robolearn.train.supervised import train

SPACES = Spaces(
    robot="panda",
    observation={STATE: FeatureSpec((3,)), ENVIRONMENT_STATE: FeatureSpec((2,))},
    action=FeatureSpec((2,)),
    action_low=(-1.0, -1.0),
    action_high=(1.0, 1.0),
    control_rate_hz=20.0,
)


def make_store(path: Path) -> None:
    """Write six episodes of 30 steps whose actions are a smooth function of what is observed."""
    rng = np.random.default_rng(7)
    with EpisodeStore.create(path, SPACES, task="synthetic", fidelity="native") as store:
        for seed in range(6):
            goal = rng.uniform(-1, 1, (1, 2))
            state = np.cumsum(rng.normal(0, 0.1, (30, 3)), axis=0)
            action = np.tanh(goal - state[:, :2] + 0.3 * state[:, 2:]).astype(np.float32)
            data = {STATE: state.astype(np.float32), ENVIRONMENT_STATE: np.repeat(goal, 30, 0).astype(np.float32), ACTION: action}
            data |= {"action.sent": action, "t_wall": np.arange(30) / 20.0}
            store.append(Episode(data=data, success=True, seed=seed))


def make_policy_for(dataset: WindowDataset, seed: int = 0, *, pred_horizon: int = 8) -> torch.nn.Module:
    """Return a small diffusion policy, with dropout so that torch's own generator matters too."""
    config = Config(pred_horizon=pred_horizon, denoiser=DenoiserConfig(mlp=MlpConfig(width=32, blocks=1, dropout=0.1)))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make_policy("diffusion", config, SPACES, Normalizer(flat_streams(SPACES)).fit(dataset.statistics()))


def config_for(steps: int) -> TrainConfig:
    """Return settings in which rows, validations and checkpoints fall on different steps."""
    return TrainConfig(
        steps=steps, batch_size=16, warmup_steps=10, learning_rate=1e-3, log_every=7, validate_every=9, checkpoint_every=10,
        validation_windows=40, action_error_windows=8, device="cpu",
    )  # fmt: skip


def score(step: int, folder: Path, policy: torch.nn.Module) -> float:
    """Stand in for an evaluation: best in the middle of the run."""
    assert (folder / "model.safetensors").is_file()
    return -abs(step - 20.0)


def run(store_path: Path, run_dir: Path, steps: int, *, resume: bool) -> None:
    """Train on the first five episodes, validate on the last."""
    with EpisodeStore.open(store_path) as store:
        window = WindowConfig(pred_horizon=8)
        dataset = WindowDataset(store, window, episodes=range(5))
        held_out = WindowDataset(store, window, episodes=[5])
        provenance = {"dataset": dataset.provenance()}
        policy = make_policy_for(dataset)
        config = config_for(steps)
        train(policy, dataset, held_out, config, run_dir, resume=resume, provenance=provenance, on_checkpoint=score)


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), resume="--resume" in sys.argv)
    except (Interrupted, NonFiniteError) as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)
    except RefusedError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
