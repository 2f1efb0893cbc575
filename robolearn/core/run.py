"""Run folders: what was run, from which code, with which versions, seed, device and data."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from robolearn.core.errors import RefusedError

RECORDED_PACKAGES = ("robolearn", "torch", "numpy", "mujoco", "robosuite", "diffusers", "lerobot", "zarr", "gymnasium", "numba")


def provenance(
    *, seed: int | None = None, device: str | None = None, dataset: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return what is needed to run the same thing again.

    Args:
        seed: root seed of the run.
        device: torch device that was used.
        dataset: path and checksum of the episodes.
    """
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "git": git_state(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "machine": {"system": platform.platform(), "cpu": _cpu_name(), "cpu_count": os.cpu_count()},
        "seed": seed,
        "device": device,
        "dataset": dict(dataset) if dataset else None,
    }


def git_state(folder: Path) -> dict[str, object]:
    """Return the commit of the checkout and whether tracked files differ from it; nulls outside a checkout."""

    def git(*args: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(folder), *args], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def create_run_dir(path: Path, *, resume: bool = False) -> Path:
    """Create the folder of a run.

    Raises:
        RefusedError: it holds something already and ``resume`` is not set, it is missing although ``resume`` is set, or it cannot
            be written.
    """
    if resume and not path.is_dir():
        raise RefusedError(f"Nothing to resume at {path}.")
    if not resume and path.exists() and any(path.iterdir() if path.is_dir() else [path]):
        raise RefusedError(f"{path} exists and is not empty; choose another run_dir or resume it with --resume.")
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".write-test"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RefusedError(f"Cannot write to run folder {path}: {error.strerror or error}.") from error
    return path


def write_json(path: Path, data: object) -> None:
    """Write JSON so that a reader sees the old file or the whole new one, also after a power loss."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        json.dump(data, stream, indent=2)
        stream.write("\n")
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)


def read_json(path: Path, *, what: str) -> dict[str, object]:
    """Read a JSON object.

    Raises:
        RefusedError: the file is missing or is not a JSON object; the message says ``what`` it should have been.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedError(f"No {what} at {path}: {error.strerror}.") from error
    except ValueError as error:
        raise RefusedError(f"{path} is not a {what}: {error}.") from error
    if not isinstance(data, dict):
        raise RefusedError(f"{path} is not a {what}: a JSON object was expected, got {type(data).__name__}.")
    return data


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
