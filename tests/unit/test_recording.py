import errno
import os
import threading
import time

import numpy as np
import pytest
from episode_samples import assert_same, episode, frame, new_store

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, STATE
from robolearn.data import folder
from robolearn.data.header import T_WALL
from robolearn.data.journal import read_journal
from robolearn.data.store import EpisodeStore


def add_frames(recording, whole, steps):
    for step in steps:
        recording.add_frame(frame(whole, step), t_wall=float(whole.data[T_WALL][step]))


def record_until_interrupted(store, whole, steps):
    with store.record() as recording:
        add_frames(recording, whole, range(steps))
        raise KeyboardInterrupt


def leave_unfinished(path, steps, *, done=False):
    """What a kill leaves: the lock is free, the journal stays."""
    store = EpisodeStore.open(path, "a")
    recording = store.record({"operator": "killed"}, seed=4)
    add_frames(recording, episode(20), range(steps))
    if done:
        recording._journal.add_done({"success": True, "metadata": {"outcome": "success"}})
    recording._close()
    store._lock.release()
    return recording._journal.path


def test_a_recorded_episode_equals_an_appended_one(tmp_path):
    whole = episode(20, camera=True)
    with new_store(tmp_path / "s", camera=True) as store:
        with store.record({"operator": "me"}, seed=7) as recording:
            add_frames(recording, whole, range(20))
            assert recording.frames == 20
            assert recording.finish(success=True, metadata={"note": "good"}) == 0
        assert_same(store.read(0), whole)
        assert store.metadata(0) | {"number": 0} == {
            "operator": "me", "note": "good", "outcome": "success", "seed": 7, "success": True, "length": 20, "number": 0,
        }  # fmt: skip
        assert list((store.path / "unfinished").iterdir()) == []


def test_frames_become_durable_within_the_interval_without_further_calls(tmp_path):
    with new_store(tmp_path / "s") as store, store.record(flush_interval_s=0.05) as recording:
        add_frames(recording, episode(20), range(3))
        deadline = time.monotonic() + 5
        while recording.durable_frames < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert recording.durable_frames == 3
        assert read_journal(recording._journal.path).frames == 3


def test_an_episode_that_nobody_ends_is_kept_as_interrupted(tmp_path):
    whole = episode(20)
    with new_store(tmp_path / "s") as store:
        with pytest.raises(KeyboardInterrupt):
            record_until_interrupted(store, whole, 8)
        assert store.metadata(0)["outcome"] == "interrupted"
        recording = store.record()
        add_frames(recording, whole, range(5))
    with EpisodeStore.open(tmp_path / "s") as store:
        assert store.lengths.tolist() == [8, 5], "closing the store keeps it too"
        assert_same(store.read(1), whole, steps=5)
        assert not store.successes.any()


def test_discarding_is_the_only_way_to_lose_frames(tmp_path):
    with new_store(tmp_path / "s", (5,)) as store:
        recording = store.record()
        add_frames(recording, episode(20), range(8))
        recording.discard()
        with pytest.raises(RefusedError, match="Episode 1 is finished already"):
            add_frames(recording, episode(20), [8])
        with store.record():
            pass  # no frame, no episode
        assert len(store) == 1
        assert store.append(episode(6)) == 1
    assert EpisodeStore.open(tmp_path / "s").lengths.tolist() == [5, 6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({ACTION: np.zeros(3, np.float32)}, r"step 2: stream 'action' is float32 \(3,\)"),
        ({ACTION: np.zeros(2)}, "step 2: stream 'action' is float64"),
        ({STATE: np.array([0, np.nan, 0], np.float32)}, "'observation.state', step 2: y is nan"),
        ({"torque": np.zeros(1, np.float32)}, r"step 2: streams .* \['torque'\] are unknown"),
    ],
)
def test_a_bad_frame_is_refused_and_the_recording_goes_on(tmp_path, change, message):
    whole = episode(20)
    with new_store(tmp_path / "s") as store:
        recording = store.record()
        add_frames(recording, whole, range(2))
        with pytest.raises(RefusedError, match=message):
            recording.add_frame({**frame(whole, 2), **change}, t_wall=1.7e9)
        add_frames(recording, whole, range(2, 20))
        recording.finish(success=True)
        assert_same(store.read(0), whole)


def test_one_recording_at_a_time(tmp_path):
    with new_store(tmp_path / "s") as store, store.record() as recording:
        for refused in (store.record, lambda: store.append(episode(5))):
            with pytest.raises(RefusedError, match="an episode is being recorded"):
                refused()
        with pytest.raises(RefusedError, match="Episode 0 has no frames"):
            recording.finish(success=True)


def test_opening_recovers_an_unfinished_episode_once(tmp_path):
    new_store(tmp_path / "s", (5,)).close()
    leave_unfinished(tmp_path / "s", 9)
    assert len(EpisodeStore.open(tmp_path / "s")) == 1, "reading changes nothing"
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.recovered == ("Episode 1: 9 steps recorded, outcome interrupted.",)
        assert_same(store.read(1), episode(20), steps=9)
        facts = store.metadata(1)
        assert (facts["outcome"], facts["operator"], facts["seed"], facts["success"]) == ("interrupted", "killed", 4, False)
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert (len(store), store.recovered) == (2, ())


def test_an_episode_that_was_ended_but_not_yet_stored_keeps_its_success(tmp_path):
    new_store(tmp_path / "s").close()
    leave_unfinished(tmp_path / "s", 9, done=True)
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.successes.tolist() == [True]
        assert store.metadata(0)["outcome"] == "success"


def test_a_kill_between_storing_an_episode_and_removing_its_journal_does_not_double_it(tmp_path):
    new_store(tmp_path / "s").close()
    journal = leave_unfinished(tmp_path / "s", 9, done=True)
    content = journal.read_bytes()
    EpisodeStore.open(tmp_path / "s", "a").close()
    journal.write_bytes(content)
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert len(store) == 1
    assert not journal.exists()


def test_a_journal_cut_at_any_byte_gives_every_whole_frame_before_the_cut(tmp_path):
    new_store(tmp_path / "s").close()
    journal = leave_unfinished(tmp_path / "s", 3, done=True)
    content = journal.read_bytes()
    # A frame is 3 + 2 + 2 + 2 float32 and one float64 = 44 bytes after 12 bytes of record head.
    first = content.index(b"FRAM")
    cut_file = tmp_path / "cut.journal"
    for cut in range(first, len(content)):
        cut_file.write_bytes(content[:cut])
        found = read_journal(cut_file)
        assert found.frames == min((cut - first) // 56, 3), cut
        assert (found.done, found.damage) == (None, None), cut
        assert found.torn_bytes == cut - first - 56 * found.frames
        np.testing.assert_array_equal(found.data[STATE], episode(20).data[STATE][: found.frames])
    assert read_journal(journal).done is not None
    for cut in range(0, first, 17):
        cut_file.write_bytes(content[:cut])
        with pytest.raises(RefusedError, match="Journal"):
            read_journal(cut_file)


def test_any_flipped_bit_in_a_journal_is_noticed_and_earlier_frames_survive(tmp_path):
    new_store(tmp_path / "s").close()
    journal = leave_unfinished(tmp_path / "s", 6)
    content = journal.read_bytes()
    first = content.index(b"FRAM")
    rng = np.random.default_rng(0)
    flipped_file = tmp_path / "flipped.journal"
    for at in range(first, len(content) - 56):
        flipped = bytearray(content)
        flipped[at] ^= 1 << int(rng.integers(8))
        flipped_file.write_bytes(flipped)
        found = read_journal(flipped_file)
        assert found.frames == (at - first) // 56
        assert found.damage is not None, at
        np.testing.assert_array_equal(found.data[STATE], episode(20).data[STATE][: found.frames])


def test_a_damaged_journal_gives_what_it_can_and_is_set_aside(tmp_path):
    new_store(tmp_path / "s").close()
    journal = leave_unfinished(tmp_path / "s", 9)
    content = bytearray(journal.read_bytes())
    content[content.index(b"FRAM") + 4 * 56 + 30] ^= 16
    journal.write_bytes(content)
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.lengths.tolist() == [4]
        assert "is damaged at byte" in store.recovered[1]
    assert (tmp_path / "s" / "quarantine" / journal.name).read_bytes() == content
    journal.write_bytes(b"nothing of ours")
    folder.episode_path(tmp_path / "s", 0).rename(tmp_path / "s" / "quarantine" / "000000.zarr.zip")
    (tmp_path / "s" / "manifest.jsonl").unlink()
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert "holds nothing that can be recovered" in store.recovered[0]
        assert store.append(episode(5)) == 0
        assert store.metadata(0)["number"] == 1, "a number is never used twice"


def test_what_cannot_be_stored_now_stays_complete_and_is_stored_later(tmp_path, monkeypatch):
    with new_store(tmp_path / "s") as store:
        recording = store.record()
        add_frames(recording, episode(20), range(20))
        with monkeypatch.context() as patch:
            patch.setattr(folder, "sync_folder", lambda path: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(RefusedError, match=r"the disk is full.*frames are kept in .*000000.journal"):
                recording.finish(success=True)
        assert len(store) == 0
        assert store.append(episode(6)) == 0, "the next episode does not take its number"
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.lengths.tolist() == [20, 6]
        assert store.successes.tolist() == [True, True]
        assert_same(store.read(0), episode(20))


def test_a_frame_that_was_written_in_part_leaves_no_trace(tmp_path, monkeypatch):
    """The disk takes 30 bytes of a frame's 56 and is full; once there is room the recording ends as if nothing had been."""
    written = os.write

    def short_write(descriptor, content):
        if len(content) == 56:
            return written(descriptor, content[:30])
        raise OSError(errno.ENOSPC, "No space left on device")

    with new_store(tmp_path / "s") as store:
        recording = store.record()
        add_frames(recording, episode(20), range(5))
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", short_write)
            with pytest.raises(RefusedError, match="Step 5 was not recorded, the 5 before it are kept"):
                add_frames(recording, episode(20), [5])
        found = read_journal(recording._journal.path)
        assert (found.frames, found.torn_bytes, found.damage) == (5, 0, None)
        add_frames(recording, episode(20), range(5, 20))
        recording.finish(success=True)
        assert_same(store.read(0), episode(20))


def test_an_episode_that_was_ended_is_synced_while_an_earlier_one_is_still_being_stored(tmp_path):
    # Its last half second and its label used to wait for their sync until it was its turn to be compressed, behind others.
    busy = threading.Event()
    whole = episode(6)
    with new_store(tmp_path / "s") as store:
        store._later(lambda: int(busy.wait(30)))
        recording = store.record(flush_interval_s=30.0)
        for step in range(len(whole)):
            recording.add_frame(frame(whole, step), t_wall=float(whole.data[T_WALL][step]))
        future = recording.hand_over(success=True)
        recording._flusher.join(10)
        assert recording.durable_frames == 6
        assert not future.done()
        busy.set()
        assert future.result() == 0
