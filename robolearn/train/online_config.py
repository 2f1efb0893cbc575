"""Settings of the online loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from robolearn.core.errors import RefusedError
from robolearn.core.seeding import first_online_seed
from robolearn.train.refiner import Phase


@dataclass(frozen=True)
class OnlineConfig:
    """How long, how often and from what the refiner learns. Steps are control steps of all environments together."""

    env_steps: int = 75_000
    """Control steps in all, warm-up included."""
    warmup_steps: int = 10_000
    """Leading control steps in which the frozen base acts (Zhou et al. 2024, WSRL); only the critics learn."""
    ramp_steps: int = 0
    """Control steps after the warm-up over which the actor's reach (the bound of a residual or shift) grows from 0 to all of
    it (progressive exploration). 0 allows all at once."""
    guard_episodes: int = 0
    """Episodes, no worse than the base's of the warm-up, that prove the actor's reach before it may grow: in place of a ramp. 0
    never compares. See :class:`robolearn.train.dip_guard.DipGuard`."""
    learning_starts: int = 1_000
    """Control steps after which updates begin, at most ``warmup_steps``."""
    utd_ratio: float = 0.5
    """Updates per control step, of methods that learn from replay."""
    batch_size: int = 256
    """Transitions per update from replay."""
    demo_fraction: float = 0.5
    """Share of every batch that comes from the demonstrations; 0 uses none."""
    episode_steps: int = 0
    """Control steps after which an episode of the run is cut off; 0 takes the task's own limit, which evaluations always do.
    Episodes that hang take the longest and teach the least."""
    truncation: Literal["bootstrap", "failure"] = "failure"
    """What the time limit means: ``bootstrap`` goes on with the value of the last state (Pardo et al. 2018); ``failure`` ends
    with 0, where a task counts as failed when its time is up: the outcome of every episode is known then."""
    replay_capacity: int = 1_000_000
    """Control steps kept."""
    evaluate_every: int = 12_500
    """Control steps between evaluations; the base is evaluated first, before any step."""
    checkpoint_every: int = 12_500
    """Control steps between checkpoints."""
    keep_checkpoints: int = 1
    """Newest checkpoints that are kept."""
    log_every: int = 2_500
    """Control steps between rows of metrics."""
    seed: int = 0
    """Root of every random draw."""
    threads: int = 1
    """Threads of torch; the environments step in a thread of their own beside it."""
    tensorboard: bool = True
    """Write event files beside ``metrics.jsonl``."""

    def __post_init__(self) -> None:
        first_online_seed(self.seed)
        if min(self.env_steps, self.batch_size, self.evaluate_every, self.checkpoint_every, self.log_every, self.threads) < 1:
            raise RefusedError("env_steps, batch_size, evaluate_every, checkpoint_every, log_every and threads must be >= 1.")
        if not 0 <= self.learning_starts <= self.warmup_steps or self.keep_checkpoints < 1 or self.ramp_steps < 0:
            raise RefusedError("learning_starts must lie in [0, warmup_steps], ramp_steps be >= 0 and keep_checkpoints >= 1.")
        if self.episode_steps < 0:
            raise RefusedError(f"episode_steps={self.episode_steps} must be positive, or 0 for the task's own limit.")
        if self.guard_episodes < 0 or (self.guard_episodes and (self.ramp_steps or not self.warmup_steps)):
            raise RefusedError(
                f"guard_episodes={self.guard_episodes} must be >= 0, needs the base's episodes of a warm-up, and takes the place "
                f"of a ramp; got warmup_steps={self.warmup_steps}, ramp_steps={self.ramp_steps}."
            )
        if not self.utd_ratio > 0 or not 0 <= self.demo_fraction < 1:
            raise RefusedError(f"utd_ratio={self.utd_ratio} must be positive and demo_fraction={self.demo_fraction} in [0, 1).")

    def phase(self, step: int) -> Phase:
        """Return what is learned after ``step`` control steps."""
        since = step - self.warmup_steps
        reach = min(1.0, since / self.ramp_steps) if self.ramp_steps else 1.0
        return Phase(actor=since >= 0, reach=max(0.0, reach))
