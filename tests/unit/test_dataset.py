import dataclasses

import numpy as np
import pytest
import torch
from episode_samples import CAMERA, episode, new_store, spaces
from lerobot_samples import open_lerobot, write_lerobot

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, FeatureSpec
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.header import ACTION_SENT
from robolearn.data.split import select_episodes, split
from robolearn.data.store import EpisodeStore


def test_windows_and_padding_worked_by_hand(tmp_path):
    """Two episodes of 3 and 2 steps; the value of a stream says episode and step: 10 * episode + step."""
    with new_store(tmp_path / "s") as store:
        for number, length in enumerate([3, 2]):
            plain = episode(length)
            value = 10.0 * number + np.arange(length, dtype=np.float32)
            plain.data[STATE][:] = value[:, None]
            plain.data[ACTION][:] = value[:, None] + 100
            store.append(plain)
        windows = WindowDataset(store, WindowConfig(obs_horizon=3, pred_horizon=4), episodes=[0, 1], keys=[STATE])
        assert len(windows) == 5
        batch = windows.batch(torch.tensor([0, 2, 3, 4]))
    assert set(batch) == {STATE, STATE + "_is_pad", ACTION, ACTION + "_is_pad"}
    # The newest observation is last; steps before the episode's first repeat the first.
    assert batch[STATE][:, :, 0].tolist() == [[0, 0, 0], [0, 1, 2], [10, 10, 10], [10, 10, 11]]
    y, n = True, False
    assert batch[STATE + "_is_pad"].tolist() == [[y, y, n], [n, n, n], [y, y, n], [y, n, n]]
    # Row 0 is the action of the newest observation's step; steps after the episode's last repeat the last.
    assert batch[ACTION][:, :, 1].tolist() == [
        [100, 101, 102, 102],
        [102, 102, 102, 102],
        [110, 111, 111, 111],
        [111, 111, 111, 111],
    ]
    assert batch[ACTION + "_is_pad"].tolist() == [[n, n, n, y], [n, y, y, y], [n, n, y, y], [n, y, y, y]]
    assert batch[STATE].shape == (4, 3, 3)
    assert batch[ACTION].shape == (4, 4, 2)


@pytest.mark.slow  # importing lerobot alone takes 10 s and more
@pytest.mark.parametrize(("obs_horizon", "pred_horizon"), [(2, 16), (1, 1), (5, 8)])
def test_windows_equal_lerobots_bit_for_bit(tmp_path, obs_horizon, pred_horizon):
    """Every window of episodes shorter and longer than either horizon, against lerobot's own loader."""
    store = new_store(tmp_path / "s", (17, 1, 2, 40, 6))
    root = tmp_path / "lerobot"
    write_lerobot(store, root)
    theirs = open_lerobot(root, store, obs_horizon=obs_horizon, pred_horizon=pred_horizon)
    ours = WindowDataset(store, WindowConfig(obs_horizon, pred_horizon), episodes=range(5))
    assert len(ours) == len(theirs) == 66
    batch = ours.batch(torch.arange(66))
    for index in range(66):
        expected = theirs[index]
        for key in (STATE, ENVIRONMENT_STATE, ACTION):
            for name in (key, key + "_is_pad"):
                assert batch[name].dtype == expected[name].dtype
                assert torch.equal(batch[name][index], expected[name]), (index, name)


def test_any_order_and_repetition_gives_the_same_windows(tmp_path):
    store = new_store(tmp_path / "s", (17, 30, 4))
    windows = WindowDataset(store, WindowConfig(), episodes=[2, 0])
    everything = windows.batch(torch.arange(len(windows)))
    indices = torch.from_numpy(np.random.default_rng(0).integers(0, len(windows), 100))
    for key, rows in windows.batch(indices).items():
        assert torch.equal(rows, everything[key][indices])
    np.testing.assert_array_equal(everything[STATE][:4, -1], store.read(2).data[STATE], err_msg="episodes in the order given")
    np.testing.assert_array_equal(everything[STATE][4:, -1], store.read(0).data[STATE])


def test_what_was_sent_can_be_learnt_instead_of_what_was_intended(tmp_path):
    store = new_store(tmp_path / "s", (9,))
    whole = store.read(0)
    for key in (ACTION, ACTION_SENT):
        windows = WindowDataset(store, WindowConfig(pred_horizon=1, action_key=key), episodes=[0])
        np.testing.assert_array_equal(windows.batch(torch.arange(9))[ACTION][:, 0], whole.data[key])
        low = tuple(whole.data[key].min(0).tolist())
        assert windows.statistics()[ACTION].minimum == low, "the normaliser sees the same action"
    bare = EpisodeStore.create(tmp_path / "b", spaces(), task="lift", fidelity="exact", extra={})
    bare.append(dataclasses.replace(whole, data={k: whole.data[k] for k in (STATE, ENVIRONMENT_STATE, ACTION)}))
    with pytest.raises(RefusedError, match=r"keeps no 'action\.sent' stream"):
        WindowDataset(bare, WindowConfig(action_key=ACTION_SENT), episodes=[0])


def test_images_are_the_same_from_memory_and_from_the_store(tmp_path):
    store = new_store(tmp_path / "s", (12, 20), camera=True)
    raw = [store.read(i).data[CAMERA] for i in range(2)]
    indices = torch.tensor([0, 1, 11, 12, 13, 31])
    batches = [
        WindowDataset(store, WindowConfig(obs_horizon=3, image_cache_gib=gib), episodes=[0, 1]).batch(indices) for gib in (1, 0)
    ]
    for batch in batches:
        images = batch[CAMERA].numpy()
        assert images.shape == (6, 3, 96, 96, 3)
        assert images.dtype == np.uint8
        expected = [(0, [0, 0, 0]), (0, [0, 0, 1]), (0, [9, 10, 11]), (1, [0, 0, 0]), (1, [0, 0, 1]), (1, [17, 18, 19])]
        for row, (number, steps) in enumerate(expected):
            np.testing.assert_array_equal(images[row], raw[number][steps])
        assert torch.equal(batch[CAMERA + "_is_pad"], batch[STATE + "_is_pad"])


def store_of(path, state, action):
    """One episode of 6 steps whose state and action have these dtypes."""
    whole = episode(6)
    streams = {STATE: whole.data[STATE].astype(state), ACTION: whole.data[ACTION].astype(action)}
    kinds = dataclasses.replace(
        spaces(), observation={STATE: FeatureSpec((3,), state)}, action=FeatureSpec((2,), action, ("dx", "gripper"))
    )
    store = EpisodeStore.create(path, kinds, task="lift", fidelity="exact", extra={})
    store.append(dataclasses.replace(whole, data=streams))
    return store


@pytest.mark.parametrize("kind", ["float64", "float16"])
def test_floats_of_any_width_are_served_as_float32(tmp_path, kind):
    # Imported stores keep float64: its windows met float32 weights, and training ended with a traceback.
    store = store_of(tmp_path / "s", kind, kind)
    windows = WindowDataset(store, WindowConfig(pred_horizon=1), episodes=[0])
    batch = windows.batch(torch.arange(6))
    for rows, key in ((batch[STATE][:, -1], STATE), (batch[ACTION][:, 0], ACTION)):
        assert rows.dtype == torch.float32
        np.testing.assert_array_equal(rows, store.read(0).data[key].astype(np.float32))


@pytest.mark.parametrize(("state", "action", "named"), [("bool", "float32", STATE), ("float32", "int64", ACTION)])
def test_streams_that_are_no_floats_are_refused_by_name(tmp_path, state, action, named):
    # Training on truth values or whole numbers ended with a traceback, deep inside of torch.
    store = store_of(tmp_path / "s", state, action)
    with pytest.raises(RefusedError, match=f"{named} of .* is .*must be floating point"):
        WindowDataset(store, WindowConfig(), episodes=[0])


def test_statistics_count_every_step_of_the_chosen_episodes_once(tmp_path):
    store = new_store(tmp_path / "s", (4, 9, 30))
    found = WindowDataset(store, WindowConfig(), episodes=[0, 2]).statistics()
    rows = np.concatenate([store.read(i).data[STATE] for i in (0, 2)]).astype(np.float64)
    assert set(found) == {STATE, ENVIRONMENT_STATE, ACTION}
    assert found[STATE].count == 34
    np.testing.assert_array_equal(found[STATE].maximum, rows.max(0))
    np.testing.assert_allclose(found[STATE].mean, rows.mean(0), rtol=1e-12)


def test_provenance_names_the_data(tmp_path):
    store = new_store(tmp_path / "s", (4, 9))
    found = WindowDataset(store, WindowConfig(), episodes=[1]).provenance()
    assert found == {"path": str(store.path), "checksum": store.checksum(), "episodes": [1], "steps": 9}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"episodes": [0], "keys": ["observation.torque"]}, r"has no observation \['observation.torque'\]. It offers"),
        ({"episodes": []}, "No episodes of .* were chosen"),
        ({"episodes": [3]}, "No episode 3 in .* it holds 1"),
        ({"episodes": [0], "device": "abacus"}, "Device 'abacus' cannot be used. Available: cpu"),
        ({"episodes": [0], "device": "cuda:99"}, "Device 'cuda:99' cannot be used. Available: cpu"),
    ],
)
def test_what_does_not_exist_is_refused(tmp_path, arguments, message):
    store = new_store(tmp_path / "s", (4,))
    with pytest.raises(RefusedError, match=message):
        WindowDataset(store, WindowConfig(), **arguments)


@pytest.mark.parametrize("bad", [{"obs_horizon": 0}, {"pred_horizon": 0}, {"action_key": "torque"}])
def test_bad_windows_are_refused(bad):
    with pytest.raises(RefusedError, match=next(iter(bad))):
        WindowConfig(**bad)


def test_a_damaged_episode_is_refused_when_it_is_loaded(tmp_path):
    new_store(tmp_path / "s", (40, 40)).close()
    file = tmp_path / "s" / "episodes" / "000001.zarr.zip"
    content = bytearray(file.read_bytes())
    content[content.index(b"observation.state/c/0/0") + 100] ^= 4
    file.write_bytes(content)
    store = EpisodeStore.open(tmp_path / "s")
    WindowDataset(store, WindowConfig(), episodes=[0])
    with pytest.raises(RefusedError, match=r"000001\.zarr\.zip is damaged"):
        WindowDataset(store, WindowConfig(), episodes=[0, 1])


def test_splits_are_by_episode_and_by_seed_alone():
    training, validation = split(50, 0.1, seed=3)
    assert (len(training), len(validation)) == (45, 5)
    assert sorted(training + validation) == list(range(50))
    assert split(50, 0.1, seed=3) == (training, validation)
    assert split(50, 0.1, seed=4) != (training, validation)


@pytest.mark.parametrize(
    ("n", "fraction", "sizes"),
    [(2, 0.02, (1, 1)), (2, 0.99, (1, 1)), (10, 0.02, (9, 1)), (10, 0.25, (8, 2)), (5, 0.0, (5, 0)), (1, 0.0, (1, 0))],
)
def test_both_sides_of_a_split_get_an_episode(n, fraction, sizes):
    # round(0.25 * 10) = round(2.5) = 2: Python rounds half to even.
    assert tuple(map(len, split(n, fraction, seed=0))) == sizes


def test_impossible_splits_are_refused():
    for n, fraction in [(1, 0.1), (0, 0.0), (10, 1.0), (10, -0.1)]:
        with pytest.raises(RefusedError):
            split(n, fraction, seed=0)


def test_episodes_are_chosen_by_outcome(tmp_path):
    with new_store(tmp_path / "s") as store:
        with pytest.raises(RefusedError, match="holds no successful episode"):
            select_episodes(store)
        for number, success in enumerate([True, False, True]):
            store.append(episode(4, number, success=success))
        assert select_episodes(store) == [0, 2]
        assert select_episodes(store, successes_only=False) == [0, 1, 2]
        assert select_episodes(store, limit=1) == [0]
        with pytest.raises(RefusedError, match=r"3 episodes are wanted, .* offers 2 successful episodes \(\d+ in all\)"):
            select_episodes(store, limit=3)
