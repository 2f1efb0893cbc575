"""Kills, full disks and read-only folders, all real: child processes, tmpfs mounts, dropped privileges."""

import contextlib
import multiprocessing
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
import store_writers
from episode_samples import assert_same, episode, frame, new_store

from robolearn.core.errors import RefusedError
from robolearn.data.header import T_WALL
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import Fault, verify


def forkserver():
    """Child processes that need not import everything again (a forkserver finds installed modules only, not those beside it)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", "robolearn.data.store"])
    return context


def run_and_kill(context, path, acknowledgements, delay_s):
    """Kill a writer ``delay_s`` after so many acknowledgements; return the finished episodes and the frames it had claimed."""
    log = path.parent / "acknowledged"
    log.write_bytes(b"")
    process = context.Process(target=store_writers.write_and_log, args=(path, log))
    process.start()
    deadline = time.monotonic() + 60
    while log.read_bytes().count(b"\n") < acknowledgements and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(delay_s)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL, "the child must not have ended by itself"
    lines = [line.split() for line in log.read_text().splitlines()]
    finished = [int(words[1]) for words in lines if words[0] == "episode"]
    frames = {int(words[1]): int(words[2]) for words in lines if words[0] == "frame"}
    return max(finished, default=-1) + 1, frames


@pytest.mark.parametrize("seed", range(4))
def test_kill_9_at_any_moment_loses_no_finished_episode_and_no_frame(tmp_path, seed):
    context = forkserver()
    rng = random.Random(seed)
    new_store(tmp_path / "s").close()
    lengths, outcomes = [], set()
    # 60 frames, the end of that episode and a whole one are 62 acknowledgements: three kills fall about the moments at which an
    # episode becomes a finished one, the others anywhere. What a loaded machine delays does not matter.
    last = store_writers.RECORDED
    for acknowledgements in [last, last + 1, last + 2, rng.randrange(1, last), rng.randrange(1, 2 * last)]:
        finished, frames = run_and_kill(context, tmp_path / "s", acknowledgements, rng.uniform(0, 0.04))
        reader = EpisodeStore.open(tmp_path / "s")
        assert len(reader) >= max(finished, len(lengths)), "finished episodes are readable before anything is mended"
        faults = {problem.fault for problem in verify(tmp_path / "s").problems}
        assert faults <= {Fault.UNFINISHED, Fault.TORN_JOURNAL, Fault.UNLISTED, Fault.MANIFEST, Fault.LEFTOVER}, faults
        with EpisodeStore.open(tmp_path / "s", "a") as store:
            assert store.lengths.tolist()[: len(lengths)] == lengths, "earlier episodes are untouched"
            for number in range(len(lengths), len(store)):
                facts = store.metadata(number)
                outcomes.add(facts["outcome"])
                whole = episode(40, number) if number % 2 else episode(store_writers.RECORDED, number)
                lengths.append(facts["length"])
                assert facts["length"] >= frames.get(number, 0), "every acknowledged frame is there"
                assert facts["outcome"] == "interrupted" or facts["length"] == len(whole)
                assert_same(store.read(number), whole, steps=facts["length"])
            assert not frames or max(frames) < len(store)
    assert "success" in outcomes
    assert verify(tmp_path / "s").sound


def test_a_kill_before_a_journal_has_its_head_is_no_damage(tmp_path):
    """The journal had its name before its first byte: a kill in between left an empty one, which was damage for ever."""
    new_store(tmp_path / "s", (5,)).close()
    process = forkserver().Process(target=store_writers.begin_recording_and_die, args=(tmp_path / "s",))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert {problem.fault for problem in verify(tmp_path / "s").problems} == {Fault.LEFTOVER}
    with EpisodeStore.open(tmp_path / "s", "a") as store:
        assert store.recovered == ()
        assert store.append(episode(7, 1)) == 1
    assert verify(tmp_path / "s").sound
    assert not (tmp_path / "s" / "quarantine").exists()


@contextlib.contextmanager
def tmpfs(path: Path, options: str):
    """A file system of its own; skips where mounting is not allowed."""
    path.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def snapshot(path):
    return {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}


def record_all(store, whole):
    with store.record() as recording:
        for step in range(len(whole)):
            recording.add_frame(frame(whole, step), t_wall=float(whole.data[T_WALL][step]))


def test_a_full_disk_is_refused_by_name_and_the_store_stays_as_it_was(tmp_path):
    with tmpfs(tmp_path / "disk", "size=2m"):
        # A frame of random bytes takes 27.6 kB: 40 stored frames take 1.1 MB of 2 MB, 60 more do not fit.
        store = new_store(tmp_path / "disk" / "s", (10, 30), camera=True)
        before = snapshot(store.path)
        with pytest.raises(RefusedError, match=r"Episode 2 for .* was not stored, the store is as it was: the disk is full"):
            store.append(episode(60, camera=True))
        assert snapshot(store.path) == before
        whole = episode(120, camera=True)
        with pytest.raises(RefusedError, match=r"Step \d+ was not recorded, the \d+ before it are kept.*the disk is full"):
            record_all(store, whole)
        store.close()
        # Somebody makes room; nothing that was acknowledged is lost.
        subprocess.run(["mount", "-o", "remount,size=64m", str(tmp_path / "disk")], check=True)
        with EpisodeStore.open(tmp_path / "disk" / "s", "a") as store:
            assert 0 < store.lengths[2] < 120
            assert_same(store.read(2), whole, steps=int(store.lengths[2]))
        assert verify(tmp_path / "disk" / "s").sound


def test_a_file_size_limit_is_refused_by_name(tmp_path):
    """Where nothing can be mounted the kernel still can refuse a write: RLIMIT_FSIZE, in a process of its own."""
    new_store(tmp_path / "s", (5,), camera=True).close()
    before = snapshot(tmp_path / "s")
    context = forkserver()
    receiver, sender = context.Pipe()
    process = context.Process(target=store_writers.append_beyond_the_limit, args=(tmp_path / "s", sender))
    process.start()
    process.join(60)
    assert receiver.poll(), process.exitcode
    assert "was not stored, the store is as it was: the file would exceed the allowed file size" in receiver.recv()
    after = snapshot(tmp_path / "s")
    assert {k: v for k, v in after.items() if k.name != "writer.lock"} == {
        k: v for k, v in before.items() if k.name != "writer.lock"
    }
    assert len(EpisodeStore.open(tmp_path / "s")) == 1


def test_a_read_only_file_system_reads_and_refuses_writers_by_name(tmp_path):
    with tmpfs(tmp_path / "disk", "size=4m"):
        new_store(tmp_path / "disk" / "s", (5, 6)).close()
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "disk")], check=True)
        with EpisodeStore.open(tmp_path / "disk" / "s") as store:
            assert_same(store.read(1), episode(6, 1))
        with pytest.raises(RefusedError, match=r"Cannot open .* for writing: the file system is read-only"):
            EpisodeStore.open(tmp_path / "disk" / "s", "a")
        with pytest.raises(RefusedError, match=r"Cannot create an episode store at .*: the file system is read-only"):
            new_store(tmp_path / "disk" / "t")
        assert verify(tmp_path / "disk" / "s").sound


def test_a_folder_without_permission_is_refused_by_name(tmp_path):
    new_store(tmp_path / "s", (5,)).close()
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    (tmp_path / "s").chmod(0o555)
    for parent in tmp_path.parents[:3]:  # pytest's own folders are private; the child that gave up root must pass
        if parent.is_relative_to("/tmp") and parent != Path("/tmp") and os.geteuid() == 0:
            parent.chmod(0o755)
    context = forkserver()
    receiver, sender = context.Pipe()
    process = context.Process(target=store_writers.open_as_nobody, args=(tmp_path / "s", sender))
    process.start()
    process.join(60)
    (tmp_path / "s").chmod(0o755)
    assert receiver.poll(), process.exitcode
    refused, length = receiver.recv()
    assert "for writing: the folder may not be written (permission denied)" in refused
    assert length == 1, "reading works"
