"""A recording session that ends badly at a random moment, ours and lerobot 0.6.1's, and how long saving an episode blocks.

    OMP_NUM_THREADS=1 python tests/bench/bench_recording.py [--kills 200] [--lerobot-kills 40] [--saves 200] [--seed 0]

The session: 25 episodes of 40 steps (state 11, action 7) are saved, then one is recorded at 50 Hz until the end. A child
process runs it and acknowledges every frame and every save on a pipe; it ends after a random acknowledgement and a random
further 0 to 20 ms, in each of the ways of ``ENDS``. An episode counts as finished when its save had been acknowledged. A
power cut is simulated: the child notes what it has synced, and after a kill every file is cut at a random byte beyond
that, and names that were not synced are there or not; there an episode counts as finished 1 s after its save.
"""

import argparse
import contextlib
import io
import json
import os
import random
import signal
import stat
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np

from robolearn.core.types import ACTION, STATE, FeatureSpec, Spaces
from robolearn.data.header import ACTION_SENT, live_extra
from robolearn.data.store import EpisodeStore
from robolearn.teleop.recorder import Recorder, Sample, Stamp

EPISODES, STEPS, LAST_STEPS = 25, 40, 150
RATE_HZ = 50
ACK = struct.Struct("<iid")
"""Episode, frames so far (-1: saved), monotonic seconds."""
ENDS = ("kill -9", "SIGTERM", "exception", "power cut")
TOTAL = EPISODES * (STEPS + 1) + LAST_STEPS
CAMERA = "observation.images.camera"


def spaces(camera: tuple[int, int] | None = None) -> Spaces:
    observation = {STATE: FeatureSpec((11,))}
    if camera:
        observation[CAMERA] = FeatureSpec((*camera, 3), "uint8")
    return Spaces("panda", observation, FeatureSpec((7,)), (-1.0,) * 7, (1.0,) * 7, float(RATE_HZ))


def frame(step: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full(11, step, np.float32), np.full(7, step / 1000, np.float32)


def sample(step: int, picture: np.ndarray | None = None) -> Sample:
    state, action = frame(step)
    observation = {STATE: state} | ({CAMERA: picture} if picture is not None else {})
    return Sample(observation, action, action, True, dict.fromkeys([*observation, ACTION_SENT], Stamp.now()))


def pause(episode: int) -> None:
    time.sleep(1 / RATE_HZ if episode == EPISODES else 0.0005)


def acknowledge(acks: int, episode: int, frames: int) -> None:
    os.write(acks, ACK.pack(episode, frames, time.monotonic()))


def our_session(path: Path, acks: int) -> None:
    found = spaces()
    with EpisodeStore.create(path, found, task="bench", fidelity="real", extra=live_extra(found)) as store:
        recorder = Recorder(store)
        for episode in range(EPISODES + 1):
            recorder.start(seed=episode)
            for step in range(LAST_STEPS if episode == EPISODES else STEPS):
                recorder.add(sample(step))
                acknowledge(acks, episode, step + 1)
                pause(episode)
            if episode < EPISODES:
                recorder.save(success=True)
                acknowledge(acks, episode, -1)
        signal.pause()


def their_session(path: Path, acks: int) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {key: {"dtype": "float32", "shape": (n,), "names": None} for key, n in ((STATE, 11), (ACTION, 7))}
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        dataset = LeRobotDataset.create("local/bench", fps=RATE_HZ, features=features, root=path, use_videos=False)
        try:
            for episode in range(EPISODES + 1):
                for step in range(LAST_STEPS if episode == EPISODES else STEPS):
                    state, action = frame(step)
                    dataset.add_frame({STATE: state, ACTION: action, "task": "bench"})
                    acknowledge(acks, episode, step + 1)
                    pause(episode)
                if episode < EPISODES:
                    dataset.save_episode()
                    acknowledge(acks, episode, -1)
            signal.pause()
        finally:  # as lerobot-record does
            dataset.finalize()


def our_readable(path: Path, running: int) -> tuple[int, int]:
    """Return how many finished episodes are whole after the crash, and the frames of the one that was under way."""
    with EpisodeStore.open(path, "a") as store:
        whole, rest = 0, 0
        for index in range(len(store)):
            found, facts = store.read(index), store.metadata(index)
            wanted = np.stack([frame(step)[0] for step in range(len(found))])
            assert np.array_equal(found.data[STATE], wanted), "recovered frames must be those that were recorded"
            if facts["seed"] == running:
                rest = len(found)
            else:
                whole += facts["success"] and len(found) == STEPS
    return whole, rest


def their_readable(path: Path, running: int) -> tuple[int, int]:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            dataset = LeRobotDataset("local/bench", root=path)
            whole = 0
            for index in range(dataset.num_episodes):
                first = int(dataset.meta.episodes[index]["dataset_from_index"])
                whole += float(dataset[first + STEPS - 1][STATE][0]) == STEPS - 1
            return whole, 0
        except Exception:
            return 0, 0


class SomethingWentWrongError(Exception):
    """No RuntimeError: threading.Condition.notify drops those, and one that hit it there was never seen again."""


def child(session: Callable[[Path, int], None], path: Path, acks: int, how: str) -> None:
    """Run a session in a process of its own; never returns."""

    def raise_it(*_: object) -> None:
        raise SomethingWentWrongError

    if how == "exception":
        signal.signal(signal.SIGUSR1, raise_it)
    if how == "power cut":
        note_syncs(path.with_suffix(".synced"))
    try:
        session(path, acks)
    except SomethingWentWrongError:
        pass
    finally:
        os._exit(1)


def note_syncs(file: Path) -> None:
    """Write down which bytes and which names are on the disk itself, whenever this process has brought some there."""
    notes = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def noting(real: Callable[[int], None]) -> Callable[[int], None]:
        def synced(descriptor: int) -> None:
            about = os.fstat(descriptor)
            names = os.listdir(descriptor) if stat.S_ISDIR(about.st_mode) else []
            real(descriptor)
            os.write(notes, json.dumps([about.st_ino, about.st_size, names]).encode() + b"\n")

        return synced

    os.fsync, os.fdatasync = noting(os.fsync), noting(os.fdatasync)


def cut_power(path: Path, rng: random.Random) -> None:
    """Leave of a killed session what a loss of power could have left."""
    sizes, names = {}, {}
    for line in path.with_suffix(".synced").read_text().splitlines():
        inode, size, listed = json.loads(line)
        sizes[inode], names[inode] = size, set(listed)
    for file in [p for p in path.rglob("*") if p.is_file()]:
        about = file.stat()
        if file.name not in names.get(file.parent.stat().st_ino, set()) and rng.random() < 0.5:
            file.unlink()
        elif about.st_size > (safe := min(sizes.get(about.st_ino, 0), about.st_size)):
            os.truncate(file, rng.randint(safe, about.st_size))


def end_once(
    session: Callable[[Path, int], None], readable: Callable[[Path, int], tuple[int, int]], rng: random.Random, how: str
) -> tuple[int, int, float]:
    """Return how many episodes were finished, how many of them are readable, and the lost seconds of the running one."""
    after, delay_s = rng.randrange(1, TOTAL), rng.uniform(0, 0.02)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        reader, writer = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            child(session, path, writer, how)
        os.close(writer)
        acks = b""
        while len(acks) < after * ACK.size:
            acks += os.read(reader, 1 << 16)
        time.sleep(delay_s)
        ended_s = time.monotonic()
        os.kill(process, {"SIGTERM": signal.SIGTERM, "exception": signal.SIGUSR1}.get(how, signal.SIGKILL))
        while more := os.read(reader, 1 << 16):
            acks += more
        os.waitpid(process, 0)
        os.close(reader)
        if how == "power cut":
            cut_power(path, rng)
        said = list(ACK.iter_unpack(acks[: len(acks) // ACK.size * ACK.size]))
        grace_s = 1.0 if how == "power cut" else 0.0
        finished = sum(frames == -1 and at <= ended_s - grace_s for _, frames, at in said)
        running = said[-1][0] + (said[-1][1] == -1)
        taken = [at for episode, _, at in said if episode == running]
        # Each attempt to read runs in a process of its own too: a reader that crashes is a result, not an accident.
        whole, kept = in_child(lambda: readable(path, running))
    return finished, min(whole, finished), ended_s - taken[kept] if kept < len(taken) else 0.0


def in_child(function: Callable[[], tuple[int, int]]) -> tuple[int, int]:
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        code = 1
        try:
            os.write(writer, struct.pack("<ii", *function()))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    data = os.read(reader, 8)
    os.close(reader)
    os.waitpid(process, 0)
    return struct.unpack("<ii", data) if len(data) == 8 else (0, 0)


def ends(name: str, session: Callable, readable: Callable, count: int, seed: int, hows: Sequence[str]) -> None:
    for how in hows:
        rng, begun = random.Random(seed), time.monotonic()
        rows = [end_once(session, readable, rng, how) for _ in range(count)]
        finished, whole, lost_s = (np.array(column) for column in zip(*rows, strict=True))
        late = finished == EPISODES
        print(
            f"| {name} | {how} | {count} | {int(whole.sum())} of {int(finished.sum())} | {int((whole[late] >= EPISODES).sum())} "
            f"of {int(late.sum())} | {lost_s.max():.2f} s | {time.monotonic() - begun:.0f} s |",
            flush=True,
        )


def blocking(count: int, camera: tuple[int, int] | None, steps: int) -> None:
    """Save episodes at once after each other, while the ones before are still being compressed."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        found = spaces(camera)
        pictures = [rng.integers(0, 256, (*camera, 3), dtype=np.uint8) for _ in range(4)] if camera else [None]
        with EpisodeStore.create(Path(folder) / "s", found, task="bench", fidelity="real", extra=live_extra(found)) as store:
            recorder = Recorder(store)
            times = []
            for _ in range(count):
                recorder.start()
                for step in range(steps):
                    recorder.add(sample(step, pictures[step % len(pictures)]))
                saved = recorder.save(success=True)
                times.append(recorder.blocking_ms[-1])
                if recorder.pending > 3:
                    saved.future.result()
    what = f"{camera[0]} x {camera[1]} camera" if camera else "state only"
    p50, p99 = np.percentile(times, (50, 99))
    print(f"| {what}, {steps} steps | {count} | {p50:.2f} | {p99:.2f} | {max(times):.2f} |", flush=True)


def their_blocking(count: int, steps: int) -> None:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    features = {key: {"dtype": "float32", "shape": (n,), "names": None} for key, n in ((STATE, 11), (ACTION, 7))}
    times = []
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        dataset = LeRobotDataset.create("local/bench", fps=RATE_HZ, features=features, root=Path(folder) / "s", use_videos=False)
        for _ in range(count):
            for step in range(steps):
                state, action = frame(step)
                dataset.add_frame({STATE: state, ACTION: action, "task": "bench"})
            begun = time.perf_counter()
            dataset.save_episode()
            times.append((time.perf_counter() - begun) * 1e3)
        dataset.finalize()
    p50, p99 = np.percentile(times, (50, 99))
    print(f"| lerobot 0.6.1, state only, {steps} steps | {count} | {p50:.2f} | {p99:.2f} | {max(times):.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("kills", 200), ("lerobot-kills", 40), ("saves", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=ENDS)
    asked = parser.parse_args()
    if asked.lerobot_kills:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            import lerobot.datasets.lerobot_dataset  # noqa: F401 - once, before the children are forked
    if asked.kills or asked.lerobot_kills:
        print(
            "| recorder | end | times | finished episodes readable | all 25, where finished | most lost of the running | wall |"
        )
        print("|---|---|---|---|---|---|---|")
    if asked.kills:
        ends("robolearn", our_session, our_readable, asked.kills, asked.seed, asked.ends)
    if asked.lerobot_kills:
        ends("lerobot 0.6.1", their_session, their_readable, asked.lerobot_kills, asked.seed, ENDS[:3])
    if asked.saves:
        print("\n| saving an episode blocks [ms] | saves | p50 | p99 | max |\n|---|---|---|---|---|")
        blocking(asked.saves, None, 200)
        blocking(asked.saves, (96, 96), 100)
        blocking(max(asked.saves // 8, 5), (480, 640), 40)
        if asked.lerobot_kills:
            their_blocking(min(asked.saves, 40), 200)


if __name__ == "__main__":
    sys.exit(main())
