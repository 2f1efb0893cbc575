"""``robolearn bench``: run the benchmark scripts of a checkout."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from robolearn.core.errors import RefusedError, nearest

BENCH_FOLDER = Path(__file__).resolve().parents[2] / "tests" / "bench"


class BenchmarkFailedError(Exception):
    """A benchmark ended with an exit code that is not zero, which becomes ours: 2 where it refused what it was given."""

    def __init__(self, file: Path, code: int) -> None:
        super().__init__(f"{file.name} ended with exit code {code}.")
        self.exit_code = code if code in (1, 2) else 1


def bench(name: str, arguments: list[str]) -> None:
    """Run ``tests/bench/bench_<name>.py``, or all of them.

    Raises:
        RefusedError: there is no such benchmark, or this is not a checkout.
        BenchmarkFailedError: the benchmark itself failed.
    """
    files = {file.stem.removeprefix("bench_"): file for file in sorted(BENCH_FOLDER.glob("bench_*.py"))}
    if not files:
        raise RefusedError(f"Benchmarks are part of a checkout of the repository; none are at {BENCH_FOLDER}.")
    if name != "all" and name not in files:
        raise RefusedError(f"Unknown benchmark {name!r}. {nearest(name, [*files, 'all'])}")
    for file in files.values() if name == "all" else [files[name]]:
        code = subprocess.call([sys.executable, str(file), *arguments])
        if code:
            raise BenchmarkFailedError(file, code)
