"""Metrics of a run: one JSON object per line in ``metrics.jsonl``, TensorBoard events beside it, Weights & Biases on request."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from robolearn.core.errors import RefusedError

METRICS_FILE = "metrics.jsonl"
TENSORBOARD_FOLDER = "tensorboard"
TIME_PREFIX = "time/"
"""Metrics that depend on the clock and are the only ones that differ between a run and its repetition."""

type Row = dict[str, float | int | None]
"""``step`` and metrics by name, such as ``train/loss``; None where a value was not finite."""


class MeanMeter:
    """Means of named scalars over the updates since the last row, summed on the device so that no update waits for the host."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.total: torch.Tensor | None = None
        self.count = 0

    def add(self, metrics: Mapping[str, torch.Tensor], skip: torch.Tensor) -> None:
        """Add one update's scalars; where ``skip`` () is not 0 they count as zeros."""
        values = torch.stack([v.detach().float() for v in metrics.values()])
        values = torch.where(skip > 0, torch.zeros_like(values), values)
        if self.total is None:
            self.names, self.total = tuple(metrics), torch.zeros_like(values)
        if self.names != tuple(metrics):
            raise RefusedError(f"The policy's metrics changed from {self.names} to {tuple(metrics)} during training.")
        self.total += values
        self.count += 1

    def pop(self) -> dict[str, float]:
        """Return the means and start again; this is where the host waits for the device."""
        names, total, count = self.names, self.total, self.count
        self.names, self.total, self.count = (), None, 0
        return {} if total is None else dict(zip(names, (total / count).tolist(), strict=True))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the sums by name, for a checkpoint."""
        return {} if self.total is None else dict(zip(self.names, self.total.clone().unbind(), strict=True))

    def restore(self, tensors: Mapping[str, torch.Tensor], names: list[str], count: int) -> None:
        """Continue from a checkpoint's sums, in the order of ``names``."""
        self.names, self.count = tuple(names), count
        self.total = torch.stack([tensors[name] for name in names]) if names else None


class MetricsWriter:
    """Writes rows to every sink; a row survives the death of the process once :meth:`write` has returned.

    Rows of an earlier process for which ``keep`` is false are dropped: what is run again is not to be recorded twice.

    Raises:
        RefusedError: Weights & Biases is asked for but not installed, or the folder cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start_step: int,
        keep: Callable[[Row], bool],
        tensorboard: bool = True,
        wandb_project: str | None = None,
    ) -> None:
        self._path = run_dir / METRICS_FILE
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
            _filter_rows(self._path, keep)
            self._stream = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise RefusedError(f"Cannot write metrics to {self._path}: {error.strerror}.") from error
        self._tensorboard = _open_tensorboard(run_dir, start_step) if tensorboard else None
        self._wandb = _open_wandb(run_dir, wandb_project) if wandb_project else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one row for ``step`` completed updates."""
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        row: Row = {"step": step, **{name: finite.get(name) for name in metrics}}
        try:
            self._stream.write(json.dumps(row, allow_nan=False) + "\n")
            self._stream.flush()
        except OSError as error:
            raise RefusedError(f"Cannot write metrics to {self._path}: {error.strerror}.") from error
        if self._tensorboard is not None:
            for name, value in finite.items():
                self._tensorboard.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(finite, step=step)

    def close(self) -> None:
        """Flush and close every sink."""
        self._stream.close()
        if self._tensorboard is not None:
            self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(run_dir: Path) -> list[Row]:
    """Return the rows of ``metrics.jsonl`` in order; a last line that a killed process left unfinished is dropped.

    Raises:
        RefusedError: the file is missing or a line before the last is not JSON.
    """
    path = run_dir / METRICS_FILE
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise RefusedError(f"No metrics at {path}: {error.strerror}.") from error
    rows: list[Row] = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise RefusedError(f"{path}, line {number} is not JSON: {error}.") from error
    return rows


def _filter_rows(path: Path, keep: Callable[[Row], bool]) -> None:
    if not path.exists():
        return
    kept = [row for row in read_metrics(path.parent) if keep(row)]
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in kept)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def _open_tensorboard(run_dir: Path, start_step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run_dir / TENSORBOARD_FOLDER), purge_step=start_step + 1)


def _open_wandb(run_dir: Path, project: str) -> Any:
    if importlib.util.find_spec("wandb") is None:
        raise RefusedError(f"train.wandb_project={project!r} needs the package wandb, which is not installed.")
    import wandb

    # The folder's name is the run's id, so that a resumed run continues its own curves.
    run_id = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()[:12]
    return wandb.init(project=project, name=run_dir.name, id=run_id, dir=str(run_dir), resume="allow")
