"""All that changes while a policy is trained, how one update changes it, and how it is stored and restored."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from robolearn.core.config import dotted
from robolearn.core.errors import RefusedError
from robolearn.core.run import read_json
from robolearn.core.seeding import generator
from robolearn.data.dataset import Batch
from robolearn.train.checkpoint import (
    CONFIG_FILE,
    EMA_FILE,
    METERS_FILE,
    MODEL_FILE,
    OPTIMIZER_FILE,
    STATE_FILE,
    CheckpointContents,
    load_weights,
    read_tensors,
)
from robolearn.train.config import FREE_ON_RESUME, TrainConfig
from robolearn.train.device import to_device
from robolearn.train.ema import WeightAverage
from robolearn.train.interfaces import WindowSource
from robolearn.train.metrics import MeanMeter
from robolearn.train.processes import Processes
from robolearn.train.update import LossModule, Updater
from robolearn.train.window_order import WindowOrder

_SEED_STRIDE = 0x9E3779B97F4A7C15
"""Odd: its successive multiples visit every 64-bit (and every 32-bit) number once before one repeats."""


class Learner:
    """Weights, their average, optimiser, metric sums and the number of completed updates.

    Every random draw is a function of (seed, step, process): nothing else about randomness has to be stored.

    Attributes:
        step: completed updates.
        average: the averaged policy, which acts.
        elapsed_s: seconds spent by earlier calls and this one, up to the newest row of metrics.
    """

    def __init__(
        self, policy: Any, dataset: WindowSource, config: TrainConfig, device: torch.device, processes: Processes
    ) -> None:
        self.policy = policy.to(device).train()
        self.config, self.device, self.processes = config, device, processes
        self.step = 0
        self.elapsed_s = 0.0
        self.order = WindowOrder(len(dataset), config.seed, device, weights=getattr(dataset, "window_weights", None))
        self.meter = MeanMeter()
        module = processes.wrap(LossModule(policy, config.precision, device.type))
        loss_module: Any = torch.compile(module) if config.compile else module
        self.updater = Updater(loss_module, policy, config, device)
        self.average = WeightAverage(policy, power=config.ema_power, max_decay=config.ema_max_decay)
        self._dataset = dataset
        self._rng = torch.Generator(device)
        self._noise_root = int(generator(config.seed, "training noise").integers(2**63))

    @property
    def samples_per_update(self) -> int:
        """Windows per update over all processes."""
        return self.config.batch_size * self.processes.count

    def update(self) -> float:
        """Make one update and return the seconds spent waiting for its batch; :meth:`diverged` tells whether it went well."""
        began_s = time.perf_counter()
        batch = self.batch()
        data_s = time.perf_counter() - began_s
        metrics = self.updater.step(batch, self.draws(), self.config.learning_rate_at(self.step))
        gate = None
        if not self.updater.reads_every_step:
            gate = 1 - self.updater.diverged
        elif self.updater.diverged:
            return data_s
        self.average.update(self.step, gate)
        self.meter.add(metrics, self.updater.diverged)
        self.step += 1
        return data_s

    def diverged(self) -> bool:
        """Wait for the device and return whether an update met a number that is not finite; :attr:`step` is then put back."""
        if not self.updater.diverged:
            return False
        self.meter.count -= self.step - int(self.updater.completed)
        self.step = int(self.updater.completed)
        return True

    def batch(self) -> Batch:
        """Return this process's part of the batch of the next update, on the device."""
        start = self.step * self.samples_per_update + self.processes.index * self.config.batch_size
        rows = self.order.rows(start, self.config.batch_size)
        return to_device(self._dataset.batch(rows), self.device)

    def draws(self) -> torch.Generator:
        """Return the generator of the next update's noise, and seed torch's own generators, which dropout draws from."""
        number = self.step * self.processes.count + self.processes.index
        seed = (self._noise_root + number * _SEED_STRIDE) % 2**64
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            torch.cuda.default_generators[index].manual_seed(seed)
        self._rng.manual_seed(seed)
        return self._rng

    def contents(self, provenance: Mapping[str, object]) -> CheckpointContents:
        """Return everything that a checkpoint of this moment holds."""
        self.average.copy_buffers()
        epoch, offset = divmod(self.step * self.samples_per_update, self.order.windows)
        state = {
            "step": self.step,
            "epoch": epoch,
            "offset": offset,
            "windows": self.order.windows,
            "samples_per_update": self.samples_per_update,
            "processes": self.processes.count,
            "noise_root": self._noise_root,
            "meter_names": list(self.meter.names),
            "meter_count": self.meter.count,
            "elapsed_s": self.elapsed_s,
        }
        config = {**self.policy.card(), "step": self.step, "training": asdict(self.config), "provenance": dict(provenance)}
        model, average = self.policy.state_dict(), self.average.policy.state_dict()
        return CheckpointContents(config, model, average, self.updater.tensors(), self.meter.tensors(), state)

    def restore(self, folder: Path, provenance: Mapping[str, object]) -> None:
        """Continue from a checkpoint.

        Raises:
            RefusedError: it is damaged, or belongs to another policy, other settings or other data; the message names which.
        """
        saved = read_json(folder / CONFIG_FILE, what="checkpoint's description")
        state: dict[str, Any] = read_json(folder / STATE_FILE, what="trainer state")
        self._require_same_run(saved, state, provenance, where=str(folder))
        load_weights(self.policy, folder / MODEL_FILE)
        load_weights(self.average.policy, folder / EMA_FILE)
        tensors, where = read_tensors(folder / OPTIMIZER_FILE), str(folder / OPTIMIZER_FILE)
        self.step, self.elapsed_s = int(state["step"]), float(state["elapsed_s"])
        self.updater.restore(tensors, step=self.step, where=where)
        meters = {name: tensor.to(self.device) for name, tensor in read_tensors(folder / METERS_FILE).items()}
        self.meter.restore(meters, state["meter_names"], state["meter_count"])

    def _require_same_run(self, saved: Mapping, state: Mapping, provenance: Mapping, *, where: str) -> None:
        card = json.loads(json.dumps(self.policy.card()))
        now = {f"train.{k}": v for k, v in asdict(self.config).items() if k not in FREE_ON_RESUME}
        now |= {"windows": self.order.windows, "processes": self.processes.count, "dataset checksum": _checksum(provenance)}
        now = json.loads(json.dumps(now)) | dotted(card)
        then = {f"train.{k}": v for k, v in saved.get("training", {}).items() if k not in FREE_ON_RESUME}
        then |= {k: state.get(k) for k in ("windows", "processes")} | {"dataset checksum": _checksum(saved.get("provenance", {}))}
        then |= dotted({key: saved.get(key) for key in card})
        changed = [f"{k}: {then.get(k)!r} then, {now.get(k)!r} now" for k in sorted(now | then) if now.get(k) != then.get(k)]
        if changed:
            raise RefusedError(f"Cannot resume from {where}; what is trained has changed: {'; '.join(changed[:5])}.")


def _checksum(provenance: Mapping[str, Any]) -> object:
    dataset = provenance.get("dataset")
    return dataset.get("checksum") if isinstance(dataset, Mapping) else None
