"""The online loop: environments step while a refiner learns from what they did."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.core.run import read_json, write_json
from robolearn.core.seeding import generator
from robolearn.data.replay_buffer import ReplayBuffer, sample_mixed
from robolearn.train.checkpoint import (
    OPTIMIZER_FILE,
    STATE_FILE,
    CheckpointContents,
    CheckpointFolder,
    load_weights,
    read_tensors,
    to_cpu,
)
from robolearn.train.dip_guard import DipGuard
from robolearn.train.divergence import DIVERGED_FOLDER
from robolearn.train.evaluations import Evaluations, Score
from robolearn.train.interrupts import Interrupted, InterruptGuard, NonFiniteError
from robolearn.train.lanes import Lanes, Outcome
from robolearn.train.metrics import MetricsWriter
from robolearn.train.online_config import OnlineConfig
from robolearn.train.refiner import ObservingRefiner, Phase, Refiner, ReplayRefiner


@dataclass(frozen=True)
class OnlineResult:
    """How a call of :func:`refine` ended."""

    env_steps: int
    """Control steps made, warm-up included."""
    checkpoint: Path
    """Newest checkpoint."""
    evaluations: tuple[Mapping[str, object], ...]
    """One row per evaluation, with ``env_steps``."""


def refine(
    env: Env,
    refiner: Refiner,
    demos: ReplayBuffer | None,
    config: OnlineConfig,
    run_dir: Path,
    *,
    exec_horizon: int,
    evaluate: Callable[[Any], Score] | None = None,
    resume: bool = False,
    provenance: Mapping[str, object] | None = None,
) -> OnlineResult:
    """Refine a policy online and leave metrics, evaluations and checkpoints in ``run_dir``.

    Every draw is a function of (seed, step); a resumed run repeats the uninterrupted one bit for bit on the same hardware,
    because a checkpoint holds networks, optimisers, replay, the executor's queues and what brings the environments back.

    Args:
        env: stepped in a thread of its own; its episodes start anew at once.
        refiner: the method.
        demos: demonstrations in replay form, or None.
        config: settings.
        run_dir: folder of the run.
        exec_horizon: actions of a chunk that are executed before the next decision.
        evaluate: measures a policy on held-out initial states, never the test seeds.
        resume: continue from the newest checkpoint.
        provenance: stored in every checkpoint. The hash of the base in it must stay the same when resuming.

    Raises:
        RefusedError: bad settings, nothing to resume, a run folder in use, a checkpoint of other nets or another base.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint is saved.
        NonFiniteError: a loss became NaN or infinite; the batch and the state are saved.
    """
    folder = CheckpointFolder(Path(run_dir) / "checkpoints")
    if resume and not folder.root.is_dir():
        raise RefusedError(f"{run_dir} holds no run to resume: it has no folder {folder.root.name}.")
    with ExitStack() as stack:
        stack.enter_context(folder.locked())
        folder.clean()
        if folder.steps() and not resume:
            raise RefusedError(f"{folder.root} holds checkpoints; resume it or choose another run_dir.")
        stack.enter_context(_threads(config.threads))
        guard = stack.enter_context(InterruptGuard())
        pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="environments"))
        if config.guard_episodes and not hasattr(refiner.policy(), "reach"):
            raise RefusedError(
                f"guard_episodes={config.guard_episodes}: this method's policy has no reach to guard; set it to 0."
            )
        if config.ramp_steps and not refiner.ramps:
            raise RefusedError(f"ramp_steps={config.ramp_steps}: this method has no reach that could grow; set it to 0.")
        if refiner.latent_size and demos is not None and config.demo_fraction:
            raise RefusedError("Demonstrations hold no latent noise to learn from; set demo_fraction=0.")
        sizes = {"plan_steps": refiner.plan_steps, "latent_size": refiner.latent_size}
        timeouts_fail = config.truncation == "failure"
        lanes = Lanes(env, refiner.behaviour(), exec_horizon=exec_horizon, **sizes, timeouts_fail=timeouts_fail, seed=config.seed)
        loop = _Loop(refiner, lanes, demos, config, folder, provenance or {})
        if folder.steps():
            loop.restore(folder.path(folder.steps()[-1]))
        return loop.run(guard, pool, evaluate)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Loop:
    """Steps, updates, rows of metrics, evaluations, checkpoints."""

    def __init__(
        self,
        refiner: Refiner,
        lanes: Lanes,
        demos: ReplayBuffer | None,
        config: OnlineConfig,
        folder: CheckpointFolder,
        provenance: Mapping[str, object],
    ) -> None:
        self._refiner, self._lanes, self._demos, self._config = refiner, lanes, demos, config
        self._folder, self._provenance = folder, provenance
        self._run_dir = folder.root.parent
        self._evaluations = Evaluations(self._run_dir)
        self._replay: ReplayBuffer | None = None
        if isinstance(refiner, ReplayRefiner):
            self._replay = ReplayBuffer(
                lanes=lanes.count,
                capacity=config.replay_capacity,
                dims=lanes.field_dims(),
                discount=refiner.discount,
                device=lanes.device,
            )
        self._rng = torch.Generator(device=lanes.device)
        self._step, self._updates, self._elapsed_s = 0, 0, 0.0
        self._sums: dict[str, Tensor] = {}
        self._counted = 0
        self._recent: deque[bool] = deque(maxlen=100)
        self._dip_guard = DipGuard(config.guard_episodes, lanes.count) if config.guard_episodes else None
        self._episodes = 0
        self._stepping_s, self._updating_s = 0.0, 0.0

    def run(self, guard: InterruptGuard, pool: ThreadPoolExecutor, evaluate: Callable[[Any], Score] | None) -> OnlineResult:
        """Step and learn until the last step or a signal."""
        config = self._config
        self._writer = MetricsWriter(
            self._run_dir,
            start_step=self._step,
            keep=lambda row: (row["step"] or 0) <= self._step,
            tensorboard=config.tensorboard,
        )
        try:
            # At the start, or where a signal cut an evaluation off; the last one is due wherever the run ends.
            due = self._step % config.evaluate_every < self._lanes.count or self._step >= config.env_steps
            if evaluate is not None and due and all(row["env_steps"] != self._step for row in self._evaluations.rows(self._step)):
                self._evaluate(evaluate)
            self._began_s = time.monotonic() - self._elapsed_s
            self._logged_s, self._logged_step = time.monotonic(), self._step
            while self._step < config.env_steps:
                before = self._step
                self._advance(pool)
                self._attend(before, evaluate)
                if guard.signal_number is not None:
                    saved = self._save()
                    raise Interrupted(
                        guard.signal_number, f"Stopped by signal {guard.signal_number} at step {self._step}; saved {saved}."
                    )
        finally:
            self._writer.close()
        return OnlineResult(self._step, self._folder.path(self._step), tuple(self._evaluations.rows(self._step)))

    def _advance(self, pool: ThreadPoolExecutor) -> None:
        """Make one control step of all lanes; updates from replay happen while they step, what else is learned behind it."""
        began_s = time.monotonic()
        phase = self._config.phase(self._step)
        if self._dip_guard is not None:
            phase = replace(phase, reach=self._dip_guard.tried)
        self._set_reach(phase.reach)
        self._lanes.decide(warmup=not phase.actor)
        stepping = pool.submit(self._lanes.step)
        decided_s = time.monotonic()
        if self._replay is not None:
            self._learn(self._replay, phase)
        updated_s = time.monotonic()
        outcome = stepping.result()
        stepped_s = time.monotonic()
        if self._replay is not None:
            self._replay.add(**outcome.replay())
        if isinstance(self._refiner, ObservingRefiner):
            self._observe(self._refiner, outcome, phase)
        for success in outcome.finished:
            self._recent.append(success)
            if self._dip_guard is not None:
                self._dip_guard.count(success=success, warmup=not phase.actor)
            self._episodes += 1
        self._step += self._lanes.count
        self._stepping_s += stepped_s - updated_s + decided_s - began_s
        self._updating_s += updated_s - decided_s + time.monotonic() - stepped_s

    def _learn(self, replay: ReplayBuffer, phase: Phase) -> None:
        config, refiner = self._config, self._refiner
        assert isinstance(refiner, ReplayRefiner)
        if 0 <= self._step - config.warmup_steps < self._lanes.count:
            replay.forget_outcomes()  # they are the base's; the actor's own will be worse or better
        due = int(max(0, self._step - config.learning_starts) * config.utd_ratio) - self._updates
        if due <= 0 or not replay.holds(refiner.window_steps):
            return  # what many environments owe before replay holds a window is made up afterwards
        self._rng.manual_seed(int(generator(config.seed, "updates", self._step).integers(2**62)))
        demo_rows = round(config.demo_fraction * config.batch_size) if self._demos is not None else 0
        for _ in range(due):
            batch = sample_mixed(replay, self._demos, demo_rows, config.batch_size, steps=refiner.window_steps, rng=self._rng)
            self._count(refiner.update(batch, self._rng, phase))
        self._learned_from = batch.tensors()

    def _observe(self, refiner: ObservingRefiner, outcome: Outcome, phase: Phase) -> None:
        self._rng.manual_seed(int(generator(self._config.seed, "updates", self._step).integers(2**62)))
        metrics = refiner.observe(outcome, self._rng, phase)
        if metrics:
            self._count(metrics)
            self._learned_from = outcome.tensors()

    def _count(self, metrics: Mapping[str, Tensor]) -> None:
        for name, value in metrics.items():
            self._sums[name] = self._sums[name] + value.detach() if name in self._sums else value.detach().clone()
        self._counted += 1
        self._updates += 1

    def _attend(self, before: int, evaluate: Callable[[Any], Score] | None) -> None:
        config = self._config

        def due(every: int) -> bool:
            return self._step // every > before // every or self._step >= config.env_steps

        if due(config.log_every):
            self._log()
        self._elapsed_s = time.monotonic() - self._began_s
        if due(config.evaluate_every) and evaluate is not None:
            self._evaluate(evaluate)
        if due(config.checkpoint_every):
            self._save()
            self._folder.prune(config.keep_checkpoints)

    def _log(self) -> None:
        means = {name: float(value) / max(1, self._counted) for name, value in self._sums.items()}
        if not np.isfinite(list(means.values())).all():
            self._give_up(means)
        now_s = time.monotonic()
        row: dict[str, float] = {f"train/{name}": value for name, value in means.items()}
        if self._recent:
            row["train/success"] = float(np.mean(self._recent))
        if self._dip_guard is not None:
            row |= {"train/reach_tried": self._dip_guard.tried, "train/reach_proved": self._dip_guard.proved}
        row |= {"train/episodes": float(self._episodes), "train/updates": float(self._updates)}
        row["time/steps_per_s"] = (self._step - self._logged_step) / max(1e-9, now_s - self._logged_s)
        row |= {"time/update_s": self._updating_s, "time/step_s": self._stepping_s}
        self._writer.write(self._step, row)
        self._sums, self._counted, self._updating_s, self._stepping_s = {}, 0, 0.0, 0.0
        self._logged_s, self._logged_step = now_s, self._step

    def _evaluate(self, evaluate: Callable[[Any], Score]) -> None:
        began_s = time.monotonic()
        self._prove()
        try:
            score = dict(evaluate(self._refiner.policy()))
        except Interrupted as signalled:
            saved = self._save()
            message = f"Stopped by signal {signalled.signal_number} while evaluating at step {self._step}; saved {saved}."
            raise Interrupted(signalled.signal_number, message) from signalled
        row = {"env_steps": self._step, "updates": self._updates, "wall_s": round(self._elapsed_s, 1), **score}
        measured = self._evaluations.add(row)
        self._writer.write(self._step, {f"evaluate/{name}": value for name, value in measured.items()})
        away_s = time.monotonic() - began_s  # evaluations are not the run's time
        if hasattr(self, "_began_s"):
            self._began_s += away_s
            self._logged_s += away_s

    def _set_reach(self, reach: float) -> None:
        policy = self._refiner.policy()
        if hasattr(policy, "reach"):
            policy.reach.fill_(reach)

    def _prove(self) -> None:
        """Let the policy use what the guard has proved, until the next step."""
        if self._dip_guard is not None:
            self._set_reach(self._dip_guard.proved)

    def _save(self) -> Path:
        self._prove()
        policy = self._refiner.policy()
        weights = policy.state_dict()
        tensors = {f"refiner/{k}": v for k, v in self._refiner.tensors().items()}
        if self._replay is not None:
            tensors |= {f"replay/{k}": v for k, v in self._replay.state().items()}
        tensors |= {f"lanes/{k}": v for k, v in self._lanes.tensors().items()}
        state: dict[str, object] = {"env_steps": self._step, "updates": self._updates, "elapsed_s": self._elapsed_s}
        state |= {"lanes": self._lanes.state(), "recent": list(self._recent), "episodes": self._episodes}
        state |= {"counted": self._counted, "guard": self._dip_guard.state() if self._dip_guard is not None else None}
        contents = CheckpointContents(
            config=policy.card() | {"provenance": dict(self._provenance)},
            model=weights,
            ema=weights,
            optimizer=tensors,
            meters=dict(self._sums),
            state=state,
        )
        return self._folder.save(self._step, contents)

    def restore(self, checkpoint: Path) -> None:
        """Continue from ``checkpoint``."""
        saved: Any = read_json(checkpoint / "config.json", what="checkpoint's description").get("provenance", {})
        mine, theirs = self._provenance.get("base_hash"), saved.get("base_hash")
        if mine != theirs:
            raise RefusedError(f"{checkpoint} refines the base {theirs}, this run's base is {mine}: their replay does not match.")
        state: Any = read_json(checkpoint / STATE_FILE, what="checkpoint's state")
        tensors = read_tensors(checkpoint / OPTIMIZER_FILE)
        load_weights(self._refiner.policy(), checkpoint / "model.safetensors")
        self._refiner.restore(_part(tensors, "refiner"))
        if self._replay is not None:
            self._replay.restore(_part(tensors, "replay"))
        self._lanes.restore(state["lanes"], _part(tensors, "lanes"))
        self._sums = read_tensors(checkpoint / "trainer/meters.safetensors")
        self._step, self._updates, self._elapsed_s = int(state["env_steps"]), int(state["updates"]), float(state["elapsed_s"])
        self._episodes, self._counted = int(state["episodes"]), int(state["counted"])
        self._recent.extend(bool(s) for s in state["recent"])
        if self._dip_guard is not None:
            self._dip_guard.restore(state["guard"])

    def _give_up(self, means: Mapping[str, float]) -> None:
        folder = self._run_dir / DIVERGED_FOLDER / f"{self._step:09d}"
        folder.mkdir(parents=True, exist_ok=True)
        save_file(to_cpu(self._learned_from), folder / "batch.safetensors")
        write_json(folder / "report.json", {"env_steps": self._step, "metrics": {k: repr(v) for k, v in means.items()}})
        saved = self._save()
        bad = sorted(name for name, value in means.items() if not np.isfinite(value))
        raise NonFiniteError(f"Refinement diverged at step {self._step}: {bad}; batch saved in {folder}, state in {saved}.")


def _part(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
