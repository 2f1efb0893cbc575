"""Starts the processes of a launch file where ``ros2 launch`` is not installed, watches them, and ends them in order."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from robolearn.core.errors import RefusedError
from robolearn.deploy.launch_file import NodeProcess

ENDING_PATIENCE_S = 8.0
"""Between SIGTERM, after which every node sends its safe command, and SIGKILL."""
LOG_TAIL_LINES = 12
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)
DOMAINS = range(1, 102)
"""Domains whose ports stay below those that the kernel gives away; 0 is everybody's."""

RESERVATIONS = Path("/tmp")
"""One folder for the whole machine, whatever TMPDIR says."""


def reserve_domain() -> tuple[int, IO[bytes]]:
    """Return a ROS domain that no other process of this machine has reserved, and the file that holds the reservation while open.

    Raises:
        RefusedError: all are taken.
    """
    for domain in DOMAINS:
        try:
            file = (RESERVATIONS / f"robolearn_ros_domain_{domain}.lock").open("ab")
        except OSError:  # another user's
            continue
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            continue
        return domain, file
    raise RefusedError(f"Every ROS domain in {DOMAINS} is in use on this machine.")


class WorkspacePackages:
    """The ROS packages of a checkout (``ros_ws/src``), run from their sources by this Python."""

    def __init__(self, root: Path) -> None:
        if not root.is_dir():
            raise RefusedError(f"No ROS workspace at {root}; `robolearn deploy` needs a checkout of the repository.")
        self._root = root

    def share(self, package: str) -> Path:
        """Return the folder that holds a package's ``launch`` and ``config``."""
        path = self._root / package
        if not (path / "package.xml").is_file():
            raise RefusedError(
                f"No ROS package {package!r} in {self._root}; it holds {sorted(p.name for p in self._root.iterdir())}."
            )
        return path

    def command(self, process: NodeProcess) -> list[str]:
        """Return how a node's executable is started: the module of that name in its package."""
        if not (self.share(process.package) / process.package / f"{process.executable}.py").is_file():
            raise RefusedError(f"Package {process.package!r} has no executable {process.executable!r}.")
        return [sys.executable, "-m", f"{process.package}.{process.executable}"]

    def python_path(self, environ: Mapping[str, str]) -> str:
        """Return a PYTHONPATH with every package in front."""
        own = [str(p.parent) for p in sorted(self._root.glob("*/package.xml"))]
        return os.pathsep.join([*own, *filter(None, [environ.get("PYTHONPATH", "")])])


def _end_with(parent: int) -> Callable[[], None]:
    """Return what a child does first: be asked to end (SIGTERM, so the gate ramps down) when the launcher ends, even by SIGKILL.

    The kernel means the launcher's thread that started the child; it must live as long as the launcher.
    """

    def ask() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before it could be asked for its end
            os._exit(0)

    return ask


class Launched:
    """Running processes; leaving the ``with`` block ends them: SIGTERM in the order of the file, then SIGKILL."""

    def __init__(
        self, processes: Sequence[NodeProcess], packages: WorkspacePackages, *, log_folder: Path, environ: Mapping[str, str]
    ) -> None:
        log_folder.mkdir(parents=True, exist_ok=True)
        self._packages, self._logs = packages, log_folder
        self._environ = dict(environ) | {
            "PYTHONPATH": packages.python_path(environ),
            "ROS_LOG_DIR": str(log_folder),
            "OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", "1"),
        }
        # Commands are made before anything starts: a file with one bad node starts none.
        self._commands = {p.name: (packages.command(p), p) for p in processes}
        if len(self._commands) != len(processes):
            raise RefusedError(f"The launch file names a node twice: {sorted(p.name for p in processes)}.")
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Launched:
        # Nodes read their parameter files when they get to it, so the files live as long as the nodes.
        self._scratch = Path(tempfile.mkdtemp(prefix="robolearn_launch_"))
        for name, (command, process) in self._commands.items():
            with (self._logs / f"{name}.log").open("wb") as log:
                self._running[name] = subprocess.Popen(
                    [*command, *process.ros_arguments(self._scratch)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=self._environ | dict(process.environment),
                    start_new_session=True,
                    preexec_fn=_end_with(os.getpid()),
                )
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._running.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + ENDING_PATIENCE_S
        for process in self._running.values():
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for file in self._scratch.iterdir():
            file.unlink()
        self._scratch.rmdir()

    def pid(self, name: str) -> int:
        """Return a node's process id."""
        return self._running[name].pid

    def exit_code(self, name: str) -> int | None:
        """Return a node's exit code, None while it runs."""
        return self._running[name].poll()

    def wait_for(self, name: str, timeout_s: float) -> None:
        """Wait until the node ``name`` has ended with code 0.

        Raises:
            RefusedError: it failed or took longer, or another node ended first; the message ends with the log's last lines.
        """
        deadline = time.monotonic() + timeout_s
        while (code := self._running[name].poll()) is None:
            for other, process in self._running.items():
                if other != name and process.poll() is not None:
                    raise RefusedError(f"{other} ended with code {process.returncode} before its time.\n{self.tail(other)}")
            if time.monotonic() > deadline:
                raise RefusedError(f"{name} did not end within {timeout_s:.0f} s.\n{self.tail(name)}")
            time.sleep(0.05)
        if code != 0:
            raise RefusedError(f"{name} ended with code {code}.\n{self.tail(name)}")

    def tail(self, name: str) -> str:
        """Return the last lines of a node's log."""
        lines = (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])
