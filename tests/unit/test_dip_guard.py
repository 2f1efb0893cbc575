"""The dip guard: shares worked by hand with Fisher's exact test."""

import json

import pytest

from robolearn.core.errors import RefusedError
from robolearn.train.dip_guard import DipGuard
from robolearn.train.online_config import OnlineConfig


def episodes(guard, successes, failures, *, warmup=False):
    for index in range(successes + failures):
        guard.count(success=index < successes, warmup=warmup)


@pytest.fixture
def guard():
    """The base solves 5 of 10; two lanes; windows of 10."""
    guard = DipGuard(10, 2)
    episodes(guard, 5, 5, warmup=True)
    episodes(guard, 0, 2)  # under way when the warm-up ended: the base's, not counted
    return guard


def test_worse_episodes_halve_the_share_and_as_good_ones_give_it_back(guard):
    # 1 of 10 against 5 of 10: p = [C(10,0) C(10,6) + C(10,1) C(10,5)] / C(20,6) = (210 + 2520) / 38760 = 0.070 < 0.1.
    episodes(guard, 1, 9)
    assert guard.share == 0.5
    episodes(guard, 0, 2)  # two lanes were under way
    # 2 of 10: p = [C(10,0) C(10,7) + C(10,1) C(10,6) + C(10,2) C(10,5)] / C(20,7) = (120 + 2100 + 11340) / 77520 = 0.175: stays.
    episodes(guard, 2, 8)
    assert guard.share == 0.5
    # 5 of 10 is as good as the base; no episode is left out where nothing changed.
    episodes(guard, 5, 5)
    assert guard.share == 1.0
    episodes(guard, 0, 2)
    episodes(guard, 10, 0)
    assert guard.share == 1.0, "never more than the schedule allows"


def test_it_compares_whole_windows_only_and_continues_from_its_state(guard):
    episodes(guard, 0, 9)
    assert guard.share == 1.0
    other = DipGuard(10, 2)
    other.restore(json.loads(json.dumps(guard.state())))
    for one in (guard, other):
        episodes(one, 0, 1)
        assert one.share == 0.5
    assert guard.state() == other.state()


def test_without_a_window_nothing_is_compared():
    guard = DipGuard(0, 1)
    episodes(guard, 5, 0, warmup=True)
    episodes(guard, 0, 50)
    assert guard.share == 1.0


def test_it_needs_the_bases_episodes():
    with pytest.raises(RefusedError, match=r"guard_episodes=20 .* needs the base's episodes of a warm-up; got warmup_steps=0"):
        OnlineConfig(warmup_steps=0, learning_starts=0, guard_episodes=20)
