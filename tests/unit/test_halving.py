"""Successive halving over constant latents: shares, rounds and ties worked by hand."""

import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.refine.constant_latent import Config, Halving


def test_a_search_worked_by_hand():
    # K = 4, B = 16: R = log2 4 = 2 rounds of 16 / (4 * 2) = 2 and 16 / (2 * 2) = 4 further episodes per survivor.
    halving = Halving(4, 16)
    started = [halving.start() for _ in range(8)]
    assert started == [(0, 0), (1, 0), (2, 0), (3, 0), (0, 1), (1, 1), (2, 1), (3, 1)]
    # Rates after round one: 0, 1/2, 1, 1/2: candidate 2 stays, and of the two halves the one of the lower number.
    wins = {(2, 0), (2, 1), (1, 0), (3, 1)}
    for episode in started:
        halving.record(*episode, success=episode in wins)
    assert halving.survivors == [1, 2]
    assert halving.rates().tolist() == [0.5, 1.0]
    # Round two asks for slots 2..5 of each. Candidate 1 wins them all: 5/6 against 2/6.
    for _ in range(8):
        candidate, slot = halving.start()
        assert slot >= 2
        halving.record(candidate, slot, success=candidate == 1)
    assert halving.survivors == [1]


def test_episodes_beyond_the_quota_wait_for_the_next_round():
    # K = 4, B = 8: one episode each in round one. A lane that waits starts candidate 0 again and wins before the round ends:
    # that quick success must not count against candidates whose second episode is not known.
    halving = Halving(4, 8)
    for candidate in range(4):
        assert halving.start() == (candidate, 0)
    spare = halving.start()
    assert spare == (0, 1)
    halving.record(*spare, success=True)
    for candidate, success in ((0, False), (1, True), (2, True)):
        halving.record(candidate, 0, success=success)
    assert halving.survivors == [0, 1, 2, 3]
    halving.record(3, 0, success=False)
    assert halving.survivors == [1, 2]


def test_a_spare_success_counts_later():
    # Round two of K = 2 would not exist; K = 3, B = 6: R = 2, one episode each, then 6 / (2 * 2) = 1 more of two survivors.
    halving = Halving(3, 6)
    for _ in range(3):
        halving.start()
    spare = halving.start()
    halving.record(*spare, success=True)
    for candidate, success in ((0, True), (1, True), (2, False)):
        halving.record(candidate, 0, success=success)
    assert halving.survivors == [0, 1]
    # Candidate 0's spare success is its second episode; candidate 1 fails its own: 2/2 against 1/2.
    assert halving.start() == (1, 1)
    halving.record(1, 1, success=False)
    assert halving.survivors == [0]


def test_an_odd_number_keeps_the_larger_half_until_one_is_left():
    halving = Halving(5, 60)
    sizes = {5}
    while len(halving.survivors) > 1:
        candidate, slot = halving.start()
        halving.record(candidate, slot, success=candidate == 4)
        sizes.add(len(halving.survivors))
    assert halving.survivors == [4]
    assert sizes == {5, 3, 2, 1}


def test_the_budget_is_kept():
    for candidates, budget in ((2, 2), (16, 240), (7, 100)):
        halving, spent = Halving(candidates, budget), 0
        while len(halving.survivors) > 1:
            halving.record(*halving.start(), success=False)
            spent += 1
        assert spent <= budget


def test_its_state_lies_in_its_tensors():
    one, other = Halving(4, 16), Halving(4, 16)
    for _ in range(9):
        one.record(*one.start(), success=True)
    for name, value in other.tensors().items():
        value.copy_(one.tensors()[name])
    assert other.start() == one.start()
    assert torch.equal(other.rates(), one.rates())


@pytest.mark.parametrize(("settings", "named"), [({"candidates": 1}, "candidates=1"), ({"episodes": 15}, "episodes=15")])
def test_a_search_that_cannot_choose_is_refused(settings, named):
    with pytest.raises(RefusedError, match=named):
        Config(**settings)
