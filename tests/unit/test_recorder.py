"""The recorder: what is kept, what can be taken back, and what is noticed before data is lost."""

import subprocess

import numpy as np
import pytest
from episode_samples import CAMERA, new_store
from teleop_samples import PERIOD_S, live_store, sample
from test_durability import tmpfs

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE
from robolearn.data.header import ACTION_SENT, INTERVENTION, STAMPS_MONOTONIC, STAMPS_WALL, T_WALL
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import verify
from robolearn.teleop.pace import Pace, timing
from robolearn.teleop.recorder import MIB, DiskLowError, Recorder, RecorderConfig, State, StreamLostError


def recorded(recorder, steps, **how):
    for step in range(steps):
        assert recorder.add(sample(step, **how))


def test_everything_of_a_step_is_kept(tmp_path):
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store, RecorderConfig("ada"))
        recorder.start(seed=7, metadata={"devices": ["keyboard"]})
        for step in range(5):
            recorder.add(sample(step, human=step >= 3, state=0.01))
        saved = recorder.save(success=False, notes="slipped")
        assert saved.future.result(30) == 0
        assert recorder.finished() == [saved]
        facts, data = store.metadata(0), store.read(0).data
    assert (facts["operator"], facts["notes"], facts["outcome"]) == ("ada", "slipped", "failure"), "failures are kept"
    assert (facts["seed"], facts["success"], facts["length"]) == (7, False, 5)
    assert facts["intervention_steps"] == 2
    assert facts["devices"] == ["keyboard"]
    assert data[INTERVENTION][:, 0].tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_array_equal(data[ACTION], [[0.5, -1.0]] * 5)
    np.testing.assert_array_equal(data[ACTION_SENT], [[0.25, -0.5]] * 5)
    # Columns: state, environment state, action.sent. The state is 10 ms older than the command.
    at = 100 + np.arange(5) * PERIOD_S
    np.testing.assert_allclose(data[STAMPS_MONOTONIC], np.stack([at - 0.01, at, at], 1), atol=1e-9)
    np.testing.assert_allclose(data[STAMPS_WALL], np.stack([at - 0.01, at, at], 1) + 1.7e9, atol=1e-6)
    np.testing.assert_allclose(data[T_WALL], at - 0.01 + 1.7e9, atol=1e-6)


def test_timing_by_hand():
    # Wanted 10 Hz. Intervals 100, 110, 90, 300 ms: jitter 0, 10, 10, 200 ms; the last one lacks 3 - 1 = 2 frames.
    kept = timing([0, 0.1, 0.21, 0.30, 0.60], 10)
    assert kept.rate_hz == pytest.approx(4 / 0.6)
    assert kept.jitter_p50_ms == pytest.approx(10)
    assert kept.jitter_max_ms == pytest.approx(200)
    assert kept.dropped == 2
    # A pause before the last frame: its interval does not count.
    kept = timing([0, 0.1, 0.21, 0.30, 0.60], 10, breaks=[4])
    assert (kept.dropped, kept.jitter_max_ms) == (0, pytest.approx(10))
    assert timing([1.0], 10).rate_hz == 0


def test_the_pace_keeps_absolute_deadlines_and_counts_what_it_misses():
    now, slept = [0.0], []

    def sleep(seconds):
        slept.append(seconds)
        now[0] += seconds

    pace = Pace(10, clock=lambda: now[0], sleep=sleep)
    assert pace.wait() == 0
    now[0] = 0.03
    assert pace.wait() == 0
    now[0] = 0.14  # the step took 40 ms
    pace.wait()
    assert slept == pytest.approx([0.07, 0.06]), "the deadline is 0.2, not 0.14 + 0.1"
    now[0] = 0.55  # ticks 0.3, 0.4 and 0.5: one is given late, two are missed
    assert pace.wait() == pytest.approx(0.25)
    assert pace.missed == 2
    pace.wait()
    assert now[0] == pytest.approx(0.6)
    with pytest.raises(RefusedError, match="rate_hz=0"):
        Pace(0)


def test_pausing_leaves_steps_out_and_says_where(tmp_path):
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store)
        assert not recorder.add(sample(0)), "nothing is recorded before the start"
        recorder.start()
        recorded(recorder, 3)
        recorder.pause()
        assert not recorder.add(sample(3))
        recorder.resume()
        recorder.add(sample(40))
        recorder.save(success=True).future.result(30)
        assert store.metadata(0)["paused_before_steps"] == [3]
        assert store.metadata(0)["timing"]["dropped"] == 0
        np.testing.assert_array_equal(store.read(0).data[STATE][:, 0], [0, 1, 2, 40])


def test_discard_undo_and_rerecord(tmp_path):
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store)
        recorder.start(seed=1)
        recorded(recorder, 3)
        recorder.discard()
        assert recorder.state is State.DISCARDED
        assert "3 steps" in recorder.undo()
        recorder.save(success=True).future.result(30)
        recorder.start(seed=2)
        recorded(recorder, 4)
        recorder.discard()
        recorder.start(seed=2)  # only now are those four steps gone
        recorded(recorder, 5)
        recorder.save(success=True).future.result(30)
        assert store.lengths.tolist() == [3, 5]
        assert [store.metadata(i)["number"] for i in range(2)] == [0, 1]
        assert "taken out of the store" in recorder.undo()
        assert store.lengths.tolist() == [3]
        with pytest.raises(RefusedError, match="nothing to undo"):
            recorder.undo()
    assert verify(tmp_path / "s").sound
    assert [p.name for p in (tmp_path / "s" / "quarantine").iterdir()] == ["000001.zarr.zip"]


@pytest.mark.parametrize("call", ["pause", "resume", "stop", "discard", "save", "undo"])
def test_what_makes_no_sense_is_refused_and_changes_nothing(tmp_path, call):
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store)
        with pytest.raises(RefusedError, match=r"idle|nothing to undo"):
            getattr(recorder, call)(**({"success": True} if call == "save" else {}))
        assert recorder.state is State.IDLE
        recorder.start()
        recorded(recorder, 2)
        with pytest.raises(RefusedError, match="An episode is recording; save or discard it first"):
            recorder.start()
        assert recorder.frames == 2


def test_a_lost_camera_pauses_the_recording_by_name_and_it_goes_on_when_it_is_back(tmp_path):
    with live_store(tmp_path / "s", camera=True) as store:
        recorder = Recorder(store, RecorderConfig(max_stream_age_s=0.3))
        recorder.start()
        recorded(recorder, 3, camera=True)
        with pytest.raises(
            StreamLostError, match=rf"{CAMERA} is 0\.40 s old \(allowed 0\.3 s\).*paused after 3 steps, which are safe"
        ):
            recorder.add(sample(3, camera=True, pictures=0.4))
        assert recorder.state is State.PAUSED
        recorder.resume()
        assert recorder.add(sample(9, camera=True))
        recorder.save(success=True).future.result(30)
        assert store.lengths.tolist() == [4]
        assert store.metadata(0)["lost_streams"] == [{"stream": CAMERA, "before_step": 3, "age_s": 0.4}]


def test_a_disk_that_fills_up_stops_the_recording_while_the_episode_can_still_be_stored(tmp_path):
    free = [10 * MIB]
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store, RecorderConfig(min_free_mib=5), free_bytes=lambda: free[0])
        recorder.start()
        recorded(recorder, 30)
        free[0] = 4 * MIB
        with pytest.raises(DiskLowError, match=r"has 4 MiB left and 5 MiB are kept free: nothing more is recorded"):
            recorded(recorder, 60)  # space is looked at once a second
        assert recorder.state is State.STOPPED
        kept = recorder.frames
        assert kept >= 30
        recorder.save(success=True).future.result(30)
        assert store.lengths.tolist() == [kept]
        with pytest.raises(DiskLowError, match="make room"):
            recorder.start()
        free[0] = 10 * MIB
        recorder.start()


def test_a_really_full_disk_keeps_what_was_recorded(tmp_path):
    """2 MiB of tmpfs with the look at the free space switched off: the kernel refuses, and every acknowledged frame is kept."""
    with tmpfs(tmp_path / "disk", "size=2m"):
        with live_store(tmp_path / "disk" / "s", camera=True) as store:
            recorder = Recorder(store, free_bytes=lambda: 1 << 40)
            recorder.start()
            with pytest.raises(RefusedError, match=r"was not recorded, the \d+ before it are kept.*the disk is full"):
                recorded(recorder, 200, camera=True)
            assert recorder.state is State.STOPPED
            kept = recorder.frames
            assert kept > 20
            recorder.close()
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path / "disk")], check=True)
        with EpisodeStore.open(tmp_path / "disk" / "s", "a") as store:
            assert store.lengths.tolist() == [kept]
            assert (store.read(0).data[CAMERA][:, 0, 0, 0] == np.arange(kept)).all()


def test_closing_keeps_an_unlabelled_episode_as_interrupted_and_deletes_a_discarded_one(tmp_path):
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store)
        recorder.start()
        recorded(recorder, 3)
        recorder.close()
        recorder.start()
        recorded(recorder, 4)
        recorder.discard()
        recorder.close()
    with EpisodeStore.open(tmp_path / "s") as store:
        assert store.lengths.tolist() == [3]
        assert store.metadata(0)["outcome"] == "interrupted"
    assert list((tmp_path / "s" / "unfinished").iterdir()) == []


def test_a_check_that_fails_is_noted_and_the_episode_stored(tmp_path):
    def broken(_):
        raise RuntimeError("no simulator")

    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store, annotate=broken)
        recorder.start()
        recorded(recorder, 3)
        recorder.save(success=True).future.result(30)
        assert store.metadata(0)["annotation_error"] == "RuntimeError: no simulator"


def test_a_store_of_other_streams_is_refused(tmp_path):
    with new_store(tmp_path / "s") as store, pytest.raises(RefusedError, match=r"recording needs .*intervention"):
        Recorder(store)
    with pytest.raises(RefusedError, match="flush_interval_s=2 would leave frames at risk"):
        RecorderConfig(flush_interval_s=2)


def test_a_sample_that_does_not_fit_stops_the_recording_and_keeps_what_came_before(tmp_path):
    with live_store(tmp_path / "s") as store:
        recorder = Recorder(store)
        recorder.start()
        recorded(recorder, 3)
        bad = sample(3)
        bad.observation[ENVIRONMENT_STATE][1] = np.nan
        with pytest.raises(RefusedError, match="only finite numbers are kept"):
            recorder.add(bad)
        recorder.save(success=False).future.result(30)
        assert store.lengths.tolist() == [3]
