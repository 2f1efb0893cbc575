"""The dip guard: reaches worked by hand from the cumulative sum."""

import json

import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.train.dip_guard import DipGuard
from robolearn.train.online_config import OnlineConfig


def episodes(guard, outcomes, *, warmup=False):
    for outcome in outcomes:
        guard.count(success=outcome == "s", warmup=warmup)


@pytest.fixture
def guard():
    """The base solves 5 of 10; two lanes; windows of 8."""
    guard = DipGuard(8, 2)
    episodes(guard, "sf" * 5, warmup=True)
    episodes(guard, "ff")  # under way when the warm-up ended: the base's, not counted
    return guard


def test_a_window_as_good_as_the_base_proves_what_was_tried_and_doubles_it(guard):
    assert (guard.tried, guard.proved) == (0.125, 0.0), "nothing is deployed before it was tried"
    episodes(guard, "sfsfsfsf")
    assert (guard.tried, guard.proved) == (0.25, 0.125)
    episodes(guard, "ff")  # under way at the change
    episodes(guard, "sfsfsfff")  # 3 of 8: neither proved nor an alarm
    assert (guard.tried, guard.proved) == (0.25, 0.125)
    for _ in range(4):
        episodes(guard, "ss" * 5)
    assert (guard.tried, guard.proved) == (1.0, 1.0), "never more than all of it"


def test_six_failures_in_a_row_halve_it_at_once(guard):
    episodes(guard, "sfsfsfsf")
    episodes(guard, "ff")
    # At p = 0.5 a failure adds log(0.75 / 0.5) = 0.405: log(10) = 2.303 is passed at the sixth, 2.433.
    episodes(guard, "fffff")
    assert (guard.tried, guard.proved) == (0.25, 0.125)
    episodes(guard, "f")
    assert (guard.tried, guard.proved) == (0.125, 0.0625), "half of what is left stays deployed"
    # A success takes log(2) = 0.693 off, never below 0: f f s leaves 0.118, and six more failures would have been one too many.
    episodes(guard, "ff")
    episodes(guard, "ffsffff")
    assert guard.tried == 0.125  # 0.118 + 4 x 0.405 = 1.740
    episodes(guard, "ff")
    assert guard.tried == 0.0625  # 2.551


@pytest.mark.parametrize(("before", "seen"), [("s" * 10, "ff"), ("f" * 10, "f" * 8)])
def test_a_base_that_always_or_never_succeeded_is_guarded_too(before, seen):
    guard = DipGuard(8, 0)
    episodes(guard, before, warmup=True)
    episodes(guard, seen)
    # At 0.98 one failure adds log(0.51 / 0.02) = 3.24; at 0.02 it adds 0.0102, and none of 8 is as good as none of 10.
    assert guard.tried == (0.03125 if before[0] == "s" else 0.25)


def test_it_continues_from_its_state(guard):
    episodes(guard, "sffff")
    other = DipGuard(8, 2)
    other.restore(json.loads(json.dumps(guard.state())))
    for one in (guard, other):
        episodes(one, "ff")
        assert one.tried == 0.0625
    assert guard.state() == other.state()


def test_alarms_are_as_rare_and_as_quick_as_its_docstring_says():
    def episodes_until_alarm(rate):
        rng = np.random.default_rng(0)
        counts = []
        for _ in range(400):
            guard = DipGuard(10**9, 0)
            episodes(guard, "sf" * 50, warmup=True)
            count = 0
            while guard.tried == DipGuard.BEGIN:
                guard.count(success=rng.random() < rate, warmup=False)
                count += 1
            counts.append(count)
        return np.mean(counts)

    assert episodes_until_alarm(0.5) == pytest.approx(85, rel=0.15)
    assert episodes_until_alarm(0.25) == pytest.approx(14, rel=0.15)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"warmup_steps": 0, "learning_starts": 0}, "needs the base's episodes of a warm-up.*got warmup_steps=0"),
        ({"ramp_steps": 500}, "takes the place of a ramp; got .*ramp_steps=500"),
    ],
)
def test_what_it_cannot_guard_is_refused(settings, said):
    with pytest.raises(RefusedError, match=rf"guard_episodes=12 .*{said}"):
        OnlineConfig(guard_episodes=12, **settings)
