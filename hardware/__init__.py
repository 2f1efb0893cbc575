"""One file per real robot: what it is, how its driver is spoken to, and where every number is from.

Each module defines ``SPEC``, a :class:`robolearn.core.robot.RobotSpec`. Nothing here was tried on hardware; see README.md.
"""

from __future__ import annotations

import importlib
import pkgutil

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.robot import RobotSpec


def robot_names() -> tuple[str, ...]:
    """Return the names of all robots in this folder."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def load_robot(name: str) -> RobotSpec:
    """Return the spec of one robot.

    Raises:
        RefusedError: no file of that name.
    """
    if name not in robot_names():
        raise RefusedError(f"No robot {name!r} in hardware/. {nearest(name, robot_names())}")
    spec: RobotSpec = importlib.import_module(f"hardware.{name}").SPEC
    return spec
