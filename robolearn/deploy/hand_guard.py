"""Workspace box and self-collision for robots that are commanded by rates of their hands, such as OSC pose deltas."""

from __future__ import annotations

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from robolearn.deploy.kinematics import WorkspaceGuard

LOOK_AHEAD_S = 0.15
"""How far ahead the measured motion is continued: longer than a control step and the braking of a rate that becomes zero [s]."""
_MOTIONS = ("dx", "dy", "dz")


class HandGuard:
    """Lets no hand move farther out of its box, and stops the robot when listed bodies approach each other too closely.

    What a rate will do to the joints is the driver's secret, so the guard goes by what is measured: where the joints are, and
    where they will be after ``LOOK_AHEAD_S`` if they go on as they do. A rate that leads out through a face of the box becomes
    zero once that place is outside; the other rates stay, so that a hand slides along the face and can always come back. Bodies
    are judged by their distance at that place and by whether it shrinks.
    """

    def __init__(self, guard: WorkspaceGuard, names: tuple[str, ...]) -> None:
        """``names`` of the rates; ``dx dy dz`` (with any prefix) once for each arm, along the axes of the robot's base.

        Raises:
            RefusedError: the rates of an arm's motion are missing.
        """
        self._guard = guard
        workspace, arms = guard.spec.workspace, len(guard.spec.tcp)
        columns = [[i for i, name in enumerate(names) if name == m or name.endswith(f"_{m}")] for m in _MOTIONS]
        if any(len(found) != arms for found in columns):
            raise RefusedError(f"Robot {guard.spec.name!r} has {arms} arms; the rates {names} do not move each by {_MOTIONS}.")
        self._columns = np.array(columns).T
        self._low = np.array(workspace.low) + workspace.margin_m
        self._high = np.array(workspace.high) - workspace.margin_m
        self._limit_m = workspace.min_distance_m + workspace.margin_m
        self._position = self._rate = np.full(guard.spec.dim, np.nan)
        self._stamp_s = -np.inf

    def on_measured(self, position: Array, *, stamp_s: float) -> None:
        """Take measured joint positions (n,) [rad] and when they were measured [s]."""
        apart_s = stamp_s - self._stamp_s
        if apart_s <= 0:
            return
        moving = np.isfinite(self._position).all() and apart_s < LOOK_AHEAD_S
        self._rate = (position - self._position) / apart_s if moving else np.zeros_like(position)
        self._position, self._stamp_s = position.copy(), stamp_s

    def limit(self, rates: Array) -> tuple[Array, str]:
        """Return rates (a,) that lead no farther out, and why the robot must stop, or ""."""
        if not np.isfinite(self._position).all():
            return np.zeros_like(rates), "unmeasured"
        ahead = self._position + LOOK_AHEAD_S * self._rate
        tcp = self._guard.tcp_at(ahead)
        limited = rates.copy()
        wanted = limited[self._columns]
        limited[self._columns] = np.where(((tcp <= self._low) & (wanted < 0)) | ((tcp >= self._high) & (wanted > 0)), 0, wanted)
        for first, second in self._guard.spec.workspace.collision_pairs:
            then = self._guard.distance(first, second, ahead, horizon_m=self._limit_m)
            if then < self._limit_m and then < self._guard.distance(first, second, self._position):
                return limited, f"collision_{first}_{second}"
        return limited, ""
