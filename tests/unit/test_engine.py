"""The policy process's engine: alignment by stamps, novelty, and the fall back from a refined policy to its base."""

from __future__ import annotations

import itertools
import threading
from concurrent import futures

import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE, ActionChunk, FeatureSpec, Spaces
from robolearn.deploy.chunk import StepClock
from robolearn.deploy.engine import Engine
from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.novelty import NoveltyScore, ObservationNovelty

SPACES = Spaces("r", {STATE: FeatureSpec((1,))}, FeatureSpec((1,)), (-1e9,), (1e9,), 20.0)


class Ramp:
    """Row k of a chunk decided at x is 100 x + k."""

    spaces, obs_horizon, pred_horizon = SPACES, 2, 4

    def predict(self, observation, rng):
        return ActionChunk((100 * observation[STATE][:, -1] + np.arange(4))[:, :, None].astype(np.float32))


class Refined(Ramp):
    """The same plus 0.5 by decision and 0.25 by correction at every step."""

    base = Ramp()

    def predict(self, observation, rng):
        return ActionChunk(super().predict(observation, rng).actions + np.float32(0.5))

    def correct(self, observation, action, rng):
        return action + np.float32(0.25)


def novelty():
    # References at 0, 1, ..., 9, k = 1, threshold 2: x = 11 scores |11 - 9| / 2 = 1, x = 13 scores 2.
    score = NoveltyScore(np.zeros(1), np.eye(1), np.arange(10.0)[:, None], threshold=2.0, neighbours=1)
    return ObservationNovelty({STATE: 1}, score)


def engine(policy, *, horizon=4, score=None):
    made = Engine(policy, ExecutorConfig(horizon), clock=lambda: 0.0, novelty=score)
    made.reset(np.random.default_rng(0))
    return made


def act(made, x):
    return made.act({STATE: np.float32([x])})[:, 0].tolist()


def test_row_0_is_for_the_frame_whatever_was_skipped():
    made = engine(Ramp())
    assert act(made, 1) == [100, 101, 102, 103]
    assert act(made, 2) == [101, 102, 103]
    made.skip({STATE: np.float32([3])})
    assert act(made, 4) == [103]
    assert act(made, 5) == [500, 501, 502, 503]


def test_a_refined_policy_falls_back_to_its_base_and_stays_there_until_reset():
    made = engine(Refined(), score=novelty())
    assert act(made, 9) == [900.75, 901.5, 902.5, 903.5]
    assert (made.novelty, made.fallen_back) == (0.0, False)
    assert act(made, 11) == [901.75, 902.5, 903.5]  # at the threshold, not beyond it
    # Beyond: the refined plan is dropped and the base decides at once, without a correction.
    assert act(made, 12) == [1200, 1201, 1202, 1203]
    assert (made.novelty, made.fallen_back) == (1.5, True)
    assert act(made, 9) == [1201, 1202, 1203]
    made.reset(np.random.default_rng(0))
    assert not made.fallen_back
    assert act(made, 9)[0] == 900.75


@pytest.mark.parametrize(
    ("limits", "asked", "misses"),
    [
        # Decisions take 120, 120, 20 and 130 ms at 20 Hz: 2, 2, 0 and 2 steps. Nothing is expected of the first, which so misses;
        # from then on the 95 % quantile, 120 ms, says 2 steps.
        ({}, [2, 2, 2], 1),
        # The least of the newest: 120, 120, 20 ms. Only the last decision takes longer than what is expected of it.
        ({"delay_quantile": 1e-6}, [2, 2, 0], 2),
        # A policy that was trained for one step is given one; all but the third take longer.
        ({"longest_delay": 1}, [1, 1, 1], 3),
    ],
)
def test_the_delay_is_measured_and_misses_are_counted(limits, asked, misses):
    class Continuing(Ramp):
        pred_horizon, asked = 8, []

        def predict(self, observation, rng):
            return ActionChunk(np.zeros((1, 8, 1), np.float32))

        def continue_chunk(self, observation, rng, committed, *, delay, method):
            self.asked.append(delay)
            return self.predict(observation, rng)

    ticks = iter(t for begin, took in enumerate((0.12, 0.12, 0.02, 0.13)) for t in (begin, begin + took))
    policy = Continuing()
    made = Engine(policy, ExecutorConfig(1, continuation="trained", delay_steps=None), clock=lambda: next(ticks), **limits)
    made.reset(np.random.default_rng(0))
    for x in range(4):
        made.act({STATE: np.float32([x])})
    assert policy.asked == asked
    assert (made.decisions, made.deadline_misses) == (4, misses)
    with pytest.raises(RefusedError, match=r"delay_quantile=0 must lie in \(0, 1\]"):
        Engine(policy, ExecutorConfig(1), clock=lambda: 0.0, delay_quantile=0)


class Slow(Refined):
    """Decides when it is allowed to."""

    def __init__(self):
        self.allowed, self.begun, self.asked = threading.Semaphore(0), threading.Semaphore(0), 0

    def predict(self, observation, rng):
        self.asked += 1
        self.begun.release()
        assert self.allowed.acquire(timeout=20)
        return super().predict(observation, rng)


@pytest.fixture
def slow():
    """An engine whose decisions take 0.1 s, two control steps, by its clock, and its policy; one decision is made."""
    policy, ticks = Slow(), itertools.count()
    made = Engine(policy, ExecutorConfig(2), clock=lambda: 0.1 * next(ticks), background=True)
    policy.allowed.release()
    made.reset(np.random.default_rng(0))
    assert act(made, 0) == [0.75, 1.5, 2.5, 3.5]  # nothing to play yet: this one was waited for
    assert policy.begun.acquire(timeout=20)
    yield made, policy
    policy.allowed.release(9)
    made.close()


def finish(engine, policy):
    policy.allowed.release()
    futures.wait([engine._pending[1]], timeout=20)


def test_a_slow_decision_is_made_meanwhile_and_every_step_is_corrected(slow):
    made, policy = slow
    assert act(made, 1)[0] == 1.75
    # Due at 2, decided on x = 2: rows 2 and 3 of the old chunk are played and corrected meanwhile.
    assert act(made, 2) == [2.75, 3.5]
    assert act(made, 3) == [3.75]
    assert policy.begun.acquire(timeout=20)
    assert (policy.asked, made.decisions) == (2, 1)
    finish(made, policy)
    # Two steps late: row 2 of the chunk of x = 2, and due again.
    assert act(made, 4) == [202.75, 203.5]
    assert policy.begun.acquire(timeout=20)
    assert (policy.asked, made.decisions) == (3, 2)
    # A step without a frame for the policy moves everything on; then nothing is left to play, and the decision is waited for.
    made.skip({STATE: np.float32([5])})
    policy.allowed.release()
    assert act(made, 6) == [402.75, 403.5]


def test_a_reset_waits_for_the_decision_under_way_and_forgets_it(slow):
    made, policy = slow
    act(made, 1), act(made, 2)
    assert policy.begun.acquire(timeout=20)
    assert policy.asked == 2
    threading.Timer(0.05, policy.allowed.release).start()
    made.reset(np.random.default_rng(0))
    policy.allowed.release()
    assert act(made, 9) == [900.75, 901.5, 902.5, 903.5]


def test_what_fails_in_the_background_is_said_at_the_next_step(slow):
    made, policy = slow
    act(made, 1)
    policy.predict = lambda observation, rng: ActionChunk(np.zeros((1, 9, 1), np.float32))
    act(made, 2)
    futures.wait([made._pending[1]], timeout=20)
    with pytest.raises(RefusedError, match="chunk must have shape"):
        act(made, 3)
    del policy.predict
    policy.allowed.release(2)
    assert len(act(made, 4)) >= 1


def test_after_a_refused_frame_row_0_is_for_the_frame_again():
    # The plan stayed where it was while the world went on: every action until the next decision was a step late.
    made = engine(Ramp())
    assert act(made, 1)[0] == 100
    for refused in (made.act, made.skip):
        with pytest.raises(RefusedError, match="not finite"):
            refused({STATE: np.float32([np.nan])})
        assert act(made, 3)[0] == 300
        assert act(made, 4)[0] == 301


def test_a_frame_that_is_refused_moves_no_part_of_the_history():
    # The parts before the one that was refused had moved on already, and stayed a step ahead of the others.
    two = Spaces("r", {"a": FeatureSpec((1,)), "b": FeatureSpec((1,))}, FeatureSpec((1,)), (-1e9,), (1e9,), 20.0)
    seen = []

    class Both(Ramp):
        spaces = two

        def predict(self, observation, rng):
            seen.append([observation[key][0, :, 0].tolist() for key in ("a", "b")])
            return ActionChunk(np.zeros((1, 4, 1), np.float32))

    made = engine(Both(), horizon=1)
    made.act({"a": np.float32([1]), "b": np.float32([1])})
    with pytest.raises(RefusedError):
        made.act({"a": np.float32([2]), "b": np.float32([np.nan])})
    made.act({"a": np.float32([3]), "b": np.float32([3])})
    assert seen[-1] == [[1, 3], [1, 3]]


def test_without_a_score_or_a_base_nothing_falls_back():
    unscored, plain = engine(Refined()), engine(Ramp(), score=novelty())
    assert act(unscored, 99)[0] == 9900.75
    assert (unscored.novelty, unscored.fallen_back) == (None, False)
    assert act(plain, 13) == [1300, 1301, 1302, 1303]
    assert (plain.novelty, plain.fallen_back) == (2.0, False)


def test_the_warm_up_is_the_refined_policys_and_leaves_nothing_behind():
    made = engine(Refined(), score=novelty())
    made.warm_up()
    assert (made.novelty, made.fallen_back, len(made.latencies_s)) == (None, False, 0)


def test_the_warm_up_continues_a_chunk_where_chunks_are_continued():
    class Continuing(Ramp):
        asked = 0

        def continue_chunk(self, observation, rng, committed, *, delay, method):
            self.asked += 1
            return self.predict(observation, rng)

    made = Engine(Continuing(), ExecutorConfig(2, continuation="guided"), clock=lambda: 0.0)
    made.warm_up()
    assert made._policy.asked == 1
    assert (len(made.latencies_s), made.decisions, made.deadline_misses) == (0, 0, 0)


@pytest.mark.parametrize(
    ("stamps_ms", "steps"),
    [
        ([0, 50, 100, 150], [1, 1, 1, 1]),
        ([1000, 1048, 1103, 1149], [1, 1, 1, 1]),  # jitter below half a period
        ([0, 50, 200, 250], [1, 1, 3, 1]),  # a decision of three steps: two frames were never looked at
        ([0, 10, 20, 30, 40, 50, 60, 70, 80], [1, 0, 0, 1, 0, 0, 0, 0, 1]),  # a 100 Hz driver: steps begin at 25 and 75 ms
        ([500, 450, 551], [1, 0, 1]),  # a clock that jumps back
    ],
)
def test_steps_between_stamps(stamps_ms, steps):
    clock = StepClock(0.05)
    assert [clock.advance(ms * 1_000_000) for ms in stamps_ms] == steps
    clock.reset()
    assert clock.advance(7) == 1


def test_in_lockstep_every_frame_is_the_next_step():
    clock = StepClock(0.05, lockstep=True)
    assert [clock.advance(s * 1_000_000_000) for s in (0, 3, 10)] == [1, 1, 1]
