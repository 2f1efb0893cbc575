"""Checkpoints: folders of safetensors and JSON that appear whole or not at all.

``checkpoints/000020000/`` holds ``config.json`` (the policy's card, training settings, provenance), ``model.safetensors`` (raw
weights), ``ema.safetensors`` (averaged weights, used for acting) and ``trainer/`` (what only resuming needs). ``last`` and
``best`` are relative symbolic links. A folder is written under a temporary name, synced to disk and renamed, so a folder with a
number for a name is complete.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from robolearn.core.errors import RefusedError
from robolearn.core.run import read_json, write_json

CONFIG_FILE = "config.json"
MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"
OPTIMIZER_FILE = "trainer/optimizer.safetensors"
METERS_FILE = "trainer/meters.safetensors"
STATE_FILE = "trainer/state.json"
SCORES_FILE = "scores.json"

type Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class CheckpointContents:
    """Everything that one checkpoint holds."""

    config: Mapping[str, object]
    model: Tensors
    ema: Tensors
    optimizer: Tensors
    meters: Tensors
    """Sums of the metrics since the last logged row."""
    state: Mapping[str, object]
    """Step, position in the data, root of the random draws, loss scale."""


class CheckpointFolder:
    """The ``checkpoints`` folder of one run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and hold it for this process alone, until the block or the process ends.

        Raises:
            RefusedError: another process trains in this run folder, or it cannot be written.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            stream = (self.root / ".lock").open("w")
        except OSError as error:
            raise RefusedError(f"Cannot write checkpoints to {self.root}: {error.strerror}.") from error
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RefusedError(f"Another process is training in {self.root.parent}.") from error
            yield

    def steps(self) -> list[int]:
        """Return the steps of the complete checkpoints, ascending."""
        if not self.root.is_dir():
            return []
        return sorted(int(p.name) for p in self.root.iterdir() if p.name.isdigit() and p.is_dir())

    def path(self, step: int) -> Path:
        """Return the folder of the checkpoint after ``step`` updates."""
        return self.root / f"{step:09d}"

    def clean(self) -> None:
        """Remove what a killed process left half written and point ``last`` at the newest checkpoint."""
        for leftover in self.root.glob(".tmp-*"):
            shutil.rmtree(leftover) if leftover.is_dir() and not leftover.is_symlink() else leftover.unlink()
        if steps := self.steps():
            self._point("last", steps[-1])

    def save(self, step: int, contents: CheckpointContents) -> Path:
        """Write a checkpoint and point ``last`` at it; does nothing if this step has one already.

        Raises:
            RefusedError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        final = self.path(step)
        temporary = self.root / f".tmp-{final.name}"
        try:
            if not final.exists():
                _write(temporary, contents)
                temporary.rename(final)
                _sync(self.root)
            self._point("last", step)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise RefusedError(
                f"Checkpoint {final} could not be written ({error}); earlier checkpoints are untouched."
            ) from error
        return final

    def scores(self) -> dict[int, float]:
        """Return step -> score of the checkpoints that were scored."""
        path = self.root / SCORES_FILE
        if not path.exists():
            return {}
        return {int(step): float(score) for step, score in read_json(path, what="table of scores").items()}  # type: ignore[arg-type]

    def best(self) -> int | None:
        """Return the best-scored step that is still on disk; of equals the latest, whose weights averaged over more updates."""
        scores = {step: score for step, score in self.scores().items() if step in self.steps()}
        return max(scores, key=lambda step: (scores[step], step), default=None)

    def record_score(self, step: int, score: float) -> None:
        """Store the score of a checkpoint (larger is better) and point ``best`` at the best one."""
        write_json(self.root / SCORES_FILE, {str(s): v for s, v in sorted((self.scores() | {step: score}).items())})
        best = self.best()
        if best is not None:
            self._point("best", best)

    def prune(self, keep: int) -> None:
        """Remove all but the ``keep`` newest checkpoints and the best one."""
        best = self.best()
        for step in self.steps()[:-keep]:
            if step != best:
                # Renamed first: a half-deleted folder must not look like a checkpoint.
                doomed = self.root / f".tmp-old-{step:09d}"
                self.path(step).rename(doomed)
                shutil.rmtree(doomed)

    def _point(self, name: str, step: int) -> None:
        temporary = self.root / f".tmp-{name}"
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(self.path(step).name)
        temporary.replace(self.root / name)
        _sync(self.root)


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint meant by ``path``: itself, or the best-scored, else the newest, of a run folder.

    Raises:
        RefusedError: there is none.
    """
    if (path / CONFIG_FILE).is_file() and (path / MODEL_FILE).is_file():
        return path.resolve()
    for root in (path / "checkpoints", path):
        folder = CheckpointFolder(root)
        steps = folder.steps()
        if steps:
            best = folder.best()
            return folder.path(steps[-1] if best is None else best)
    raise RefusedError(f"No checkpoint at {path}: neither {CONFIG_FILE} and {MODEL_FILE} nor numbered folders are there.")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file to the CPU.

    Raises:
        RefusedError: it is missing, truncated or no safetensors file.
    """
    if not path.is_file():
        raise RefusedError(f"{path} is missing.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise RefusedError(f"{path} cannot be read, truncated or damaged: {error}.") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load all parameters and buffers of ``module`` from ``path``.

    Raises:
        RefusedError: a tensor is missing, unexpected, not finite, or of another shape or dtype; the module is unchanged.
    """
    tensors = read_tensors(path)
    require_same_tensors(module.state_dict(), tensors, where=str(path))
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise RefusedError(f"{path}: tensor {name!r} holds values that are not finite.")
    module.load_state_dict(tensors)


def require_same_tensors(expected: Tensors, found: Tensors, *, where: str) -> None:
    """Refuse ``found`` unless it has exactly the names, shapes and dtypes of ``expected``; the first differences are named."""
    missing, unexpected = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unexpected:
        raise RefusedError(f"{where}: missing tensors {_some(missing)}, unexpected tensors {_some(unexpected)}.")
    for name, tensor in expected.items():
        if (tensor.shape, tensor.dtype) != (found[name].shape, found[name].dtype):
            needed, came = (f"{tuple(t.shape)} {t.dtype}" for t in (tensor, found[name]))
            raise RefusedError(f"{where}: tensor {name!r} must be {needed}, got {came}.")


def to_cpu(tensors: Tensors) -> dict[str, torch.Tensor]:
    """Return detached, contiguous CPU copies or views, as safetensors wants them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write(folder: Path, contents: CheckpointContents) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "trainer").mkdir(parents=True)
    files = {MODEL_FILE: contents.model, EMA_FILE: contents.ema, OPTIMIZER_FILE: contents.optimizer, METERS_FILE: contents.meters}
    for name, tensors in files.items():
        save_file(to_cpu(tensors), folder / name)
        _sync(folder / name)
    write_json(folder / STATE_FILE, contents.state)
    write_json(folder / CONFIG_FILE, contents.config)
    _sync(folder / "trainer")
    _sync(folder)


def _sync(path: Path) -> None:
    """Force a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _some(names: list[str]) -> str:
    return f"{names[:5]}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
