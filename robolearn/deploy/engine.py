"""A policy at work in its own process: the evaluator's executor on one robot, with its latency measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Policy
from robolearn.core.types import ActionChunk, Array, Observation
from robolearn.deploy.executor import ChunkExecutor, Decision, ExecutorConfig
from robolearn.deploy.fallback import FallbackPolicy
from robolearn.deploy.novelty import ObservationNovelty

type Clock = Callable[[], float]
"""Monotonic seconds."""

KEPT_LATENCIES = 500
DELAY_WINDOW = 50
"""The newest decisions by which the delay is judged: one slow call is forgotten after so many."""
DELAY_QUANTILE = 0.95
"""Of their durations, the one that is expected of the next."""


class Engine:
    """Turns frames into chunks of which row 0 is for the frame's own control step.

    It runs :class:`robolearn.deploy.executor.ChunkExecutor`, as the evaluator does, so replanning, overlapping and per-step
    corrections are the ones that were measured. In the background, a decision that is expected to take a control step or more is
    made in a thread, while the plan under way goes on being played and corrected. With a novelty score, a refined policy (one
    that has a ``base``) falls back to its base at the first frame beyond the threshold and stays there until :meth:`reset`.
    """

    def __init__(
        self,
        policy: Policy,
        config: ExecutorConfig,
        *,
        clock: Clock,
        novelty: ObservationNovelty | None = None,
        delay_quantile: float = DELAY_QUANTILE,
        longest_delay: int | None = None,
        background: bool = False,
    ) -> None:
        """Put a policy to work.

        Args:
            policy: decides.
            config: how its chunks are executed.
            clock: measures decisions.
            novelty: scores observations.
            delay_quantile: of the newest decisions' durations, the one expected of the next where ``delay_steps`` is null.
            longest_delay: most control steps that are expected, however long decisions take; None: as far as chunks allow.
            background: make slow decisions in a thread; :meth:`close` ends it.

        Raises:
            RefusedError: the quantile lies outside (0, 1], or the policy cannot do what ``config`` asks for.
        """
        if not 0 < delay_quantile <= 1:
            raise RefusedError(f"delay_quantile={delay_quantile} must lie in (0, 1].")
        self._delay_quantile, self._longest_delay = delay_quantile, longest_delay
        base = getattr(policy, "base", None) if novelty is not None else None
        self._fallback = FallbackPolicy(policy, base) if isinstance(base, Policy) else None
        self._policy: Policy = self._fallback or policy
        self._clock, self._score = clock, novelty
        self._executor = ChunkExecutor(self._policy, config, num_rows=1)
        self._rng = np.random.default_rng(0)
        self.novelty: float | None = None
        """Score / threshold of the last frame; None where it is not scored."""
        self.latencies_s: deque[float] = deque(maxlen=KEPT_LATENCIES)
        """Durations of the newest decisions (those that asked the policy), the warm-up not among them."""
        self.decisions, self.deadline_misses = 0, 0
        """Decisions made, and those that took longer than the control steps that they were expected to take."""
        self.steps_while_deciding = 0
        """Control steps that were answered while the thread was at a decision."""
        self._config = config
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="decision") if background else None
        self._pending: tuple[Decision, Future[tuple[ActionChunk, float]]] | None = None

    @property
    def fallen_back(self) -> bool:
        """Whether the base acts in place of the refined policy."""
        return self._fallback is not None and self._fallback.fallen_back

    def warm_up(self) -> float:
        """Decide on zeros, which pays for compilation and caches, and return how long that took [s].

        Once; and once more to continue the first chunk, where chunks are continued.

        Raises:
            RefusedError: the policy cannot continue chunks as the configuration asks.
        """
        features = self._policy.spaces.observation
        frame = {key: np.zeros(f.shape, f.dtype) for key, f in features.items()}
        self.reset(np.random.default_rng(0))
        begin = self._clock()
        for _ in range(1 + self._config.exec_horizon * (self._config.continuation != "switch")):
            self._plan(frame)
        took = self._clock() - begin
        self.latencies_s.clear()
        self.decisions = self.deadline_misses = self.steps_while_deciding = 0
        self.reset(np.random.default_rng(0))
        return took

    def reset(self, rng: np.random.Generator) -> None:
        """Begin an episode: history and queue start again, and ``rng`` is the source of every draw from now on."""
        self._forget_pending()
        self._executor.reset()
        self._rng, self.novelty = rng, None
        if self._fallback is not None:
            self._fallback.fallen_back = False

    def skip(self, frame: Observation) -> None:
        """Take the frame of a control step that went by without a decision; see :meth:`ChunkExecutor.skip`.

        Raises:
            RefusedError: the frame does not fit the policy; the plan is forgotten.
        """
        try:
            self._executor.skip({key: value[None] for key, value in frame.items()})
        except RefusedError:
            self._replan()
            raise

    def act(self, frame: Observation) -> Array:
        """Return (h, a) float32: the action for the frame's control step, then what is planned behind it.

        Args:
            frame: key -> array without batch axis; frames come one control step apart, but for those given to :meth:`skip`.

        Raises:
            RefusedError: the frame does not fit the policy, or the policy returned a number that is not finite. The plan is
                forgotten: its step went by, so that what is left of it would come a step late.
        """
        if self._score is not None:
            self.novelty = self._score(frame)
            if self._fallback is not None and self.novelty > 1 and not self.fallen_back:
                self._replan()
                self._fallback.fallen_back = True
        try:
            return self._plan(frame)
        except RefusedError:
            self._replan()
            raise

    def close(self) -> None:
        """Wait for a decision in the background and end its thread; a second call does nothing."""
        self._forget_pending()
        if self._thread is not None:
            self._thread.shutdown()

    def _replan(self) -> None:
        self._forget_pending()
        self._executor.replan()

    def _plan(self, frame: Observation) -> Array:
        begin = self._clock()
        self._take_over()
        if self._config.delay_steps is None and self._pending is None:
            self._executor.delay_steps = self.expected_delay()
        action = self._executor.act({key: value[None] for key, value in frame.items()}, [self._rng], elsewhere=self._beside)
        since = int(self._executor.since_decision()[0])
        rows = self._executor.planned(self._policy.pred_horizon - since)[0]
        rows[0] = action[0]
        if since == 0:
            self._count(self._clock() - begin)
        self.steps_while_deciding += self._pending is not None
        if not np.isfinite(rows).all():
            raise RefusedError(f"The policy's actions are not finite in {int((~np.isfinite(rows)).any(axis=1).sum())} rows.")
        return rows

    def _beside(self) -> bool:
        """Let the thread make the decision that is due if it is a slow one; return whether the thread is at it."""
        if self._pending is not None:
            return True
        if self._thread is None or not self.expected_delay():
            return False
        decision = self._executor.decision([self._rng])

        def decide() -> tuple[ActionChunk, float]:
            begin = self._clock()
            return decision.ask(), self._clock() - begin

        self._pending = decision, self._thread.submit(decide)
        return True

    def _take_over(self) -> None:
        """Take the chunk of a decision that is made; wait for it where nothing is left to play."""
        if self._pending is None or not (self._pending[1].done() or self._executor.left() == 0):
            return
        (decision, future), self._pending = self._pending, None
        chunk, took = future.result()
        self._executor.arrive(decision, chunk)
        self._count(took)

    def _forget_pending(self) -> None:
        """Wait until the policy is free; what it decided is about another episode or by another policy."""
        if self._pending is not None:
            wait([self._pending[1]])
            self._pending = None

    def _count(self, took_s: float) -> None:
        self.latencies_s.append(took_s)
        self.decisions += 1
        self.deadline_misses += self._steps(took_s) > self._executor.delay_steps

    def expected_delay(self) -> int:
        """Return how many control steps a decision is expected to take: a quantile of the newest, as far as chunks allow."""
        newest = list(self.latencies_s)[-DELAY_WINDOW:]
        wanted = self._steps(float(np.quantile(newest, self._delay_quantile))) if newest else 0
        allowed = self._policy.pred_horizon - self._config.exec_horizon
        return min(wanted, allowed if self._longest_delay is None else min(allowed, self._longest_delay))

    def _steps(self, seconds: float) -> int:
        """Return the control steps that begin within ``seconds`` of a decision's start; one that is ready in time delays none."""
        return int(seconds * self._policy.spaces.control_rate_hz)

    def latency_s(self, quantile: float) -> float:
        """Return a quantile of the newest decisions' durations; NaN before the first."""
        return float(np.quantile(self.latencies_s, quantile)) if self.latencies_s else float("nan")
