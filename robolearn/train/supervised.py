"""The supervised loop: windows of demonstrations in, a trained policy in checkpoints out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from robolearn.core.errors import RefusedError
from robolearn.train.checkpoint import CheckpointFolder
from robolearn.train.config import TrainConfig
from robolearn.train.device import choose_device
from robolearn.train.divergence import save_divergence
from robolearn.train.interfaces import TrainablePolicy, WindowSource
from robolearn.train.interrupts import Interrupted, InterruptGuard, NonFiniteError
from robolearn.train.learner import Learner
from robolearn.train.metrics import MetricsWriter, Row
from robolearn.train.processes import Processes
from robolearn.train.progress import TrainProgress
from robolearn.train.validation import Validation

if TYPE_CHECKING:
    from accelerate import Accelerator

type OnCheckpoint = Callable[[int, Path, Any], float | None]
"""Called with the step, the checkpoint's folder and the averaged policy; a returned score (larger is better) chooses ``best``."""

_BUDGET_SPENT = 1
"""Reason to stop beside the signal numbers, of which it is none that is handled."""


@dataclass(frozen=True)
class TrainResult:
    """How a call of :func:`train` ended."""

    step: int
    """Completed updates of the run."""
    stopped: Literal["finished", "max_seconds"]
    """Whether all steps are done or the time budget was spent."""
    checkpoint: Path
    """Newest checkpoint."""
    best: Path | None
    """Checkpoint with the best score; None where none was scored."""
    best_score: float | None
    policy: Any
    """The averaged policy, in evaluation mode on the training device."""


def train(
    policy: TrainablePolicy,
    dataset: WindowSource,
    validation: WindowSource | None,
    config: TrainConfig,
    run_dir: Path,
    *,
    resume: bool = False,
    provenance: Mapping[str, object] | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    accelerator: Accelerator | None = None,
) -> TrainResult:
    """Train ``policy`` in place and leave metrics and checkpoints in ``run_dir``.

    Every random draw is a function of (seed, step, process), so a resumed run repeats the uninterrupted one bit for bit on the
    same hardware (on a GPU as far as its kernels are deterministic).

    Args:
        policy: a ``torch.nn.Module``; moved to the training device.
        dataset: training windows.
        validation: windows of held-out episodes; None skips validation.
        config: settings.
        run_dir: folder of the run; created if missing.
        resume: continue the run in ``run_dir`` from its newest checkpoint, or from the start where there is none yet.
        provenance: JSON-serialisable record of code, versions and data; stored in every checkpoint. Where it names the
            ``checksum`` of a ``dataset``, resuming demands the same.
        on_checkpoint: scores scheduled checkpoints; must not use the test seeds.
        accelerator: several processes, each with its own part of every batch; gradients are averaged.

    Raises:
        RefusedError: bad settings, nothing to resume, a run folder in use or with checkpoints of its own, a full disk.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is saved.
        NonFiniteError: loss or gradient became NaN or infinite; the last good state and the offending batch are saved.
    """
    if not isinstance(policy, nn.Module) or not isinstance(policy, TrainablePolicy):
        raise RefusedError(f"{type(policy).__name__} cannot be trained: a torch module with loss, card and predict is needed.")
    processes = Processes(accelerator)
    device = choose_device(config.device) if accelerator is None else accelerator.device
    folder = CheckpointFolder(Path(run_dir) / "checkpoints")
    if resume and not folder.root.is_dir():
        raise RefusedError(f"{run_dir} holds no run to resume: it has no folder {folder.root.name}.")
    with ExitStack() as stack:
        if processes.is_main:
            stack.enter_context(folder.locked())
            folder.clean()
        processes.wait()
        stack.enter_context(_torch_settings(config.threads, device))
        guard = stack.enter_context(InterruptGuard())
        learner = Learner(policy, dataset, config, device, processes)
        _start(learner, folder, resume=resume, provenance=provenance or {})
        processes.wait()
        measure = Validation(validation, config, device) if validation is not None and processes.is_main else None
        loop = _Loop(learner, folder, guard, provenance or {})
        return loop.run(measure, on_checkpoint)


def _start(learner: Learner, folder: CheckpointFolder, *, resume: bool, provenance: Mapping[str, object]) -> None:
    steps = folder.steps()
    if steps and not resume:
        raise RefusedError(f"{folder.root} holds checkpoints up to step {steps[-1]}; resume it or choose another run_dir.")
    # A run that was killed before its first checkpoint is resumed by starting over: that repeats it exactly.
    if steps:
        learner.restore(folder.path(steps[-1]), provenance)


@contextmanager
def _torch_settings(threads: int, device: torch.device) -> Iterator[None]:
    """Set the thread count, and give the caller's thread count and random state back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        torch.set_num_threads(before)


class _Loop:
    """When things happen: updates, rows of metrics, validations, checkpoints, stops."""

    def __init__(
        self, learner: Learner, folder: CheckpointFolder, guard: InterruptGuard, provenance: Mapping[str, object]
    ) -> None:
        self._learner, self._folder, self._guard, self._provenance = learner, folder, guard, provenance
        self._config, self._processes = learner.config, learner.processes
        self._run_dir = folder.root.parent
        self._main = learner.processes.is_main
        self._score: OnCheckpoint | None = None
        self._validation: Validation | None = None

    def run(self, validation: Validation | None, on_checkpoint: OnCheckpoint | None) -> TrainResult:
        """Train until the last step, the end of the time budget, a signal or a divergence."""
        learner, config = self._learner, self._config
        self._validation, self._score = validation, on_checkpoint
        self._writer = self._open_writer() if self._main else None
        self._began_s = time.monotonic()
        self._elapsed_before_s = learner.elapsed_s
        self._window_data_s, self._window_aside_s, self._window_start = 0.0, 0.0, learner.step
        stopped: Literal["finished", "max_seconds"] = "finished"
        try:
            with TrainProgress(total=config.steps, start=learner.step, shown=self._main) as self._progress:
                self._score_checkpoint()
                self._window_began_s = time.monotonic()
                while learner.step < config.steps:
                    self._window_data_s += learner.update()
                    self._attend()
                    if self._stop_now():
                        stopped = "max_seconds"
                        break
        finally:
            if self._writer is not None:
                self._writer.close()
        scores, best = self._folder.scores(), self._folder.best()
        newest, best_path = self._folder.path(learner.step), None if best is None else self._folder.path(best)
        return TrainResult(learner.step, stopped, newest, best_path, scores.get(best or -1), learner.average.policy)

    def _open_writer(self) -> MetricsWriter:
        config, start, scores = self._config, self._learner.step, self._folder.scores()

        def still_true(row: Row) -> bool:
            """Return whether resuming won't write this row again; a score counts once the checkpoint folder knows it."""
            step = row["step"] or 0
            return step < start or (step == start and ("score" not in row or step in scores))

        sinks: dict[str, Any] = {"tensorboard": config.tensorboard, "wandb_project": config.wandb_project}
        return MetricsWriter(self._run_dir, start_step=start, keep=still_true, **sinks)

    def _due(self, every: int) -> bool:
        return self._learner.step % every == 0 or self._learner.step == self._config.steps

    def _attend(self) -> None:
        """Do what is due after the newest update, in the order in which a checkpoint may rely on it."""
        config = self._config
        log, save = self._due(config.log_every), self._due(config.checkpoint_every)
        validate = self._due(config.validate_every)
        if (log or save or validate or self._learner.updater.reads_every_step) and self._learner.diverged():
            self._give_up()
        if self._main:
            self._progress.advance(self._learner.step, time.monotonic())
        if log:
            self._log()
        began_s = time.monotonic()
        if validate and self._validation is not None:
            self._write(self._validation.measure(self._learner.average.policy))
        if save:
            self._save()
            self._score_checkpoint()
            if self._main:
                self._folder.prune(config.keep_checkpoints)
        self._window_aside_s += time.monotonic() - began_s

    def _log(self) -> None:
        learner = self._learner
        means = learner.meter.pop()  # waits for the device, so that the clock below sees finished updates
        now_s = time.monotonic()
        updates, seconds = learner.step - self._window_start, max(1e-9, now_s - self._window_began_s - self._window_aside_s)
        learner.elapsed_s = self._elapsed_before_s + now_s - self._began_s
        speed = updates * learner.samples_per_update / seconds
        row = {f"train/{name}": value for name, value in means.items()}
        row["train/learning_rate"] = self._config.learning_rate_at(learner.step - 1)
        row["train/epoch"] = learner.step * learner.samples_per_update / learner.order.windows
        row |= {"time/samples_per_s": speed, "time/data_s": self._window_data_s / updates}
        row |= {"time/update_s": (seconds - self._window_data_s) / updates, "time/elapsed_s": learner.elapsed_s}
        self._write(row)
        share = self._window_data_s / seconds
        if self._main:
            self._progress.report(learner.step, loss=means["loss"], samples_per_s=speed, data_share=share)
        self._window_data_s, self._window_aside_s = 0.0, 0.0
        self._window_start, self._window_began_s = learner.step, now_s

    def _write(self, row: Mapping[str, float]) -> None:
        if self._writer is not None:
            self._writer.write(self._learner.step, row)

    def _save(self) -> None:
        if self._main:
            self._folder.save(self._learner.step, self._learner.contents(self._provenance))

    def _score_checkpoint(self) -> None:
        """Score the checkpoint of this step if it is a scheduled one without a score; a signal may end this at once."""
        step = self._learner.step
        scheduled = step > 0 and self._due(self._config.checkpoint_every)
        if self._score is None or not self._main or not scheduled or step in self._folder.scores():
            return
        # Of several processes none may leave alone: the others would wait for its gradients.
        with self._guard.at_once() if self._processes.count == 1 else nullcontext():
            score = self._score(step, self._folder.path(step), self._learner.average.policy)
        if score is not None:
            self._write({"score": float(score)})
            self._folder.record_score(step, float(score))

    def _stop_now(self) -> bool:
        """Return whether the time budget is spent, with a checkpoint saved.

        Raises:
            Interrupted: a signal arrived; a checkpoint is saved.
        """
        reason = self._guard.signal_number or 0
        budget = self._config.max_seconds
        if not reason and budget is not None and time.monotonic() - self._began_s > budget:
            reason = _BUDGET_SPENT
        if self._processes.count > 1:
            # All processes must leave after the same update; asking each other at every one would cost more than it is worth.
            reason = self._processes.largest(reason) if self._due(self._config.log_every) else 0
        if not reason or (reason == _BUDGET_SPENT and self._learner.step == self._config.steps):
            return False
        if self._learner.diverged():
            self._give_up()
        self._save()
        if reason == _BUDGET_SPENT:
            return True
        saved = self._folder.path(self._learner.step)
        raise Interrupted(reason, f"Stopped by signal {reason} after update {self._learner.step}; saved {saved}.")

    def _give_up(self) -> None:
        learner = self._learner
        batch = learner.batch()
        module = learner.updater.loss_module
        folder, what = save_divergence(
            self._run_dir,
            step=learner.step,
            process=self._processes.index,
            policy=learner.policy,
            batch=batch,
            loss=lambda: module(batch, learner.draws())[0],
        )
        self._save()
        saved = f"batch saved in {folder}, last good state in {self._folder.path(learner.step)}"
        raise NonFiniteError(f"Training diverged at update {learner.step}: {what}; {saved}.")
