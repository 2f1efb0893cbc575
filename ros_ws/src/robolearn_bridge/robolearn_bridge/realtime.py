"""What a process needs so as not to wait for others: priority, memory, cores that are awake, and no lock that others can hold."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from robolearn.core.errors import RefusedError

AWAKE = Path("/dev/cpu_dma_latency")
THREADS = Path("/proc/self/task")
LOCK_ALL = 1 | 2 | 4
"""MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT of mlockall(2): what was touched once stays, 0.4 instead of 0.8 GB."""


class RealTime:
    """The real-time settings of this process while something moves."""

    def __init__(self) -> None:
        """Change nothing yet."""
        self._awake = -1

    def take(self, priority: int, *, warn: Callable[[str], object]) -> None:
        """Put the threads of this process before the ordinary ones of the machine, lock its memory and keep cores awake.

        Args:
            priority: SCHED_FIFO priority, 1 to 99.
            warn: told what was not granted but can be done without.

        Raises:
            RefusedError: the priority was not granted.
        """
        try:
            for thread in THREADS.iterdir():  # the middleware's own threads among them
                os.sched_setscheduler(int(thread.name), os.SCHED_FIFO, os.sched_param(priority))
        except (OSError, ValueError) as error:
            raise RefusedError(
                f"realtime_priority={priority} was not granted ({error}); allow it with `ulimit -r` or set it to 0."
            ) from error
        # Pages of code that is rarely used, as stopping is, would have to be read from the disk again.
        if ctypes.CDLL(None, use_errno=True).mlockall(LOCK_ALL):
            reason = os.strerror(ctypes.get_errno())
            warn(f"The gate's memory is not locked ({reason}); allow it with `ulimit -l unlimited`.")
        if self._awake < 0 and os.access(AWAKE, os.W_OK):
            # Held open, as the kernel wants it: 0 us is the longest that a core may take to wake up (Documentation/power/pm_qos).
            self._awake = os.open(AWAKE, os.O_WRONLY)
            os.write(self._awake, bytes(4))

    def release(self) -> None:
        """Let cores sleep again."""
        if self._awake >= 0:
            os.close(self._awake)
            self._awake = -1


def uses_shared_memory() -> bool:
    """Return whether Fast DDS carries messages of this process in shared memory, where another process may hold a lock.

    What runs is asked, not the transport profile: with ``ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST`` rmw_fastrtps adds shared
    memory to any profile.
    """
    names = []
    for thread in THREADS.iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # one that has ended by now
            names.append((thread / "comm").read_text())
    return any(name.startswith("dds.shm") for name in names)
