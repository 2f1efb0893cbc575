"""Saving without waiting: the last record before the call returns, the rest in the background; and taking an episode back."""

import shutil
import threading

import pytest
from episode_samples import assert_same, episode, frame, new_store

from robolearn.core.errors import RefusedError
from robolearn.data.header import T_WALL
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import verify


def record(store, whole):
    recording = store.record({"operator": "ada"}, seed=whole.seed)
    for step in range(len(whole)):
        recording.add_frame(frame(whole, step), t_wall=float(whole.data[T_WALL][step]))
    return recording


def test_the_next_episode_is_recorded_while_the_last_one_is_stored_and_both_are_whole(tmp_path):
    gate = threading.Event()
    with new_store(tmp_path / "s") as store:

        def slow(_):
            gate.wait(30)
            return {"checked": True}

        first = record(store, episode(7, 0)).hand_over(success=True, annotate=slow)
        second = record(store, episode(9, 1)).hand_over(success=False, metadata={"notes": "slipped"})
        assert not first.done()
        assert len(store) == 0, "the gate is still closed"
        gate.set()
        assert (first.result(30), second.result(30)) == (0, 1)
        assert store.metadata(0)["checked"] is True
        assert store.metadata(1)["notes"] == "slipped"
        assert store.metadata(1)["outcome"] == "failure"
        assert_same(store.read(0), episode(7, 0))
        assert_same(store.read(1), episode(9, 1))
    assert verify(tmp_path / "s").sound


def test_dying_before_the_background_thread_has_stored_loses_nothing(tmp_path):
    gate = threading.Event()
    store = new_store(tmp_path / "s")
    done = record(store, episode(7, 0)).hand_over(success=True, annotate=lambda _: {"n": gate.wait(30)})
    # What a kill at this moment leaves is the folder as it is now.
    shutil.copytree(tmp_path / "s", tmp_path / "killed")
    gate.set()
    done.result(30)
    store.close()
    with EpisodeStore.open(tmp_path / "killed", "a") as killed:
        assert killed.recovered == ("Episode 0: 7 steps recorded, outcome success.",)
        assert killed.metadata(0)["success"] is True
        assert_same(killed.read(0), episode(7, 0))


def test_closing_the_store_waits_for_what_was_handed_over(tmp_path):
    with new_store(tmp_path / "s") as store:
        for seed in range(4):
            record(store, episode(20, seed)).hand_over(success=True)
    assert EpisodeStore.open(tmp_path / "s").lengths.tolist() == [20] * 4


def test_a_failing_annotation_keeps_the_frames(tmp_path):
    def broken(_):
        raise RefusedError("no simulator")

    with new_store(tmp_path / "s") as store:
        failed = record(store, episode(7, 0)).hand_over(success=True, annotate=broken)
        with pytest.raises(RefusedError, match=r"no simulator.*Its frames are kept in .*000000.journal"):
            failed.result(30)
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert_same(store.read(0), episode(7, 0))


def test_a_withdrawn_episode_is_in_quarantine_and_its_number_is_not_used_again(tmp_path):
    with new_store(tmp_path / "s", (5, 6, 7)) as store:
        place = store.withdraw(1, reason="the operator took it back")
        assert place == tmp_path / "s" / "quarantine" / "000001.zarr.zip"
        assert place.is_file()
        assert store.lengths.tolist() == [5, 7]
        assert store.append(episode(8, 3)) == 2
        assert store.metadata(2)["number"] == 3
    assert verify(tmp_path / "s").sound
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.lengths.tolist() == [5, 7, 8]
        assert_same(store.read(1), episode(7, 2))
    with EpisodeStore.open(tmp_path / "s") as store, pytest.raises(RefusedError, match="open for reading only"):
        store.withdraw(0, reason="")


def test_a_kill_while_withdrawing_leaves_the_episode_where_it_was(tmp_path):
    with new_store(tmp_path / "s", (5, 6)) as store:
        content = (tmp_path / "s" / "episodes" / "000001.zarr.zip").read_bytes()
        place = store.withdraw(1, reason="test")
    # The manifest is written first; a kill before the file is moved leaves it in episodes/.
    place.unlink()
    (tmp_path / "s" / "episodes" / "000001.zarr.zip").write_bytes(content)
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.lengths.tolist() == [5, 6]
    assert verify(tmp_path / "s").sound
