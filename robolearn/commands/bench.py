"""``robolearn bench``: run the benchmark scripts of a checkout."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

from robolearn.core.errors import RefusedError, nearest

BENCH_FOLDER = Path(__file__).resolve().parents[2] / "tests" / "bench"


class BenchmarkFailedError(Exception):
    """A benchmark ended with an exit code that is not zero, which becomes ours: 2 where it refused what it was given."""

    def __init__(self, file: Path, code: int) -> None:
        super().__init__(f"{file.name} ended with exit code {code}.")
        self.exit_code = 2 if code == 2 else 1


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
        code = subprocess.call([sys.executable, "-P", "-m", __name__, str(file), *arguments])
        if code:
            raise BenchmarkFailedError(file, code)


def _run(file: str, arguments: list[str]) -> None:
    """Run a benchmark in this process as Python would run the file; what it refuses is said in one line."""
    sys.argv = [file, *arguments]
    sys.path.insert(0, str(Path(file).parent))
    try:
        runpy.run_path(file, run_name="__main__")
    except RefusedError as refused:
        sys.stderr.write(f"{refused}\n")
        sys.exit(2)


if __name__ == "__main__":
    _run(sys.argv[1], sys.argv[2:])
