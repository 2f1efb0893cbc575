"""One process of a data-parallel run, started with the variables that torchrun sets. Usage: parallel_worker.py OUT_DIR."""

import dataclasses
import math
import os
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from robolearn.core.types import ActionChunk
from robolearn.train.config import TrainConfig
from robolearn.train.interrupts import Interrupted, NonFiniteError
from robolearn.train.supervised import train

CONFIG = TrainConfig(
    steps=12, batch_size=4, learning_rate=0.01, warmup_steps=0, log_every=3, validate_every=6, checkpoint_every=6,
    validation_windows=8, action_error_windows=4, grad_clip_norm=0.5, tensorboard=False, device="cpu",
)  # fmt: skip


class Windows:
    """Forty windows whose chunk is a nonlinear function of the state."""

    def __init__(self) -> None:
        self._x = torch.linspace(-1, 1, 80).reshape(40, 1, 2).sin()
        self.served = 0
        self.at_batch: dict = {}

    def __len__(self) -> int:
        return 40

    def batch(self, indices):
        self.served += 1
        x = self._x[indices]
        batch = {"observation.state": x, "action": (3 * x).cos().expand(-1, 4, -1).clone()}
        if self.served in self.at_batch:
            self.at_batch[self.served](batch)
        return batch | {"action_is_pad": torch.zeros(len(indices), 4, dtype=torch.bool)}


class Net(nn.Module):
    """A two-layer net without noise, so that two half batches and one whole are comparable."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.layers = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def loss(self, batch, rng):
        loss = (self.layers(batch["observation.state"][:, -1])[:, None] - batch["action"]).square().mean()
        return loss, {"loss": loss.detach()}

    def card(self):
        return {"policy": "net", "config": {}, "spaces": {}}

    @torch.no_grad()
    def predict(self, observation, rng):
        return ActionChunk(
            self.layers(torch.from_numpy(observation["observation.state"][:, -1]))[:, None].expand(-1, 4, -1).numpy()
        )


def main(out: Path) -> None:
    """Train undisturbed; with a signal to one process, then resumed; with a NaN in the other's data."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    whole = Net()
    train(whole, Windows(), Windows() if rank == 0 else None, CONFIG, out / "whole", accelerator=accelerator)
    save_file(whole.state_dict(), out / f"weights_{rank}.safetensors")

    disturbed = Windows()
    if rank == 1:
        disturbed.at_batch[4] = lambda batch: os.kill(os.getpid(), signal.SIGTERM)
    try:
        train(Net(), disturbed, Windows(), CONFIG, out / "split", accelerator=accelerator)
    except Interrupted as error:
        (out / f"interrupted_{rank}").write_text(f"{error.exit_code} {error}")
    train(Net(), Windows(), Windows(), CONFIG, out / "split", resume=True, accelerator=accelerator)

    spoilt = Windows()
    if rank == 1:
        spoilt.at_batch = dict.fromkeys((5, 6), lambda batch: batch["action"].fill_(math.nan))
    try:
        train(Net(), spoilt, None, CONFIG, out / "diverged", accelerator=accelerator)
    except NonFiniteError as error:
        (out / f"diverged_{rank}").write_text(str(error))


def alone(out: Path) -> None:
    """Train in one process on batches as large as the two processes' together."""
    train(Net(), Windows(), Windows(), dataclasses.replace(CONFIG, batch_size=8), out, resume=False)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
