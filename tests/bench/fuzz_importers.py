"""Damage files of every format at random and import them: read or refused by name, never a crash, a hang or another exception.

    OMP_NUM_THREADS=1 python tests/bench/fuzz_importers.py [--minutes 10] [--seed 0]

A sample of each format, ours among them, is written once. Each case copies one, damages 1 to 8 places of its files (a byte, a run
of bytes, a number in a text, a cut, a doubled or missing piece, a file that is gone or swapped) and imports the copy in a child
process, which is killed after 20 s of computing. The case's number is its seed: ``--case N`` repeats one. Exit code 1 if anything
was found.
"""

import argparse
import collections
import multiprocessing
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))

import numpy as np
import psutil
from episode_samples import CAMERA, episode, spaces

from robolearn.commands.data_convert import known_formats
from robolearn.core.errors import RefusedError
from robolearn.data.convert import export_episodes, import_episodes, open_any
from robolearn.data.formats.exchange import ExportOptions, ImportOptions, StoreSource
from robolearn.data.store import EpisodeStore
from robolearn.data.verify import verify

FORMATS = known_formats()
TARGETS = {
    "store": "store",
    "robomimic": "robomimic.hdf5",
    "zarr": "folder.zarr",
    "zarr zip": "zipped.zarr.zip",
    "rosbag": "bag",
    "lerobot": "lerobot",
    "lerobot video": "lerobot_video",
}
UNSAID = ImportOptions(task="lift", robot="panda", control_rate_hz=20.0, fidelity="exact", success="yes")
LIMIT_S = 20.0
VALUES = (b"0", b"-1", b"1", b"2147483648", b"99999999999999999999", b"1e309", b"NaN", b"null", b'"../../x"')


def write_samples(root: Path) -> None:
    with EpisodeStore.create(root / "store", spaces(camera=True), task="lift", fidelity="exact") as store:
        for length in (7, 5, 12):
            smooth = np.indices((length, 96, 96)).sum(axis=0)[..., None].repeat(3, axis=3).astype(np.uint8)  # a video keeps it
            made = episode(length, camera=True)
            store.append(replace(made, data=made.data | {CAMERA: smooth}))
    for name, target in TARGETS.items():
        if name != "store":
            options = ExportOptions(images="video" if name.endswith("video") else "png")
            source = StoreSource(EpisodeStore.open(root / "store"))
            export_episodes(source, FORMATS[name.split()[0]], root / target, options, lambda phase, steps: None)


def damaged(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with one place changed."""
    if not content:
        return rng.randbytes(rng.randrange(1, 64))
    at = rng.randrange(len(content)) if rng.random() < 0.5 else rng.randrange(min(len(content), 4096))
    length = min(len(content) - at, 1 << rng.randrange(9))
    match rng.randrange(7):
        case 0:
            return content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
        case 1:
            return content[:at] + rng.randbytes(length) + content[at + length :]
        case 2:
            return content[:at]
        case 3:
            return content[:at] + content[at + length :]
        case 4:
            return content[: at + length] + content[at:]
        case 5:
            return content[:at] + rng.choice((b"\x00", b"\xff")) * length + content[at + length :]
        case _:
            numbers = list(re.finditer(rb"-?\d+", content[:65536]))
            if not numbers:
                return content[:at]
            found = rng.choice(numbers)
            value = rng.choice(VALUES)
            return content[: found.start()] + value + content[found.end() :]


def damage(path: Path, rng: random.Random) -> None:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    for _ in range(1 + min(7, int(rng.expovariate(1.0)))):
        file = rng.choice(files)
        chance = rng.random()
        if chance < 0.03 and len(files) > 1:
            file.unlink(missing_ok=True)
        elif chance < 0.06 and len(files) > 1:
            other = rng.choice(files)
            if other.exists():
                file.write_bytes(other.read_bytes())
        else:
            file.write_bytes(damaged(file.read_bytes() if file.exists() else b"", rng))


def import_it(name: str, path: Path, target: Path) -> str:
    """Import, or verify our own; return how it ended."""
    try:
        if name == "store":
            verify(path)
        source = open_any(FORMATS, path, name.split()[0], UNSAID)
        try:
            import_episodes(source, target, lambda phase, steps: None)
        finally:
            source.close()
    except RefusedError:
        return "left something behind" if target.exists() else "refused"
    return "read"


def case(number: int, root: Path) -> tuple[str, str]:
    rng = random.Random(number)
    name = rng.choice(list(TARGETS))
    with tempfile.TemporaryDirectory(dir=root) as folder:
        original, copy = root / TARGETS[name], Path(folder) / TARGETS[name]
        if original.is_dir():
            shutil.copytree(original, copy)
        else:
            shutil.copyfile(original, copy)
        damage(copy, rng)
        return name, import_it(name, copy, Path(folder) / "imported")


def work(pipe, root: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries say on stderr what they find
    np.seterr(all="ignore")
    while (number := pipe.recv()) is not None:
        try:
            pipe.send(case(number, root))
        except BaseException:
            pipe.send(("?", traceback.format_exc()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="number of the first case")
    parser.add_argument("--case", type=int, help="repeat this one alone, in this process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_samples(root)
        if given.case is not None:
            print(*case(given.case, root))
            return 0
        return fuzz(root, given.seed, time.monotonic() + 60 * given.minutes)


def answers(pipe, pid: int) -> bool:
    """Wait for an answer for as much computing time, or five times as long by the clock: the machine may be busy."""
    child, until = psutil.Process(pid), time.monotonic() + 5 * LIMIT_S
    first = sum(child.cpu_times()[:2])
    while not pipe.poll(0.5):
        if sum(child.cpu_times()[:2]) - first > LIMIT_S or time.monotonic() > until:
            return False
    return True


def fuzz(root: Path, number: int, until: float) -> int:
    context = multiprocessing.get_context("fork")
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    found, first, process = 0, number, None
    longest = 0.0
    while time.monotonic() < until:
        if process is None:
            pipe, other = context.Pipe()
            process = context.Process(target=work, args=(other, root), daemon=True)
            process.start()
            other.close()
        began = time.monotonic()
        pipe.send(number)
        try:
            name, ended = pipe.recv() if answers(pipe, process.pid) else ("?", f"hangs: no answer in {LIMIT_S} s of computing")
        except EOFError:
            process.join()
            name, ended = "?", f"crash: exit code {process.exitcode}"
        longest = max(longest, time.monotonic() - began)
        if ended not in ("read", "refused"):
            found += 1
            print(f"case {number}: {ended}", flush=True)
            process.kill()
            process = None
        else:
            counts[name, ended] += 1
        number += 1
    for (name, ended), times in sorted(counts.items()):
        print(f"{name:14} {ended:8} {times}")
    print(f"{number - first} cases, {found} found, longest {longest:.1f} s, first case {first}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
