"""Measures of data, worked by hand; weights; edits of stores."""

import tracemalloc

import numpy as np
import pytest
import torch
from episode_samples import assert_same, new_store, spaces

from robolearn.commands import data_quality
from robolearn.commands.data_edit import numbers
from robolearn.core.errors import RefusedError
from robolearn.data import edit, quality
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.page import outliers, write_page
from robolearn.data.store import EpisodeStore
from robolearn.data.weights import EpisodeWeights, advantages, curation_weights, trajectory_weights
from robolearn.train.window_order import WindowOrder


def quiet(phase, steps):
    pass


def test_action_divergence_compares_with_other_episodes_alone():
    # Three episodes of one step at nearly the same state; actions 0, 0 and 1. With two neighbours, all of other episodes:
    # episode 0 expects (0 + 1) / 2 and does 0: 0.25; episode 1 the same; episode 2 expects 0 and does 1: 1.
    states, actions = np.array([[0.0], [0.01], [0.02]]), np.array([[0.0], [0.0], [1.0]])
    found = quality.action_divergence(states, actions, np.array([0, 1, 2]), neighbours=2)
    np.testing.assert_allclose(found, [0.25, 0.25, 1.0])
    # Of one episode alone nothing can be said.
    np.testing.assert_array_equal(quality.action_divergence(states, actions, np.zeros(3, int)), 0)


def test_memory_stays_bounded_where_all_neighbours_are_of_the_own_episode(monkeypatch):
    # Every step of two episodes far apart looked at every other one, all at once: 60 GB at 60,000 steps.
    rng = np.random.default_rng(0)
    states = np.cumsum(rng.normal(size=(2000, 2)), axis=0) + 1e4 * (np.arange(2000) >= 1000)[:, None]
    actions, episode = rng.normal(size=(2000, 1)), np.repeat([0, 1], 1000)
    whole = quality.action_divergence(states, actions, episode)
    monkeypatch.setattr(quality, "MAX_NEIGHBOURS", 20_000)
    tracemalloc.start()
    np.testing.assert_array_equal(quality.action_divergence(states, actions, episode), whole)
    quality.action_divergence(states, actions, np.zeros(2000, int))
    assert tracemalloc.get_traced_memory()[1] < 5e6
    tracemalloc.stop()


def test_transition_diversity_is_the_variance_of_the_moves():
    # The same state and action four times, moves 0, 0, 2, 2: mean 1, variance 1.
    states, actions = np.zeros((4, 1)), np.zeros((4, 1))
    following = np.array([[0.0], [0.0], [2.0], [2.0]])
    np.testing.assert_allclose(quality.transition_diversity(states, actions, following, neighbours=4), 1.0)


def test_jerk_and_idle_time():
    # 0 0 0 1: first differences 0 0 1, second 0 1, third 1. A straight line has none.
    assert quality.jerk(np.array([[0.0], [0.0], [0.0], [1.0]])) == 1.0
    assert quality.jerk(np.arange(9.0)[:, None]) == 0.0
    # Steps between 0 0 1 1 1: still, moving, still, still: 3 of 4.
    assert quality.idle_fraction(np.array([[0.0], [0.0], [1.0], [1.0], [1.0]])) == 0.75


def test_trajectory_quality_and_coverage():
    # Mean return 3 between worst 1 and best 5: (3 - 1) / (5 - 1); against an expert's 9 and a random policy's 0: 3 / 9.
    returns = np.array([1.0, 3.0, 5.0])
    assert quality.trajectory_quality(returns) == 0.5
    assert quality.trajectory_quality(np.ones(5)) is None, "a hundred successes of a hundred had a quality of 0"
    assert quality.trajectory_quality(returns, worst=0.0, best=9.0) == pytest.approx(1 / 3)
    # Two bins: states -3 and 3 fall apart, -3 and -2 together; actions -1 and 1 apart: (lo, lo), (lo, hi), (hi, lo).
    states, actions = np.array([[-3.0], [-2.0], [-3.0], [3.0]]), np.array([[-1.0], [-1.0], [1.0], [-1.0]])
    assert quality.state_action_pairs(states, actions, bins=2) == 3


def test_return_and_advantage_weights():
    # Returns 0 and 1 at temperature 1: softmax(0, 1) = 1 / (1 + e), e / (1 + e). Scaling makes units irrelevant.
    expected = np.array([1, np.e]) / (1 + np.e)
    np.testing.assert_allclose(trajectory_weights(np.array([0.0, 1.0]), temperature=1.0), expected)
    np.testing.assert_allclose(trajectory_weights(np.array([10.0, 30.0]), temperature=1.0), expected)
    np.testing.assert_allclose(trajectory_weights(np.ones(4)), 0.25)
    # Returns that the first state explains entirely (G = 2 s + 1) are no advantage; one above the line is.
    states = np.array([[-1.0], [0.0], [1.0]])
    np.testing.assert_allclose(advantages(2 * states[:, 0] + 1, states, ridge=0.0), 0, atol=1e-12)
    assert advantages(np.array([-1.0, 4.0, 3.0]), states).argmax() == 1
    with pytest.raises(RefusedError, match="temperature"):
        trajectory_weights(np.ones(2), temperature=0.0)


def test_duplicates_are_found_and_curation_keeps_the_best(tmp_path):
    with new_store(tmp_path / "s", (6, 8, 10)) as store:
        store.append(store.read(1))
        found = quality.measure(store)
    assert found.duplicates == ((1, 3),)
    assert found.episodes[3].nearest_episode == 1
    assert found.episodes[3].nearest_distance == 0
    weights = curation_weights(found, "length", keep=0.5)
    np.testing.assert_array_equal(weights, [0.5, 0.5, 0, 0])
    with pytest.raises(RefusedError, match="Did you mean 'jerk'"):
        curation_weights(found, "jrk", keep=0.5)
    assert len(quality.audit_sample(found, 2)) == 2


def test_weights_decide_which_windows_are_drawn(tmp_path):
    store = new_store(tmp_path / "s", (6, 8, 10))
    EpisodeWeights(store.checksum(), "by hand", np.array([3.0, 0.0, 1.0])).write(tmp_path / "w.json")
    weights = EpisodeWeights.read(tmp_path / "w.json", store)
    windows = WindowDataset(store, WindowConfig(), episodes=[0, 1, 2], weights=weights)
    assert windows.window_weights.tolist() == [3.0] * 6 + [0.0] * 8 + [1.0] * 10
    order = WindowOrder(24, seed=0, weights=windows.window_weights)
    rows = order.rows(0, 24_000)
    counts = torch.bincount(rows, minlength=24)
    assert counts[6:14].sum() == 0
    # 18 of 28 draws fall into episode 0: 24000 * 18 / 28 = 15429, standard deviation 74.
    assert abs(int(counts[:6].sum()) - 15429) < 5 * 74
    assert torch.equal(WindowOrder(24, seed=0, weights=windows.window_weights).rows(30, 9), rows[30:39]), "resumes"
    with pytest.raises(RefusedError, match="nothing is overwritten"):
        weights.write(tmp_path / "w.json")
    with pytest.raises(RefusedError, match="made for other data"):
        EpisodeWeights.read(tmp_path / "w.json", new_store(tmp_path / "t", (6, 8, 10, 4)))
    with pytest.raises(RefusedError, match="not all zero"):
        EpisodeWeights("", "", np.zeros(3))


def test_merge_split_filter(tmp_path):
    a, b = new_store(tmp_path / "a", (3, 4)), new_store(tmp_path / "b", (5, 6, 7))
    edit.merge([a.path, b.path], tmp_path / "ab", quiet)
    both = EpisodeStore.open(tmp_path / "ab")
    assert both.lengths.tolist() == [3, 4, 5, 6, 7]
    assert_same(both.read(3), b.read(1))
    edit.split(both.path, [tmp_path / "x", tmp_path / "y"], [0.6, 0.4], seed=0, on_step=quiet)
    parts = [EpisodeStore.open(tmp_path / n).lengths.tolist() for n in "xy"]
    assert [len(p) for p in parts] == [3, 2]
    assert sorted(parts[0] + parts[1]) == [3, 4, 5, 6, 7]
    conditions = [edit.Condition.parse("length>=4"), edit.Condition.parse("length<7")]
    edit.select(both.path, tmp_path / "f", conditions, episodes=[0, 1, 3], on_step=quiet)
    assert EpisodeStore.open(tmp_path / "f").lengths.tolist() == [4, 6]
    with pytest.raises(RefusedError, match="Did you mean 'operator'"):
        edit.select(both.path, tmp_path / "g", [edit.Condition.parse("operater=ada")], episodes=None, on_step=quiet)
    with pytest.raises(RefusedError, match="named twice"):
        edit.merge([a.path, a.path], tmp_path / "aa", quiet)
    with EpisodeStore.create(tmp_path / "c", spaces(robot="ur5e"), task="lift", fidelity="exact") as other:
        pass
    with pytest.raises(RefusedError, match="robot"):
        edit.merge([a.path, other.path], tmp_path / "ac", quiet)
    assert not (tmp_path / "ac").exists()


def test_trim_and_relabel(tmp_path):
    store = new_store(tmp_path / "a", (5, 8))
    edit.trim(store.path, tmp_path / "t", start=1, end=2, on_step=quiet)
    cut = EpisodeStore.open(tmp_path / "t")
    assert cut.lengths.tolist() == [2, 5]
    np.testing.assert_array_equal(cut.read(1).data["action"], store.read(1).data["action"][1:6])
    with pytest.raises(RefusedError, match=r"Episode 0 .* would be left without steps"):
        edit.trim(store.path, tmp_path / "u", start=5, on_step=quiet)
    # The action changes between steps 1 and 2 and between 3 and 4: steps 1 to 4 are kept.
    assert edit._moving(np.array([[0.0], [0.0], [1.0], [1.0], [2.0], [2.0], [2.0]]), 0.0) == (1, 5)
    edit.relabel(store.path, tmp_path / "r", ["success=false", "operator=ada"], episodes=[1], task="stack", on_step=quiet)
    changed = EpisodeStore.open(tmp_path / "r")
    assert changed.header.task == "stack"
    assert changed.successes.tolist() == [True, False]
    assert changed.metadata(1)["operator"] == "ada"
    assert changed.metadata(1)["outcome"] == "failure"
    assert changed.metadata(0)["operator"] == "test"
    with pytest.raises(RefusedError, match="length cannot be relabelled"):
        edit.relabel(store.path, tmp_path / "q", ["length=3"], episodes=None, task=None, on_step=quiet)
    assert numbers("0,3,7-9") == [0, 3, 7, 8, 9]
    with pytest.raises(RefusedError, match="'x'"):
        numbers("1,x")


def test_a_trimmed_episode_keeps_its_seed_only_where_it_begins_at_that_state(tmp_path):
    # The seed was kept though the first steps were cut: a replay would have begun somewhere else.
    store = new_store(tmp_path / "a", (5, 8))
    edit.trim(store.path, tmp_path / "t", start=1, on_step=quiet)
    edit.trim(store.path, tmp_path / "u", end=1, on_step=quiet)
    seeds = [[EpisodeStore.open(tmp_path / name).metadata(i)["seed"] for i in range(2)] for name in "tu"]
    assert seeds == [[None, None], [0, 1]]


@pytest.mark.parametrize(
    "labels", [["outcome=failure"], ["success=true", "outcome=failure"], ["success=false", "outcome=success"]]
)
def test_an_outcome_that_contradicts_the_success_is_refused(tmp_path, labels):
    # outcome=failure was written beside success=True.
    store = new_store(tmp_path / "a", (5,))
    with pytest.raises(RefusedError, match=r"Episode 0 of .*: outcome=.* contradicts success="):
        edit.relabel(store.path, tmp_path / "r", labels, episodes=None, task=None, on_step=quiet)
    assert not (tmp_path / "r").exists()
    edit.relabel(store.path, tmp_path / "r", ["success=false", "outcome=failure"], episodes=None, task=None, on_step=quiet)


@pytest.mark.parametrize(
    ("text", "words"), [("3-1", "ends before it begins"), ("\u00b2", "neither a position"), ("1-\u00b2", "neither")]
)
def test_ranges_that_name_no_episode_are_refused(text, words):
    # 3-1 chose nothing, and an unchanged copy was reported as a success; a superscript two was a traceback.
    with pytest.raises(RefusedError, match=words):
        numbers(text)


def test_a_folder_that_is_not_there_is_refused_before_measuring(tmp_path, monkeypatch):
    # A traceback at the very end took all measures with it.
    with new_store(tmp_path / "a", (5,)) as store:
        pass
    monkeypatch.setattr(data_quality, "measure", None)
    files = {"weights": None, "json": None, "by": "return", "keep": 1.0, "temperature": 1.0, "audit": 0, "reference": None}
    for name in ("weights", "json"):
        with pytest.raises(RefusedError, match="there is no folder"):
            data_quality.quality(store.path, **files | {name: tmp_path / "nodir" / "x.json"})


def test_the_page_holds_pictures_and_escapes_names(tmp_path):
    assert outliers(np.array([1.0, 2.0, 3.0, 2.0, 1.0, 100.0])).tolist() == [False] * 5 + [True]
    with new_store(tmp_path / "s", (6, 8), camera=True) as store:
        write_page(store, quality.measure(store), tmp_path / "page.html")
        text = (tmp_path / "page.html").read_text()
        assert text.count("data:image/jpeg") == 6
        assert text.count("data:image/png") == 4
        assert "<script" not in text
        with pytest.raises(RefusedError, match="nothing is overwritten"):
            write_page(store, quality.measure(store), tmp_path / "page.html")
