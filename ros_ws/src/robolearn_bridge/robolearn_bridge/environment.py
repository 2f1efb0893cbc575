"""Whether this process can trust the ROS it is about to load; asked before ``rclpy`` is imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from robolearn.core.errors import RefusedError

RMW = "rmw_fastrtps_cpp"
"""The only middleware that the pip wheels hold."""
ROS_PATHS = ("AMENT_PREFIX_PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "COLCON_PREFIX_PATH")
WHEELS_GUARD = "_ROS_WHEELS_BOOTSTRAP_COMPLETE"
"""Set by the wheels when they have put their libraries on ``LD_LIBRARY_PATH``; inherited by every child."""


def uses_wheels() -> bool:
    """Return whether this Python holds the pip wheels of ROS (the alternative is a sourced system installation)."""
    return any((Path(folder) / "ros_wheels_bootstrapper").is_dir() for folder in sys.path)


def require_one_ros(environ: Mapping[str, str] = os.environ, *, wheels: bool | None = None) -> None:
    """Refuse to run the pip wheels and another ROS in one process, or a middleware that the wheels lack.

    With both on the library path the loader picks one at random (the wheels build the path from a set), and a ``PYTHONPATH`` of
    another ROS shadows the wheels altogether.

    Raises:
        RefusedError: names the variable and what is wrong with it.
    """
    if not (uses_wheels() if wheels is None else wheels):
        return
    own = Path(sys.prefix).resolve()
    for variable in ROS_PATHS:
        for entry in filter(None, environ.get(variable, "").split(os.pathsep)):
            path = Path(entry).resolve()
            if not path.is_relative_to(own) and _holds_ros(path):
                raise RefusedError(
                    f"{variable} names another ROS ({entry}) while this Python ({own}) holds the ROS wheels. Use one of them: "
                    f"start from a shell in which no setup.bash was sourced, or use a Python without the wheels."
                )
    chosen = environ.get("RMW_IMPLEMENTATION", "")
    if chosen not in ("", RMW):
        raise RefusedError(f"RMW_IMPLEMENTATION={chosen!r}, but the ROS wheels hold {RMW!r} alone; unset it.")
    profile = environ.get("FASTRTPS_DEFAULT_PROFILES_FILE")
    if profile is not None and not Path(profile).is_file():
        raise RefusedError(f"FASTRTPS_DEFAULT_PROFILES_FILE={profile!r} is not a file; unset it or name a transport profile.")


def exit_unless_one_ros() -> None:
    """End the process with code 2 and the reason if :func:`require_one_ros` refuses."""
    try:
        require_one_ros()
    except RefusedError as error:
        sys.stderr.write(f"robolearn: {error}\n")
        sys.exit(2)


def foreign_environment(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return ``environ`` for a child that runs another Python: without the wheels' guard and library path."""
    return {k: v for k, v in environ.items() if k not in (WHEELS_GUARD, "LD_LIBRARY_PATH")}


def _holds_ros(path: Path) -> bool:
    """Return whether ``path`` is part of a ROS client library's installation (our own colcon install is not)."""
    markers = ("librcl.so", "rclpy", "share/rclpy", "lib/librcl.so")
    return any((path / marker).exists() for marker in markers)
