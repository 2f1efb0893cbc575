"""What people did when they took over becomes demonstrations that merge with others."""

import numpy as np
import pytest
from episode_samples import episode, new_store
from teleop_samples import live_store, sample

from robolearn.core.errors import RefusedError
from robolearn.core.types import STATE
from robolearn.data.corrections import corrections, stretches
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.edit import merge
from robolearn.data.header import INTERVENTION
from robolearn.data.store import EpisodeStore
from robolearn.teleop.recorder import Recorder


def quiet(phase, steps):
    pass


def test_stretches_by_hand():
    human = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1])
    assert stretches(human, 1) == [(0, 2), (3, 4), (6, 9)]
    assert stretches(human, 2) == [(0, 2), (6, 9)]
    assert stretches(np.zeros(4), 1) == []


def test_corrections_are_episodes_of_their_own_and_train_together_with_demonstrations(tmp_path):
    with live_store(tmp_path / "watched") as store:
        recorder = Recorder(store)
        for success in (True, False):
            recorder.start(seed=3)
            for step in range(10):
                recorder.add(sample(step, human=4 <= step < 8))
            recorder.save(success=success)
        recorder.start(seed=4)
        recorder.add(sample(0, human=False))
        recorder.save(success=True)
    assert corrections(tmp_path / "watched", tmp_path / "c", on_step=quiet).episodes == 2
    with EpisodeStore.open(tmp_path / "c") as store:
        assert store.lengths.tolist() == [4, 4]
        assert store.successes.tolist() == [True, False]
        np.testing.assert_array_equal(store.read(0).data[STATE][:, 0], [4, 5, 6, 7])
        assert (store.read(1).data[INTERVENTION] == 1).all()
        facts = store.metadata(1)
        assert (facts["corrects_episode"], facts["from_step"], facts["seed"]) == (1, 4, None)
    # Demonstrations of a script keep fewer streams.
    with EpisodeStore.create(
        tmp_path / "demos", new_store(tmp_path / "x").header.spaces, task="lift", fidelity="native"
    ) as store:
        store.append(episode(6))
    with pytest.raises(RefusedError, match=r"--common keeps the streams that all have"):
        merge([tmp_path / "demos", tmp_path / "c"], tmp_path / "both", quiet)
    made = merge([tmp_path / "demos", tmp_path / "c"], tmp_path / "both", quiet, common=True)
    assert made.notes == ("streams that not all stores keep were left out: intervention, stamps.monotonic, stamps.wall",)
    with EpisodeStore.open(tmp_path / "both") as store:
        assert store.lengths.tolist() == [6, 4, 4]
        windows = WindowDataset(store, WindowConfig(1, 2), episodes=[0, 1])
        assert len(windows) == 10


def test_a_store_that_does_not_say_who_drove_and_one_where_nobody_did_are_refused(tmp_path):
    new_store(tmp_path / "demos", (5,)).close()
    with pytest.raises(RefusedError, match="keeps no 'intervention' stream"):
        corrections(tmp_path / "demos", tmp_path / "c", on_step=quiet)
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store)
        recorder.start()
        recorder.add(sample(0, human=False))
        recorder.save(success=True)
    with pytest.raises(RefusedError, match="Nobody took over for 2 steps or more in the 1 episodes"):
        corrections(tmp_path / "s", tmp_path / "c", on_step=quiet)
    assert not (tmp_path / "c").exists()
