import json

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE
from robolearn.data.normalizer import SMALLEST_RANGE, Normalizer, Statistics

# Four steps of three elements: one that moves from 2 to 6, one that is constant, one that trembles by less than the threshold.
ROWS = np.array([[2, 7, 5], [3, 7, 5 + 2e-5], [5, 7, 5], [6, 7, 5]], dtype=np.float32)


def fitted(mode):
    return Normalizer({STATE: 3}, mode).fit({STATE: Statistics.of(ROWS)})


def test_min_max_worked_by_hand():
    # centre (6 + 2) / 2 = 4, scale 2 / (6 - 2) = 0.5: 2 -> -1, 3 -> -0.5, 5 -> 0.5, 6 -> 1.
    out = fitted("min_max").apply(STATE, torch.from_numpy(ROWS))
    assert out[:, 0].tolist() == [-1, -0.5, 0.5, 1]
    assert out[:, 1].tolist() == [0, 0, 0, 0]
    # centre 5 + 1e-5 and scale 1: the tremor stays as small as it was.
    np.testing.assert_allclose(out[:, 2].numpy(), np.array([-1, 1, -1, -1]) * 1e-5, atol=5e-7)


def test_mean_std_worked_by_hand():
    # mean 4; variance (4 + 1 + 1 + 4) / 4 = 2.5; (2 - 4) / sqrt(2.5) = -1.264911.
    out = fitted("mean_std").apply(STATE, torch.from_numpy(ROWS))
    np.testing.assert_allclose(out[:, 0].numpy(), np.array([-2, -1, 1, 2]) / np.sqrt(2.5), rtol=1e-6)
    assert out[:, 1].tolist() == [0, 0, 0, 0]
    assert out[:, 2].abs().max() < SMALLEST_RANGE


def test_identity_needs_no_fit_and_changes_nothing():
    x = torch.from_numpy(ROWS)
    assert torch.equal(Normalizer({STATE: 3}, "identity").apply(STATE, x), x)
    assert torch.equal(fitted("identity").apply(STATE, x), x)


@pytest.mark.parametrize("mode", ["min_max", "mean_std", "identity"])
def test_invert_undoes_apply_for_any_value_and_shape(mode):
    rng = np.random.default_rng(0)
    rows = (rng.standard_normal((200, 5)) * [1e-6, 1e-3, 1, 50, 0] + [3, -2, 0, 100, 7]).astype(np.float32)
    normalizer = Normalizer({STATE: 5}, mode).fit({STATE: Statistics.of(rows)})
    for shape in [(5,), (4, 5), (4, 2, 5)]:
        x = torch.from_numpy((rng.standard_normal(shape) * 3 + rows.mean(0)).astype(np.float32))
        back = normalizer.invert(STATE, normalizer.apply(STATE, x))
        torch.testing.assert_close(back, x, rtol=2e-6, atol=2e-6)
    if mode != "identity":
        assert normalizer.apply(STATE, torch.from_numpy(rows)).abs().max() < 5, "no element is blown up"


def test_the_training_data_fill_the_range_exactly():
    rows = np.random.default_rng(1).uniform(-3, 9, (500, 4)).astype(np.float32)
    out = Normalizer({ACTION: 4}).fit({ACTION: Statistics.of(rows)}).apply(ACTION, torch.from_numpy(rows))
    torch.testing.assert_close(out.amin(0), -torch.ones(4), rtol=0, atol=1e-6)
    torch.testing.assert_close(out.amax(0), torch.ones(4), rtol=0, atol=1e-6)


def test_weights_carry_the_numbers_through_safetensors():
    source = Normalizer({STATE: 3, ACTION: 3}, {STATE: "mean_std", ACTION: "min_max"})
    source.fit({STATE: Statistics.of(ROWS), ACTION: Statistics.of(ROWS * 2)})
    target = Normalizer({STATE: 3, ACTION: 3}, source.modes)
    with pytest.raises(RefusedError, match=r"has not been fitted or loaded for 'observation\.state'"):
        target.apply(STATE, torch.zeros(3))
    target.load_state_dict(load(save(source.state_dict())))
    x = torch.from_numpy(ROWS)
    for key in (STATE, ACTION):
        assert torch.equal(target.apply(key, x), source.apply(key, x))


def test_statistics_round_trip_through_json():
    statistics = Statistics.of(ROWS)
    assert Statistics.from_json(json.loads(json.dumps(statistics.to_json()))) == statistics
    with pytest.raises(RefusedError, match="Malformed statistics"):
        Statistics.from_json({"min": [0]})


def test_a_missing_key_is_refused_never_passed_through():
    normalizer = fitted("min_max")
    for method in (normalizer.apply, normalizer.invert):
        with pytest.raises(RefusedError, match=r"no numbers for 'observation\.stat'.*Did you mean 'observation\.state'"):
            method("observation.stat", torch.zeros(3))
        with pytest.raises(RefusedError, match=r"has 4 elements in shape \(2, 4\), the normaliser knows 3"):
            method(STATE, torch.zeros(2, 4))


def test_fitting_refuses_what_does_not_match():
    with pytest.raises(RefusedError, match="No statistics for 'action'"):
        Normalizer({ACTION: 3}).fit({STATE: Statistics.of(ROWS)})
    with pytest.raises(RefusedError, match=r"Statistics of 'observation\.state' have 3 elements, the normaliser 4"):
        Normalizer({STATE: 4}).fit({STATE: Statistics.of(ROWS)})
    with pytest.raises(RefusedError, match=r"mode 'minmax' of 'action' is unknown.*Did you mean 'min_max'"):
        Normalizer({ACTION: 3}, "minmax")
    with pytest.raises(RefusedError, match=r"modes name .*, the streams are"):
        Normalizer({ACTION: 3}, {STATE: "min_max"})


def test_statistics_of_nothing_or_nan_are_refused():
    for bad in (np.zeros((0, 3)), np.zeros(3)):
        with pytest.raises(RefusedError, match=r"shape \(steps, d\)"):
            Statistics.of(bad)
    bad = ROWS.copy()
    bad[2, 1] = np.inf
    with pytest.raises(RefusedError, match="step 2, element 1 is inf"):
        Statistics.of(bad)


def test_the_numbers_move_with_the_module():
    assert fitted("min_max").to(torch.float64).apply(STATE, torch.zeros(3, dtype=torch.float64)).dtype == torch.float64
