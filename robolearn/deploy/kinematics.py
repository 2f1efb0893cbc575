"""Workspace box and self-collision by forward kinematics of an installed MuJoCo model; a guard for the safety filter."""

from __future__ import annotations

from collections import Counter

import mujoco
import numpy as np

from robolearn.core.compiled import compiled
from robolearn.core.errors import RefusedError
from robolearn.core.robot import RobotSpec
from robolearn.core.types import Array


class WorkspaceGuard:
    """Tells which joint positions keep every tool centre point in the box and the listed bodies apart.

    Distances are between the convex hulls of the bodies' collision geometry; only bodies of one pair are compared.
    """

    def __init__(self, spec: RobotSpec) -> None:
        """Load the robot's model.

        Raises:
            RefusedError: the robot has no model, it is not installed, or a joint or body is not in it.
        """
        if spec.model is None:
            raise RefusedError(f"Robot {spec.name!r} has no kinematic model, so its workspace cannot be checked.")
        self._spec, self._box = spec, (np.array(spec.workspace.low, float), np.array(spec.workspace.high, float))
        self._model = mujoco.MjModel.from_xml_path(str(spec.model.locate()))
        self._data = mujoco.MjData(self._model)
        self._qpos, self._xpos, self._xmat, self._centres = (
            self._data.qpos,
            self._data.xpos,
            self._data.xmat,
            self._data.geom_xpos,
        )  # views of MuJoCo's memory
        joints = [self._id(mujoco.mjtObj.mjOBJ_JOINT, joint) for joint in spec.model.joints]
        self._address = np.array(self._model.jnt_qposadr[joints])
        self._base = self._id(mujoco.mjtObj.mjOBJ_BODY, spec.model.base_body)
        self._tcp = np.array([self._id(mujoco.mjtObj.mjOBJ_BODY, body) for body in spec.model.tcp_bodies])
        self._offset = np.array(spec.model.tcp_offset_m, float)
        self._names, self._pairs = self._pairs_of(*spec.workspace.collision_pairs)
        self._reach = np.array(self._model.geom_rbound)
        self.violation(self._qpos[self._address])  # compiles what a tick needs
        self.counts: Counter[str] = Counter()
        """What was not allowed, by name: ``workspace`` or ``<body>/<body>``."""

    def __call__(self, positions: Array) -> Array:
        """Return which rows (b,) of ``positions`` (m, b, a) are allowed in all m; columns after the joints are not looked at."""
        allowed = np.ones(positions.shape[1], bool)
        for row in range(positions.shape[1]):
            # The end of the stop plan, which comes last, is the most likely to be forbidden.
            for position in positions[::-1, row, : self._spec.dim]:
                if reason := self.violation(position, margin_m=self._spec.workspace.margin_m):
                    allowed[row] = False
                    self.counts[reason] += 1
                    break
        return allowed

    def violation(self, position: Array, *, margin_m: float = 0.0) -> str:
        """Return what the joint positions (n,) [rad] violate, or "" if nothing."""
        self._move(position)
        if _outside(self.tcp_positions(), *self._box, margin_m):
            return "workspace"
        limit_m = float(self._spec.workspace.min_distance_m + margin_m)
        near = -1
        while (near := _next_near(self._centres, self._reach, self._pairs, limit_m, near + 1)) >= 0:
            first, second = self._pairs[near].tolist()
            if mujoco.mj_geomDistance(self._model, self._data, first, second, limit_m, None) < limit_m:
                return self._names[near]
        return ""

    def tcp_positions(self) -> Array:
        """Return the tool centre points (arms, 3) in the base frame [m] at the last position that was looked at."""
        return _tool_points(self._xpos, self._xmat, self._base, self._tcp, self._offset)

    @property
    def spec(self) -> RobotSpec:
        """The robot."""
        return self._spec

    def tcp_at(self, position: Array) -> Array:
        """Return the tool centre points (arms, 3) in the base frame [m] at a joint position (n,)."""
        self._move(position)
        return self.tcp_positions()

    def distance(self, first: str, second: str, position: Array, *, horizon_m: float = 1.0) -> float:
        """Return the distance of two bodies [m] at a joint position (n,), at most ``horizon_m``; negative if they overlap."""
        self._move(position)
        closest_m, near, pairs = float(horizon_m), -1, self._pairs_of((first, second))[1]
        while (near := _next_near(self._centres, self._reach, pairs, closest_m, near + 1)) >= 0:
            a, b = pairs[near].tolist()
            closest_m = min(closest_m, mujoco.mj_geomDistance(self._model, self._data, a, b, closest_m, None))
        return closest_m

    def _move(self, position: Array) -> None:
        self._qpos[self._address] = position
        mujoco.mj_kinematics(self._model, self._data)

    def _pairs_of(self, *bodies: tuple[str, str]) -> tuple[list[str], Array]:
        """Return the geoms (n, 2) to compare for some pairs of bodies, and which pair each of them belongs to."""
        found = [("/".join(pair), a, b) for pair in bodies for a in self._geoms(pair[0]) for b in self._geoms(pair[1])]
        return [name for name, _, _ in found], np.array([(a, b) for _, a, b in found], np.int64).reshape(-1, 2)

    def _geoms(self, body: str) -> list[int]:
        """Return the collision geoms of a body and of what is welded to it."""
        wanted = self._model.body_weldid[self._id(mujoco.mjtObj.mjOBJ_BODY, body)]
        welded = self._model.body_weldid[self._model.geom_bodyid] == wanted
        found = np.flatnonzero(welded & (self._model.geom_contype > 0))
        if not len(found):
            raise RefusedError(f"Body {body!r} of robot {self._spec.name!r} has no collision geometry.")
        return [int(geom) for geom in found]

    def _id(self, kind: mujoco.mjtObj, name: str) -> int:
        found = int(mujoco.mj_name2id(self._model, kind, name))
        if found < 0:
            raise RefusedError(f"The model of robot {self._spec.name!r} has no {kind.name} {name!r}.")
        return found


@compiled
def _tool_points(xpos: Array, xmat: Array, base: int, tools: Array, offset: Array) -> Array:
    """Return the points (arms, 3) in the base's frame that lie at ``offset`` (3,) in each tool's; from positions and matrices."""
    points = np.zeros((len(tools), 3))
    for arm in range(len(tools)):
        tool = tools[arm]
        for axis in range(3):
            away = xpos[tool, axis] - xpos[base, axis]
            for k in range(3):
                away += xmat[tool, 3 * axis + k] * offset[k]
            for k in range(3):
                points[arm, k] += away * xmat[base, 3 * axis + k]
    return points


@compiled
def _outside(points: Array, low: Array, high: Array, margin_m: float) -> bool:
    """Return whether one of the points (arms, 3) is not inside the box (3,), (3,)."""
    for arm in range(len(points)):
        for axis in range(3):
            if not low[axis] + margin_m <= points[arm, axis] <= high[axis] - margin_m:
                return True
    return False


@compiled
def _next_near(centres: Array, reach: Array, pairs: Array, limit_m: float, begin: int) -> int:
    """Return the first of ``pairs`` (n, 2) from ``begin`` on with bounding spheres nearer than ``limit_m``, or -1."""
    for k in range(begin, len(pairs)):
        a, b = pairs[k, 0], pairs[k, 1]
        x, y, z = centres[a, 0] - centres[b, 0], centres[a, 1] - centres[b, 1], centres[a, 2] - centres[b, 2]
        if np.sqrt(x * x + y * y + z * z) - reach[a] - reach[b] < limit_m:
            return k
    return -1
