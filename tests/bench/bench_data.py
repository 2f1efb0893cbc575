"""Windows served and episodes written per second, beside lerobot 0.6.1 in the same run; prints Markdown tables.

    OMP_NUM_THREADS=1 python tests/bench/bench_data.py

One thread. CPU time of this process, rounds of the candidates interleaved, the median of the rounds. Data: 50 episodes of 200
steps, state 11 + environment state 12, action 7; windows of 2 observations and 16 actions. Images: 5 episodes of 100 steps,
96 x 96 x 3.
"""

import contextlib
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "unit"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from lerobot_samples import open_lerobot, write_lerobot

from robolearn.commands.data_convert import known_formats
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, Episode, FeatureSpec, Spaces
from robolearn.data.convert import export_episodes, import_episodes, open_any
from robolearn.data.dataset import WindowConfig, WindowDataset
from robolearn.data.formats.exchange import ExportOptions, ImportOptions, StoreSource
from robolearn.data.header import ACTION_SENT, T_WALL
from robolearn.data.store import EpisodeStore

ROUNDS = 7
CAMERA = "observation.images.agentview"
PANDA = Spaces(
    "panda",
    {STATE: FeatureSpec((11,)), ENVIRONMENT_STATE: FeatureSpec((12,))},
    FeatureSpec((7,)),
    (-1.0,) * 7,
    (1.0,) * 7,
    20.0,
)
PANDA_CAMERA = Spaces(
    "panda", {**PANDA.observation, CAMERA: FeatureSpec((96, 96, 3), "uint8")}, PANDA.action, *[(-1.0,) * 7, (1.0,) * 7], 20.0
)


def smooth_episode(spaces: Spaces, length: int, rng: np.random.Generator) -> Episode:
    """Random walks and a moving gradient with a noisy patch: neither incompressible nor constant."""

    def walk(d: int) -> np.ndarray:
        return rng.standard_normal((length, d)).cumsum(0).astype(np.float32) / 10

    data = {STATE: walk(11), ENVIRONMENT_STATE: walk(12), ACTION: walk(7), ACTION_SENT: walk(7), T_WALL: np.arange(length) / 20}
    if CAMERA in spaces.observation:
        row, column, shift = np.arange(96)[:, None, None], np.arange(96)[None, :, None], np.arange(length)[:, None, None, None]
        image = ((row + 2 * column + 2 * shift + np.array([0, 30, 60])) % 256).astype(np.uint8)
        image[:, 20:50, 20:50] = rng.integers(0, 256, (length, 30, 30, 3))
        data[CAMERA] = image
    return Episode(data, success=True, seed=0)


def interleaved(candidates: dict[str, tuple[int, Callable[[], None]]]) -> dict[str, float]:
    """Return items per CPU-second of each candidate (items per call, call), the median of interleaved rounds."""
    for _, call in candidates.values():
        call()
    rates: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(ROUNDS):
        for name, (items, call) in candidates.items():
            begun = time.process_time()
            call()
            rates[name].append(items / (time.process_time() - begun))
    return {name: statistics.median(values) for name, values in rates.items()}


def repeat_batches(dataset: WindowDataset, batch: int, count: int) -> tuple[int, Callable[[], None]]:
    indices = torch.randint(len(dataset), (count, batch), generator=torch.Generator().manual_seed(0))

    def run() -> None:
        for rows in indices:
            dataset.batch(rows)

    return batch * count, run


def lerobot_batches(dataset: object, batch: int, count: int) -> tuple[int, Callable[[], None]]:
    loader = torch.utils.data.DataLoader(dataset, batch_size=batch, shuffle=True, num_workers=0)  # type: ignore[arg-type]

    def run() -> None:
        for _, _ in zip(range(count), loader, strict=False):
            pass

    return batch * count, run


def state_windows(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeStore.create(folder / "state", PANDA, task="bench", fidelity="native") as store:
        for _ in range(50):
            store.append(smooth_episode(PANDA, 200, rng))
    ours = WindowDataset(store, WindowConfig(2, 16), episodes=range(50))
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        write_lerobot(store, folder / "lerobot")
        theirs = open_lerobot(folder / "lerobot", store, obs_horizon=2, pred_horizon=16)
    candidates = {
        f"robolearn WindowDataset, batch {b}": repeat_batches(ours, b, max(20, 200_000 // b)) for b in (64, 256, 1024, 4096)
    }
    candidates["lerobot 0.6.1 LeRobotDataset + DataLoader, batch 64"] = lerobot_batches(theirs, 64, 4)
    rates = interleaved(candidates)
    base = rates["lerobot 0.6.1 LeRobotDataset + DataLoader, batch 64"]
    print("\n| state windows (2 observations, 16 actions) | windows/s | against lerobot |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / base:,.0f}x |")


def image_windows(folder: Path) -> None:
    rng = np.random.default_rng(0)
    with EpisodeStore.create(folder / "image", PANDA_CAMERA, task="bench", fidelity="native") as store:
        for _ in range(5):
            store.append(smooth_episode(PANDA_CAMERA, 100, rng))
    candidates = {
        f"robolearn, 2 frames of 96 x 96, batch 64, {where}": repeat_batches(
            WindowDataset(store, WindowConfig(2, 16, image_cache_gib=gib), episodes=range(5)), 64, 5
        )
        for where, gib in (("cached in memory", 1), ("streamed from the store", 0))
    }
    export(folder / "image", "lerobot", folder / "video", images="video")
    deltas = {
        CAMERA: [-1 / 20, 0.0],
        STATE: [-1 / 20, 0.0],
        ENVIRONMENT_STATE: [-1 / 20, 0.0],
        ACTION: [i / 20 for i in range(16)],
    }
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    theirs = LeRobotDataset("local/video", root=folder / "video", delta_timestamps=deltas)
    peer = "lerobot 0.6.1 LeRobotDataset, h264 video, batch 64"
    candidates[peer] = lerobot_batches(theirs, 64, 2)
    rates = interleaved(candidates)
    print("\n| image windows | windows/s | against lerobot |\n|---|---|---|")
    for name, rate in rates.items():
        print(f"| {name} | {rate:,.0f} | {rate / rates[peer]:,.0f}x |")


def export(store: Path, name: str, target: Path, **options: str) -> None:
    with quiet():
        source = StoreSource(EpisodeStore.open(store))
        export_episodes(source, known_formats()[name], target, ExportOptions(**options), lambda phase, steps: None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep video codecs, which write to the descriptor itself, from stderr."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def conversion(folder: Path) -> None:
    """Seconds of recording per second of the clock, reading back and comparing included; 5 episodes of 100 steps at 20 Hz."""
    recorded_s = 5 * 100 / 20
    print("\n| conversion of a 96 x 96 camera and states, read back and compared | x real time |\n|---|---|")
    kinds = [
        ("robomimic", "hdf5"),
        ("zarr", "zarr"),
        ("zarr", "zarr.zip"),
        ("rosbag", "bag"),
        ("lerobot", "png"),
        ("lerobot", "mp4"),
    ]
    for name, target in kinds:
        path = folder / f"converted.{target}"
        options = {"images": "video"} if target == "mp4" else {}
        out_s = timed(partial(export, folder / "image", name, path, **options))
        print(f"| store to {name} ({target}) | {recorded_s / out_s:.1f} |")
        source = open_any(known_formats(), path, name, ImportOptions())
        back_s = timed(partial(import_episodes, source, folder / f"back_{target}", lambda phase, steps: None))
        print(f"| {name} ({target}) to store | {recorded_s / back_s:.1f} |")
        source.close()


def writing(folder: Path) -> None:
    """Wall-clock time, disk included: that is what a recording waits for."""
    rng = np.random.default_rng(0)
    print("\n| writing, wall-clock [ms] | median | p99 |\n|---|---|---|")
    for name, spaces in (("state", PANDA), ("state and one 96 x 96 camera", PANDA_CAMERA)):
        with EpisodeStore.create(folder / f"write {name}", spaces, task="bench", fidelity="native") as store:
            episodes = [smooth_episode(spaces, 200, rng) for _ in range(10)]
            appends = [timed(partial(store.append, episode)) for episode in episodes]
            frames, finishes = [], []
            for episode in episodes:
                recording = store.record()
                frames += [timed(partial(recording.add_frame, step, t_wall=0.0)) for step in frame_dicts(episode)]
                finishes.append(timed(partial(recording.finish, success=True)))
        for what, times in (
            (f"add_frame, {name}", frames),
            (f"append of 200 steps, {name}", appends),
            (f"finish of 200 steps, {name}", finishes),
        ):
            print(f"| {what} | {np.median(times) * 1e3:.3f} | {np.quantile(times, 0.99) * 1e3:.3f} |")


def frame_dicts(episode: Episode) -> Iterator[dict]:
    for step in range(len(episode)):
        yield {key: array[step] for key, array in episode.data.items() if key != T_WALL}


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def main() -> None:
    torch.set_num_threads(1)
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "zarr", "lerobot"))
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, one thread used; {versions}")
    with tempfile.TemporaryDirectory() as folder:
        state_windows(Path(folder))
        image_windows(Path(folder))
        conversion(Path(folder))
        writing(Path(folder))


if __name__ == "__main__":
    main()
