"""Workspace box and self-collision by forward kinematics of an installed MuJoCo model; a guard for the safety filter."""

from __future__ import annotations

from collections import Counter

import mujoco
import numpy as np

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
        self._spec, self._box = spec, (np.array(spec.workspace.low), np.array(spec.workspace.high))
        self._model = mujoco.MjModel.from_xml_path(str(spec.model.locate()))
        self._data = mujoco.MjData(self._model)
        self._address = [self._model.jnt_qposadr[self._id(mujoco.mjtObj.mjOBJ_JOINT, j)] for j in spec.model.joints]
        self._base = self._id(mujoco.mjtObj.mjOBJ_BODY, spec.model.base_body)
        self._tcp = [self._id(mujoco.mjtObj.mjOBJ_BODY, body) for body in spec.model.tcp_bodies]
        self._offset = np.array(spec.model.tcp_offset_m)
        pairs = spec.workspace.collision_pairs
        self._pairs = [tuple(self._geoms(body) for body in pair) for pair in pairs]
        self._reach = self._model.geom_rbound
        self.counts: Counter[str] = Counter()
        """What was not allowed, by name: ``workspace`` or ``<body>/<body>``."""

    def __call__(self, positions: Array) -> Array:
        """Return which rows (b,) of ``positions`` (m, b, a) are allowed in all m; columns after the joints are not looked at."""
        allowed = np.ones(positions.shape[1], bool)
        for row in range(positions.shape[1]):
            # The end of the stop plan, which comes last, is the most likely to be forbidden.
            reasons = (self.violation(q, margin_m=self._spec.workspace.margin_m) for q in positions[::-1, row, : self._spec.dim])
            reason = next((r for r in reasons if r), "")
            allowed[row] = not reason
            if reason:
                self.counts[reason] += 1
        return allowed

    def violation(self, position: Array, *, margin_m: float = 0.0) -> str:
        """Return what the joint positions (n,) [rad] violate, or "" if nothing."""
        self._move(position)
        low, high = self._box[0] + margin_m, self._box[1] - margin_m
        for tcp in self.tcp_positions():
            if not ((tcp >= low) & (tcp <= high)).all():
                return "workspace"
        limit_m = self._spec.workspace.min_distance_m + margin_m
        for names, (first, second) in zip(self._spec.workspace.collision_pairs, self._pairs, strict=True):
            if self._closest(first, second, limit_m) < limit_m:
                return "/".join(names)
        return ""

    def tcp_positions(self) -> Array:
        """Return the tool centre points (arms, 3) in the base frame [m] at the last position that was looked at."""
        rotation = self._data.xmat[self._base].reshape(3, 3)
        tcp = self._data.xpos[self._tcp] + self._data.xmat[self._tcp].reshape(-1, 3, 3) @ self._offset
        return (tcp - self._data.xpos[self._base]) @ rotation

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
        return self._closest(self._geoms(first), self._geoms(second), horizon_m)

    def _move(self, position: Array) -> None:
        self._data.qpos[self._address] = position
        mujoco.mj_kinematics(self._model, self._data)

    def _closest(self, first: list[int], second: list[int], horizon_m: float) -> float:
        """Return the smallest distance of two lists of geoms, at most ``horizon_m``; bounding spheres sort out the far ones."""
        closest, centre = horizon_m, self._data.geom_xpos
        for a in first:
            for b in second:
                apart = np.linalg.norm(centre[a] - centre[b]) - self._reach[a] - self._reach[b]
                if apart < closest:
                    closest = min(closest, mujoco.mj_geomDistance(self._model, self._data, a, b, closest, None))
        return float(closest)

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
