"""Sustained recording: cameras of 480 x 640 at 30 Hz and a state at 100 Hz, episode after episode.

    OMP_NUM_THREADS=1 nice -n -10 python tests/bench/bench_write.py [--seconds 600] [--cameras 4] [--rate 30]

A store keeps one rate, so two recorders run in this process, as for a robot whose arm is recorded faster than its
cameras: one takes all pictures with a state at 30 Hz, one the state alone at 100 Hz. Each has a source that hands in a
sample at absolute deadlines into a buffer of 0.5 s, as drivers and subscriptions have one, and a thread that records what
is in it; a sample for which there is no room is a dropped frame, the breaks between episodes included. Pictures are
rendered views of a moving arm with the noise of a sensor (standard deviation 2 grey levels, another one in each of 64
pictures), since without it any compressor is fast. Stored episodes but the last two are deleted as they are finished, as
somebody who ships them away would: ten minutes are 66 GB raw. The run ends by itself where less than ``--reserve`` GiB
are left on the disk. On a machine that is shared with others start it with ``chrt -f 5``, and ``--realtime 10`` puts the
sources and the recording threads before the rest of this process.
"""

import argparse
import contextlib
import itertools
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np

from robolearn.core.types import STATE, FeatureSpec, Spaces
from robolearn.data.header import ACTION_SENT, live_extra
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import Fault, verify
from robolearn.teleop.recorder import Recorder, Sample, Stamp
from sim_envs.task import EnvOptions, make_env

HEIGHT, WIDTH, STATES, ACTIONS = 480, 640, 14, 7
POOL = 64
"""Pictures that are made beforehand; making them is the cameras' work and not the recorder's."""
NOISE = 2.0
BUFFER_S = 0.5


def make_pictures() -> np.ndarray:
    """Return (n, h, w, 3) uint8 of a moving arm as a camera would see it."""
    env = make_env("native_lift", EnvOptions(max_episode_steps=400))
    env.reset([0])
    rng = np.random.default_rng(0)
    pictures = np.empty((POOL, HEIGHT, WIDTH, 3), np.uint8)
    for n in range(POOL):
        env.step(np.sin(0.2 * n + np.arange(ACTIONS))[None].astype(np.float32))
        camera = env.spec.cameras[n % len(env.spec.cameras)]
        noise = rng.normal(0, NOISE, (HEIGHT, WIDTH, 3)).astype(np.float32)
        pictures[n] = np.clip(env.render(0, camera, HEIGHT, WIDTH) + noise, 0, 255).astype(np.uint8)
    env.close()
    return pictures


def spaces(cameras: int, rate_hz: float) -> Spaces:
    observation = {STATE: FeatureSpec((STATES,))}
    observation |= {f"observation.images.camera_{n}": FeatureSpec((HEIGHT, WIDTH, 3), "uint8") for n in range(cameras)}
    return Spaces("robot", observation, FeatureSpec((ACTIONS,)), (-1.0,) * ACTIONS, (1.0,) * ACTIONS, rate_hz)


@dataclass
class Lane:
    """One recorder at its rate, and what it went through."""

    name: str
    store: EpisodeStore
    pictures: np.ndarray | None
    episode_s: float
    realtime: int
    recorded: int = 0
    dropped: int = 0
    add_ms: list[float] = field(default_factory=list)
    age_ms: list[float] = field(default_factory=list)
    break_ms: list[float] = field(default_factory=list)
    most_pending: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        self.rate_hz = self.store.header.spaces.control_rate_hz
        self.recorder = Recorder(self.store)
        self.buffer: queue.Queue[float] = queue.Queue(round(BUFFER_S * self.rate_hz))

    def source(self, stop: threading.Event) -> None:
        """Hand in when each sample was taken; none is left out because this thread was late."""
        self._be_in_time()
        begun = time.monotonic()
        for tick in itertools.count():
            due = begun + tick / self.rate_hz
            if stop.wait(max(0.0, due - time.monotonic())):
                return
            try:
                self.buffer.put_nowait(due)
            except queue.Full:
                self.dropped += 1

    def run(self, stop: threading.Event) -> None:
        self._be_in_time()
        try:
            self.recorder.start()
            while not stop.is_set() or not self.buffer.empty():
                with contextlib.suppress(queue.Empty):
                    self._take(self.buffer.get(timeout=0.1))
            self.recorder.close()  # what is left of an episode is kept as interrupted
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            stop.set()

    def _take(self, taken_s: float) -> None:
        begun = time.perf_counter()
        self.recorder.add(self._sample(self.recorded, taken_s))
        self.add_ms.append((time.perf_counter() - begun) * 1e3)
        self.age_ms.append((time.monotonic() - taken_s) * 1e3)
        self.recorded += 1
        if self.recorder.frames == round(self.episode_s * self.rate_hz):
            begun = time.perf_counter()
            self.recorder.save(success=True)
            self.recorder.start()
            self.break_ms.append((time.perf_counter() - begun) * 1e3)
            for done in self.recorder.finished():
                done.future.result()
            self.most_pending = max(self.most_pending, self.recorder.pending)

    def _be_in_time(self) -> None:
        if self.realtime:
            os.sched_setscheduler(threading.get_native_id(), os.SCHED_FIFO, os.sched_param(self.realtime))

    def _sample(self, step: int, taken_s: float) -> Sample:
        observation = {STATE: np.sin(step / 50 + np.arange(STATES)).astype(np.float32)}
        if self.pictures is not None:
            # Every camera copies its picture into a new array, as a driver does.
            for n, key in enumerate(k for k in self.store.header.spaces.observation if k != STATE):
                observation[key] = self.pictures[(step + 17 * n) % POOL].copy()
        stamp = Stamp(time.time() - time.monotonic() + taken_s, taken_s)
        action = np.cos(step / 50 + np.arange(ACTIONS)).astype(np.float32)
        return Sample(observation, action, action, True, dict.fromkeys([*observation, ACTION_SENT], stamp))


def ship(folder: Path, stop: threading.Event, reserve_gib: float) -> None:
    """Delete stored episodes but the newest two, and end the run before the disk is too full for its neighbours."""
    while not stop.wait(0.5):
        for file in sorted((folder / "pictures" / "episodes").glob("[0-9]*.zarr.zip"))[:-2]:
            file.unlink()
        if shutil.disk_usage(folder).free < reserve_gib * 2**30:
            print(f"Ended early: less than {reserve_gib:g} GiB are left on the disk.", flush=True)
            stop.set()


def measure(folder: Path, asked: argparse.Namespace) -> list[Lane]:
    pictures = make_pictures()
    stop = threading.Event()
    with contextlib.ExitStack() as closing:
        lanes = []
        for name, cameras, rate_hz, shown in (("pictures", asked.cameras, asked.rate, pictures), ("state", 0, 100.0, None)):
            found = spaces(cameras, rate_hz)
            store = EpisodeStore.create(folder / name, found, task="bench", fidelity="real", extra=live_extra(found))
            lanes.append(Lane(name, closing.enter_context(store), shown, asked.episode, asked.realtime))
        threads = [threading.Thread(target=work, args=(stop,)) for lane in lanes for work in (lane.source, lane.run)]
        threads.append(threading.Thread(target=ship, args=(folder, stop, asked.reserve)))
        begun, cpu, before = time.monotonic(), time.process_time(), written_bytes()
        for thread in threads:
            thread.start()
        last = begun
        while not stop.wait(max(0.0, min(last + 30, begun + asked.seconds) - time.monotonic())):
            last = time.monotonic()
            waiting = sum(f.stat().st_size for f in (folder / "pictures" / "unfinished").glob("*.journal")) / 1e9
            print(
                f"{last - begun:5.0f} s: dropped {[lane.dropped for lane in lanes]}, raw on disk {waiting:.1f} GB, "
                f"load {os.getloadavg()[0]:.1f}",
                file=sys.stderr,
                flush=True,
            )
            if last - begun >= asked.seconds - 0.1:
                stop.set()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - begun
        cores, disk = (time.process_time() - cpu) / wall, (written_bytes() - before) / wall / 1e6
        raw = lanes[0].recorded * asked.cameras * HEIGHT * WIDTH * 3 / wall / 1e6
        print(
            f"{wall:.0f} s, {raw:.0f} MB/s raw pictures, {disk:.0f} MB/s to the disk, {cores:.2f} cores, "
            f"load {os.getloadavg()[0]:.1f}",
            flush=True,
        )
        begun = time.monotonic()
    print(f"{time.monotonic() - begun:.0f} s until the last episode was stored.", flush=True)
    return lanes


def written_bytes() -> int:
    text = Path("/proc/self/io").read_text(encoding="ascii")
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("write_bytes")))


def report(lanes: list[Lane]) -> None:
    print(
        "| stream | frames | dropped | recorded after [ms] p50 | p99 | max | adding one [ms] p50 | a break [ms] p50 | waiting |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for lane in lanes:
        p50, p99 = np.percentile(lane.age_ms, (50, 99))
        gap = np.median(lane.break_ms or [0.0])
        print(
            f"| {lane.name} | {lane.recorded} | {lane.dropped} | {p50:.1f} | {p99:.1f} | {max(lane.age_ms):.1f} "
            f"| {np.median(lane.add_ms):.1f} | {gap:.1f} | {lane.most_pending} |"
        )
        if lane.error:
            print(f"{lane.name}: {lane.error}")


def check(folder: Path) -> None:
    """Every byte of what was not shipped away is looked at, and every episode counted."""
    for name in ("pictures", "state"):
        stored = len((folder / name / "manifest.jsonl").read_text(encoding="ascii").splitlines())
        present = len(list((folder / name / "episodes").glob("*.zarr.zip")))
        damaged = [p for p in verify(folder / name).problems if p.fault is not Fault.MISSING]
        print(f"{name}: {stored} episodes stored, {present} still here, {len(damaged)} of them damaged")


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("seconds", 60.0), ("rate", 30.0), ("episode", 20.0), ("reserve", 15.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    for name, default in (("cameras", 4), ("realtime", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    sys.setswitchinterval(0.001)  # as `robolearn teleop` does
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        lanes = measure(Path(folder), asked)
        report(lanes)
        check(Path(folder))


if __name__ == "__main__":
    main()
