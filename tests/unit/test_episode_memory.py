"""Episodes kept in memory: their windows are those of the supervised data set."""

import numpy as np
import torch
from episode_samples import CAMERA, new_store

from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.episode_memory import EpisodeMemory


def memory():
    """Two episodes of 3 and 2 steps; state and action of step t are t and 10 t, t counted through both."""
    made = EpisodeMemory(2, 3)
    for steps in (range(3), range(3, 5)):
        t = np.array(steps, np.float32)[:, None]
        made.add({STATE: t, ACTION: 10 * t})
    return made


def test_windows_worked_by_hand():
    batch = memory().batch(torch.tensor([0, 2, 3, 4]))
    # Observations before the episode repeat its first step, actions behind it its last; both say so.
    assert batch[STATE][..., 0].tolist() == [[0, 0], [1, 2], [3, 3], [3, 4]]
    assert batch[STATE + "_is_pad"].tolist() == [[True, False], [False, False], [True, False], [False, False]]
    assert batch[ACTION][..., 0].tolist() == [[0, 10, 20], [20, 20, 20], [30, 40, 40], [40, 40, 40]]
    pads = [[False, False, False], [False, True, True], [False, False, True], [False, True, True]]
    assert batch[ACTION + "_is_pad"].tolist() == pads


def test_it_comes_back_from_its_state_and_grows_on():
    one = memory()
    other = EpisodeMemory(2, 3)
    other.restore({k: v.clone() for k, v in one.state().items()})
    for each in (one, other):
        each.add({STATE: np.full((4, 1), 7, np.float32), ACTION: np.zeros((4, 1), np.float32)})
    assert len(one) == len(other) == 9
    assert one.episodes == other.episodes == 3
    everything = torch.arange(9)
    for key, value in one.batch(everything).items():
        assert torch.equal(value, other.batch(everything)[key])


def test_its_windows_equal_those_of_a_store(tmp_path):
    keys = [STATE, ENVIRONMENT_STATE, CAMERA]
    with new_store(tmp_path / "s", (5, 1, 9), camera=True) as store:
        windows = WindowDataset(store, WindowConfig(obs_horizon=3, pred_horizon=4), episodes=range(3), keys=keys)
        made = EpisodeMemory(3, 4)
        for index in range(3):
            made.add(store.read(index, [*keys, ACTION]).data)
        everything = torch.arange(15)
        ours, theirs = made.batch(everything), windows.batch(everything)
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        assert torch.equal(ours[key], value), key
