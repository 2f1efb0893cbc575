"""Sustained recording: cameras of 480 x 640 at 30 Hz and a state at 100 Hz, episode after episode.

    OMP_NUM_THREADS=1 nice -n -10 python tests/bench/bench_write.py [--seconds 600] [--cameras 4] [--rate 30]

A store keeps one rate, so two recorders run in this process, as for a robot whose arm is recorded faster than its
cameras: one takes all pictures with a state at 30 Hz, one the state alone at 100 Hz; each in a thread, at absolute
deadlines. A tick that comes a whole period late is a dropped frame; those at the break between two episodes, where a
person would put the scene in order, are counted apart. Pictures are rendered views of a moving arm with the noise of a
sensor (standard deviation 2 grey levels, another one in each of 64 pictures), since without it any compressor is fast.
Stored episodes but the last two are deleted as they are finished, as somebody who ships them away would: ten minutes
are 66 GB raw. The run ends by itself where less than ``--reserve`` GiB are left on the disk.
"""

import argparse
import contextlib
import os
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
from robolearn.teleop.pace import Pace
from robolearn.teleop.recorder import Recorder, Sample, Stamp
from sim_envs.task import EnvOptions, make_env

HEIGHT, WIDTH, STATES, ACTIONS = 480, 640, 14, 7
POOL = 64
"""Pictures that are made beforehand; making them is the cameras' work and not the recorder's."""
NOISE = 2.0


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
    pace: Pace = field(init=False)
    recorder: Recorder = field(init=False)
    recorded: int = 0
    missed_at_breaks: int = 0
    add_ms: list[float] = field(default_factory=list)
    break_ms: list[float] = field(default_factory=list)
    most_pending: int = 0
    error: str = ""

    def __post_init__(self) -> None:
        self.pace = Pace(self.store.header.spaces.control_rate_hz)
        self.recorder = Recorder(self.store)

    def run(self, stop: threading.Event) -> None:
        steps = round(self.episode_s * self.store.header.spaces.control_rate_hz)
        try:
            self.recorder.start()
            while not stop.is_set():
                before = self.pace.missed
                self.pace.wait()
                if self.recorder.frames == 0 and self.recorded:
                    self.missed_at_breaks += self.pace.missed - before
                begun = time.perf_counter()
                self.recorder.add(self._sample(self.recorded))
                self.add_ms.append((time.perf_counter() - begun) * 1e3)
                self.recorded += 1
                if self.recorder.frames == steps:
                    begun = time.perf_counter()
                    self.recorder.save(success=True)
                    self.recorder.start()
                    self.break_ms.append((time.perf_counter() - begun) * 1e3)
                    for done in self.recorder.finished():
                        done.future.result()
                    self.most_pending = max(self.most_pending, self.recorder.pending)
            self.recorder.save(success=True)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            stop.set()

    def _sample(self, step: int) -> Sample:
        observation = {STATE: np.sin(step / 50 + np.arange(STATES)).astype(np.float32)}
        if self.pictures is not None:
            # Every camera copies its picture into a new array, as a driver does.
            for n, key in enumerate(k for k in self.store.header.spaces.observation if k != STATE):
                observation[key] = self.pictures[(step + 17 * n) % POOL].copy()
        action = np.cos(step / 50 + np.arange(ACTIONS)).astype(np.float32)
        return Sample(observation, action, action, True, dict.fromkeys([*observation, ACTION_SENT], Stamp.now()))


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
            lanes.append(Lane(name, closing.enter_context(store), shown, asked.episode))
        threads = [threading.Thread(target=lane.run, args=(stop,)) for lane in lanes]
        threads.append(threading.Thread(target=ship, args=(folder, stop, asked.reserve)))
        begun, cpu, before = time.monotonic(), time.process_time(), written_bytes()
        for thread in threads:
            thread.start()
        last = begun
        while not stop.wait(max(0.0, min(last + 30, begun + asked.seconds) - time.monotonic())):
            last = time.monotonic()
            waiting = sum(f.stat().st_size for f in (folder / "pictures" / "unfinished").glob("*.journal")) / 1e9
            print(
                f"{last - begun:5.0f} s: dropped {[lane.pace.missed for lane in lanes]}, raw on disk {waiting:.1f} GB, "
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
        "| stream | frames | dropped | at breaks | adding one [ms] p50 | p99 | max | a break [ms] p50 | max | episodes waiting |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for lane in lanes:
        p50, p99 = np.percentile(lane.add_ms, (50, 99))
        gap = lane.break_ms or [0.0]
        print(
            f"| {lane.name} | {lane.recorded} | {lane.pace.missed - lane.missed_at_breaks} | {lane.missed_at_breaks} "
            f"| {p50:.1f} | {p99:.1f} | {max(lane.add_ms):.1f} | "
            f"{np.median(gap):.1f} | {max(gap):.1f} | {lane.most_pending} |"
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
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    sys.setswitchinterval(0.001)  # as `robolearn teleop` does
    with tempfile.TemporaryDirectory(dir=asked.folder) as folder:
        lanes = measure(Path(folder), asked)
        report(lanes)
        check(Path(folder))


if __name__ == "__main__":
    main()
