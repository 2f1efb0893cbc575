"""Replay: returns over n steps, chunks and bootstraps worked by hand; refusals."""

import pytest
import torch

from robolearn.core.errors import RefusedError
from robolearn.data.replay_buffer import ReplayBuffer, returns_to_go, sample_mixed


def buffer(rewards, terminated=(), truncated=(), *, discount=0.5, plan=0, capacity=100):
    """One lane; the condition and the action of step t are t, its plan is t, t + 100, t + 200, ..."""
    dims = {"condition": 1, "action": 1} | ({"plan": plan} if plan else {})
    made = ReplayBuffer(lanes=1, capacity=capacity, dims=dims, discount=discount)
    for t, reward in enumerate(rewards):
        value = torch.tensor([[float(t)]])
        fields = {"condition": value, "action": value} | ({"plan": t + 100.0 * torch.arange(plan)[None]} if plan else {})
        end = {"terminated": torch.tensor([t in terminated]), "truncated": torch.tensor([t in truncated])}
        made.add(fields, reward=torch.tensor([float(reward)]), **end)
    return made


def windows(made, starts, steps):
    start = torch.tensor(starts)
    return made._windows(start, torch.zeros_like(start), steps=steps)


def test_three_step_return_worked_by_hand():
    # d = 0.5: R = 1 + 0.5 * 2 + 0.25 * 4 = 3, the value three steps on counts 0.5^3 = 0.125.
    batch = windows(buffer([1, 2, 4, 8, 16, 32]), [0, 1], 3)
    assert batch.returns.tolist() == [3.0, 6.0]
    assert batch.bootstrap.tolist() == [0.125, 0.125]
    assert batch.following["condition"][:, 0].tolist() == [3.0, 4.0]
    assert batch.actions[:, :, 0].tolist() == [[0, 1, 2], [1, 2, 3]]


def test_returns_stop_at_a_terminated_step():
    # Step 2 terminates: from step 1, R = 2 + 0.5 * 4 = 4 and nothing follows, whatever the next episode earns.
    batch = windows(buffer([1, 2, 4, 8, 16, 32], terminated=[2]), [1, 2, 3], 3)
    # From step 3, steps 3 and 4 have a known successor: 8 + 0.5 * 16 = 16, and the value of step 5 counts 0.25.
    assert batch.returns.tolist() == [4.0, 4.0, 16.0]
    assert batch.bootstrap.tolist() == [0.0, 0.0, 0.25]


def test_returns_bootstrap_through_a_truncated_step():
    # Step 2 is cut by the time limit: step 1 takes one step, R = 2, and the value of step 2's state counts 0.5.
    batch = windows(buffer([1, 2, 4, 8, 16, 32], truncated=[2]), [0, 1], 3)
    assert batch.returns.tolist() == [2.0, 2.0]
    assert batch.bootstrap.tolist() == [0.25, 0.5]
    assert batch.following["condition"][:, 0].tolist() == [2.0, 2.0]


def test_the_last_step_of_a_truncated_episode_is_never_drawn():
    made = buffer([0.0] * 8, truncated=[3])
    rng = torch.Generator().manual_seed(0)
    drawn = made.sample(2000, steps=2, rng=rng).condition[:, 0]
    assert set(drawn.tolist()) == {0.0, 1.0, 2.0, 4.0, 5.0, 6.0}


def test_windows_stop_at_the_newest_step():
    # Steps 0..3 are known; from step 2 only one step has a known successor: R = 4, bootstrap 0.5 from step 3.
    batch = windows(buffer([1, 2, 4, 8]), [2], 3)
    assert (batch.returns.item(), batch.bootstrap.item(), batch.following["condition"].item()) == (4.0, 0.5, 3.0)


def test_chunks_end_with_what_was_planned():
    # From step 1, the episode terminates at step 2, whose plan was 2, 102, 202: the chunk is 1, 2, 102, 202.
    batch = windows(buffer([0.0] * 8, terminated=[2], plan=3), [1, 3], 4)
    assert batch.actions[:, :, 0].tolist() == [[1, 2, 102, 202], [3, 4, 5, 6]]


def test_without_a_plan_the_last_action_is_repeated():
    batch = windows(buffer([0.0] * 7, terminated=[2]), [1], 4)
    assert batch.actions[0, :, 0].tolist() == [1, 2, 2, 2]


def test_outcomes_are_known_when_an_episode_has_terminated():
    # Episode 0..2 earns 1 at its end: 0.25, 0.5, 1. Episode 3..4 is truncated and 5..6 still runs: unknown, so 0.
    made = buffer([0, 0, 1, 0, 0, 0, 0], terminated=[2], truncated=[4])
    assert windows(made, [0, 1, 2, 3, 5], 1).outcomes.tolist() == [0.25, 0.5, 1.0, 0.0, 0.0]


def test_returns_to_go_worked_by_hand():
    # 4; 2 + 0.5 * 4 = 4; 1 + 0.5 * 4 = 3.
    assert returns_to_go(torch.tensor([1.0, 2.0, 4.0]), 0.5).tolist() == [3.0, 4.0, 4.0]


def test_the_ring_forgets_the_oldest_steps():
    made = buffer(range(10), capacity=4)
    drawn = made.sample(500, steps=1, rng=torch.Generator().manual_seed(0))
    assert set(drawn.condition[:, 0].tolist()) == {6.0, 7.0, 8.0}
    assert torch.equal(drawn.returns, drawn.condition[:, 0])
    assert torch.equal(drawn.following["condition"], drawn.condition + 1)


def test_lanes_do_not_mix():
    made = ReplayBuffer(lanes=3, capacity=60, dims={"condition": 1, "action": 1}, discount=0.9)
    no = torch.zeros(3, dtype=torch.bool)
    for t in range(12):
        value = (torch.arange(3.0) * 1000 + t)[:, None]
        made.add({"condition": value, "action": value}, reward=torch.zeros(3), terminated=no, truncated=no)
    batch = made.sample(300, steps=3, rng=torch.Generator().manual_seed(1))
    assert torch.equal(batch.following["condition"] // 1000, batch.condition // 1000)
    assert set((batch.following["condition"] - batch.condition)[:, 0].tolist()) <= {1.0, 2.0, 3.0}


def test_state_and_restore_continue_the_same_draws():
    made = buffer([0, 1, 0, 0, 1, 0], terminated=[1], plan=2)
    twin = ReplayBuffer(lanes=1, capacity=100, dims={"condition": 1, "action": 1, "plan": 2}, discount=0.5)
    twin.restore(made.state())
    a, b = (m.sample(50, steps=2, rng=torch.Generator().manual_seed(3)) for m in (made, twin))
    assert torch.equal(a.actions, b.actions)
    assert torch.equal(a.outcomes, b.outcomes)


def test_a_data_set_filled_at_once_equals_one_added_step_by_step():
    added = buffer([0, 0, 1, 0, 1, 0], terminated=[2, 4])
    filled = ReplayBuffer(lanes=1, capacity=6, dims={"condition": 1, "action": 1}, discount=0.5)
    steps = torch.arange(6.0)[:, None, None]
    end = torch.tensor([[0], [0], [1], [0], [1], [0]], dtype=torch.bool)
    reward = torch.tensor([[0.0], [0], [1], [0], [1], [0]])
    filled.fill({"condition": steps, "action": steps}, reward=reward, terminated=end, ended=end)
    a, b = (windows(m, [0, 1, 2, 3], 2) for m in (added, filled))
    for name in ("returns", "bootstrap", "outcomes", "actions"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


def test_mixed_batches_hold_the_share_that_was_asked_for():
    online, demos = buffer([0.0] * 10), buffer([1.0] * 10)
    batch = sample_mixed(online, demos, 30, 100, steps=1, rng=torch.Generator().manual_seed(0))
    assert batch.returns.tolist() == [0.0] * 70 + [1.0] * 30


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fields": {"condition": torch.zeros(1, 1)}}, "action"),
        ({"fields": {"condition": torch.zeros(1, 2), "action": torch.zeros(1, 1)}}, "condition"),
        ({"reward": torch.tensor([float("nan")])}, "reward"),
        ({"fields": {"condition": torch.full((1, 1), float("inf")), "action": torch.zeros(1, 1)}}, "not finite"),
    ],
)
def test_wrong_steps_are_refused_by_name(change, named):
    made = buffer([0.0, 0.0])
    no = torch.zeros(1, dtype=torch.bool)
    fields = {"condition": torch.zeros(1, 1), "action": torch.zeros(1, 1)}
    arguments = {"fields": fields, "reward": torch.zeros(1), "terminated": no, "truncated": no} | change
    with pytest.raises(RefusedError, match=named):
        made.add(arguments.pop("fields"), **arguments)
    assert len(made) == 2


def test_a_saved_replay_of_another_size_is_refused():
    with pytest.raises(RefusedError, match="condition"):
        ReplayBuffer(lanes=1, capacity=9, dims={"condition": 2, "action": 1}, discount=0.5).restore(buffer([0.0] * 4).state())


def test_too_few_steps_are_refused():
    with pytest.raises(RefusedError, match="need 5"):
        buffer([0.0] * 4).sample(1, steps=3, rng=torch.Generator())


def test_a_million_state_transitions_fit_a_gigabyte():
    dims = {"condition": 46, "action": 7, "plan": 28}
    made = ReplayBuffer(lanes=10, capacity=1_000_000, dims=dims, discount=0.99)
    assert len(made.state()["reward"]) == 0
    tensors = made._rows().values()
    assert sum(t.numel() * t.element_size() for t in tensors) < 1e9
