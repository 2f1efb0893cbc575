import numpy as np
import pytest

from robolearn.core.errors import RefusedError
from robolearn.core.types import ENVIRONMENT_STATE, STATE, FeatureSpec, Spaces
from robolearn.deploy.novelty import ARRAYS_FILE, KEYS_FILE, NoveltyConfig, NoveltyScore, ObservationNovelty

SPACES = Spaces("r", {STATE: FeatureSpec((4,)), ENVIRONMENT_STATE: FeatureSpec((2,))}, FeatureSpec((1,)), (-1.0,), (1.0,), 20.0)


def episodes(rng, count, steps=40):
    """Smooth walks in six elements with very different units; the sixth is constant."""
    start = rng.normal(size=(count, 1, 5))
    walk = start + 0.05 * rng.normal(size=(count, steps, 5)).cumsum(axis=1)
    return np.concatenate([walk * [1, 1e3, 1e-3, 1, 1], np.full((count, steps, 1), 7.0)], axis=2)


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    return NoveltyScore.fit(episodes(rng, 60).reshape(-1, 6), list(episodes(rng, 99)), config=NoveltyConfig(alpha=0.1))


def test_nearest_neighbour_distance_worked_by_hand():
    # No whitening, k = 2: (0, 0) is 1, 3 and 4 away from the references; the mean of the two nearest is 2.
    references = np.array([[1.0, 0.0], [0.0, 3.0], [4.0, 0.0]])
    score = NoveltyScore(np.zeros(2), np.eye(2), references, threshold=4.0, neighbours=2)
    np.testing.assert_allclose(score(np.zeros((1, 2))), [0.5])


def test_the_threshold_is_the_conformal_quantile():
    # 19 episodes, alpha 0.1: rank ceil(20 * 0.9) = 18, the second largest; just one calibration episode lies beyond it.
    rng = np.random.default_rng(1)
    calibration = list(episodes(rng, 19))
    score = NoveltyScore.fit(episodes(rng, 30).reshape(-1, 6), calibration, config=NoveltyConfig(alpha=0.1))
    assert sum(score(episode).max() > 1 + 1e-9 for episode in calibration) == 1


def test_new_calm_episodes_exceed_it_as_rarely_as_promised(fitted):
    rng = np.random.default_rng(2)
    exceeded = np.mean([fitted(episode).max() > 1 for episode in episodes(rng, 400)])
    # alpha = 0.1; the threshold of 99 episodes itself scatters by sqrt(0.1 * 0.9 / 99) = 0.03.
    assert exceeded < 0.1 + 3 * 0.03


def test_strange_observations_are_strange_whatever_their_unit(fitted):
    calm = next(e[:1] for e in episodes(np.random.default_rng(3), 20) if fitted(e).max() < 1)
    for element, unit in enumerate([1, 1e3, 1e-3, 1, 1]):
        assert fitted(calm + 12 * unit * np.eye(6)[element])[0] > 2
    assert fitted(np.where(np.arange(6) == 2, np.nan, calm))[0] == np.inf
    assert fitted(np.where(np.arange(6) == 5, 0.0, calm))[0] > 2  # the element that never changed


def test_it_is_restored_as_it_was(fitted):
    seen = episodes(np.random.default_rng(4), 1)[0]
    np.testing.assert_array_equal(NoveltyScore.restore(fitted.state())(seen), fitted(seen))
    with pytest.raises(RefusedError, match="threshold"):
        NoveltyScore.restore({k: v for k, v in fitted.state().items() if k != "threshold"})


@pytest.mark.parametrize(
    ("reference", "calibration", "words"),
    [
        (np.zeros((1, 6)), [np.zeros((5, 6))] * 30, "at least 5"),
        (np.random.default_rng(0).normal(size=(50, 6)), [np.zeros((5, 6))] * 5, "19 calibration episodes"),
        (np.full((50, 6), np.nan), [np.zeros((5, 6))] * 30, "finite"),
        (np.random.default_rng(0).normal(size=(50, 6)), [np.zeros((5, 7))] * 30, "(b, 6)"),
    ],
)
def test_too_little_or_bad_data_is_refused(reference, calibration, words):
    with pytest.raises(RefusedError, match=words.replace("(", r"\(").replace(")", r"\)")):
        NoveltyScore.fit(reference, calibration)


def observed(count, seed=5):
    return [{STATE: e[:, :4], ENVIRONMENT_STATE: e[:, 4:]} for e in episodes(np.random.default_rng(seed), count)]


def test_a_stored_score_is_the_fitted_one(tmp_path):
    fitted = ObservationNovelty.fit(observed(80), SPACES)
    fitted.save(tmp_path / "novelty")
    assert sorted(p.name for p in (tmp_path / "novelty").iterdir()) == [KEYS_FILE, ARRAYS_FILE]
    read = ObservationNovelty.load(tmp_path / "novelty")
    seen = {key: rows[7] for key, rows in observed(80)[1].items()}  # one of the reference
    assert read(seen) == fitted(seen)
    assert read(seen) < 1
    assert read({**seen, STATE: seen[STATE] + 20}) > 2


def test_every_fourth_episode_calibrates():
    # 76 episodes: 19 calibrate, the fewest for alpha 0.05; rank ceil(20 * 0.95) = 19: the worst of them is the threshold.
    seen = observed(76)
    fitted = ObservationNovelty.fit(seen, SPACES)
    worst = [max(fitted({key: rows[t] for key, rows in episode.items()}) for t in range(40)) for episode in seen[::4]]
    assert max(worst) == pytest.approx(1)
    with pytest.raises(RefusedError, match="19 calibration episodes, got 18"):
        ObservationNovelty.fit(seen[:72], SPACES)


def test_a_score_of_other_observations_or_with_damage_is_refused(tmp_path):
    fitted = ObservationNovelty.fit(observed(80), SPACES)
    other = Spaces("r", {STATE: FeatureSpec((6,))}, FeatureSpec((1,)), (-1.0,), (1.0,), 20.0)
    with pytest.raises(RefusedError, match="bundle x: novelty is scored on"):
        fitted.require_fits(other, what="bundle x")
    fitted.save(tmp_path / "novelty")
    (tmp_path / "novelty" / KEYS_FILE).write_text('{"sizes": {"observation.state": 5}}')
    with pytest.raises(RefusedError, match="make 5 elements, the arrays hold 6"):
        ObservationNovelty.load(tmp_path / "novelty")
    (tmp_path / "novelty" / ARRAYS_FILE).write_bytes(b"no tensors")
    with pytest.raises(RefusedError, match="missing or damaged"):
        ObservationNovelty.load(tmp_path / "novelty")
