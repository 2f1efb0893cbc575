"""Pictures and action traces of chosen episodes: they are run again, because their seeds decide them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.protocols import Env, Policy
from robolearn.core.types import Array
from robolearn.evaluate.result import EpisodeResult, EvaluationResult
from robolearn.evaluate.rollout import Rollouts


@dataclass(frozen=True)
class RecordingConfig:
    """Which episodes are recorded and how."""

    successes: int = 4
    """The first so many solved episodes."""
    failures: int = 4
    """The first so many failed episodes."""
    camera: str | None = None
    """Camera to render; None takes the environment's first."""
    height: int = 192
    """Pixels; even, as H.264 wants it."""
    width: int = 256
    """Pixels; even."""
    frame_stride: int = 2
    """Control steps from one picture to the next."""

    def __post_init__(self) -> None:
        if min(self.successes, self.failures) < 0 or self.frame_stride < 1:
            raise RefusedError(f"successes, failures and frame_stride must not be negative or 0, got {self}.")
        if self.height < 16 or self.width < 16 or self.height % 2 or self.width % 2:
            raise RefusedError(f"height={self.height} and width={self.width} must be even and at least 16 pixels.")


@dataclass(frozen=True)
class Recording:
    """One episode as it was seen."""

    episode: EpisodeResult
    """Its outcome in this run."""
    same_outcome: bool
    """Whether it ended as in the evaluation; with other batch mates a network rounds differently, and a close call may tip."""
    frames: Array
    """(t, height, width, 3) uint8, from the initial state to the last."""
    frame_rate_hz: float
    """Pictures per second at the robot's own speed."""
    actions: Array
    """(t, a) float32 sent actions, one per control step."""
    action_names: tuple[str, ...]
    control_rate_hz: float


def choose_episodes(result: EvaluationResult, config: RecordingConfig) -> list[int]:
    """Return the seeds of the first failures and successes of an evaluation, failures first: they teach more."""
    failures = [e.seed for e in result.episodes if not e.success][: config.failures]
    return failures + [e.seed for e in result.episodes if e.success][: config.successes]


def record_episodes(
    env: Env, policy: Policy, result: EvaluationResult, config: RecordingConfig | None = None
) -> tuple[Recording, ...]:
    """Run the chosen episodes of ``result`` again and record them.

    Args:
        env: as it was in the evaluation.
        policy: likewise.
        result: says which seeds, and how they were run.
        config: defaults if None.

    Raises:
        RefusedError: the environment has no such camera, or does not fit the policy.
    """
    config = config or RecordingConfig()
    camera = config.camera or next(iter(env.spec.cameras), "")
    if camera not in env.spec.cameras:
        raise RefusedError(f"Camera {camera!r} cannot be rendered. {nearest(camera, env.spec.cameras)}")
    seeds = choose_episodes(result, config)
    if not seeds:
        return ()
    rollouts = Rollouts(env, policy, seeds, result.config)
    frames: dict[int, list[Array]] = {seed: [] for seed in seeds}
    actions: dict[int, list[Array]] = {seed: [] for seed in seeds}
    outcomes: dict[int, EpisodeResult] = {}

    def look(row: int, seed: int) -> None:
        frames[seed].append(env.render(row, camera, config.height, config.width))

    while rollouts.running:
        for row, seed in rollouts.in_flight():
            if not frames[seed]:
                look(row, seed)
        tick = rollouts.advance()
        outcomes |= {e.seed: e for e in tick.finished}
        for row, seed in zip(tick.rows, tick.seeds, strict=True):
            actions[seed].append(tick.actions[row])
            if len(actions[seed]) % config.frame_stride == 0 or seed in outcomes:
                look(row, seed)
        rollouts.refill()
    before = {e.seed: e.success for e in result.episodes}
    return tuple(
        Recording(
            episode=outcomes[seed],
            same_outcome=outcomes[seed].success == before[seed],
            frames=np.stack(frames[seed]),
            frame_rate_hz=result.control_rate_hz / config.frame_stride,
            actions=np.stack(actions[seed]),
            action_names=env.spec.spaces.action.names,
            control_rate_hz=result.control_rate_hz,
        )
        for seed in seeds
    )
