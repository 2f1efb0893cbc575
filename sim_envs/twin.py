"""Twins of robots at their joints: they take what the driver takes and give what it publishes, with faults on demand; no ROS.

A twin is the robot alone, from the model that :class:`RobotSpec` names, without objects and without contacts: it is for the path
of joint commands (gate, adapters, watchdogs, limits). A :class:`Scene` puts it among objects that it can touch: the tasks of the
humanoids (``sim_envs/twin_env.py``) are twins in scenes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import mujoco
import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.robot import RobotSpec
from robolearn.core.types import Array

TIMESTEP_S = 0.002
"""Physics step [s]."""
JOINT_FAULTS = ("stuck", "limp", "offset")
"""Brake closed; no torque; the encoder reads ``value`` more [rad]."""
_STIFFNESS, _DAMPING = 900.0, 60.0
"""Servo of the simulated driver, 1/s^2 and 1/s: critically damped with a bandwidth of 30 rad/s."""

_ARMATURE = 0.1
"""Inertia of each motor behind its gear, chosen [kg m^2]; the models have none, so that friction alone could hold a wrist."""
_LOCK = 1e6
"""Inertia of a joint that cannot move [kg m^2]."""


@dataclass(frozen=True)
class JointFault:
    """What is wrong with one joint."""

    joint: str
    """Name as in :attr:`RobotSpec.joints`."""
    kind: str
    """One of :data:`JOINT_FAULTS`."""
    since_s: float = 0.0
    """When it begins, on the twin's clock [s]."""
    value: float = 0.0
    """Encoder offset [rad]."""


@dataclass(frozen=True)
class TwinFaults:
    """What is wrong with the line to the robot and with the robot; nothing by default."""

    command_delay_s: float = 0.0
    """Between sending a command and the driver having it [s]."""
    state_delay_s: float = 0.0
    """Between measuring a state and publishing it [s]."""
    command_loss: float = 0.0
    """Part of the commands that never arrives."""
    state_loss: float = 0.0
    """Part of the states that is never published."""
    position_noise: float = 0.0
    """Standard deviation of the measured positions [rad]."""
    velocity_noise: float = 0.0
    """Standard deviation of the measured velocities [rad/s]."""
    frozen_since_s: float | None = None
    """From then on the newest state is published again and again, with its old stamp; None never."""
    joints: tuple[JointFault, ...] = ()
    """Faults of single joints."""

    def __post_init__(self) -> None:
        for name in ("command_delay_s", "state_delay_s", "position_noise", "velocity_noise"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise RefusedError(f"{name}={getattr(self, name)} must be finite and not negative.")
        for name in ("command_loss", "state_loss"):
            if not 0 <= getattr(self, name) <= 1:
                raise RefusedError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        for fault in self.joints:
            if fault.kind not in JOINT_FAULTS:
                raise RefusedError(f"Joint {fault.joint!r}: fault {fault.kind!r}. {nearest(fault.kind, JOINT_FAULTS)}")


@dataclass(frozen=True)
class JointReading:
    """What a driver puts into a JointState, in the order of the spec."""

    position: Array
    """(n,) [rad]"""
    velocity: Array
    """(n,) [rad/s]"""
    effort: Array
    """(n,) [N m]"""
    stamp_s: float
    """When it was measured, on the twin's clock [s]."""


@dataclass(frozen=True)
class _Order:
    """One command at the driver: setpoints along time; a single one is held."""

    times_s: Array
    points: Array
    velocity: bool = False

    def position(self, now_s: float, held: Array) -> Array:
        """Return the setpoint (n,): linear between points, beginning at ``held``, and the last one afterwards."""
        if self.velocity:
            return held
        return np.array([np.interp(now_s, self.times_s, column) for column in self.points.T])


@dataclass(frozen=True)
class Scene:
    """The robot's model among objects; contacts are as the model says."""

    model: mujoco.MjModel
    """Holds the robot's joints under their names."""
    objects: tuple[str, ...] = ()
    """Joints of what moves freely."""


class RobotTwin:
    """A simulated robot behind the interface of its driver; time is an argument and may run at any speed."""

    def __init__(self, spec: RobotSpec, *, faults: TwinFaults | None = None, seed: int = 0, scene: Scene | None = None) -> None:
        """Load the robot's model, or take the scene's, and stand at home.

        Raises:
            RefusedError: the robot has no installed model, or a fault names no joint of it.
        """
        if spec.model is None:
            raise RefusedError(f"Robot {spec.name!r} has no installed model, so it has no twin.")
        self.spec, self._faults, self._rng = spec, faults or TwinFaults(), np.random.default_rng(seed)
        model = scene.model if scene else mujoco.MjModel.from_xml_path(str(spec.model.locate()))
        model.opt.timestep = TIMESTEP_S
        if scene is None:
            model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
        model.opt.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        self._model, self._data = model, mujoco.MjData(model)
        joints = [mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_JOINT, name) for name in spec.model.joints]
        self._q, self._v = model.jnt_qposadr[joints], model.jnt_dofadr[joints]
        self._limit = np.array(spec.max_effort)
        free = [model.joint(name) for name in (scene.objects if scene else ())]
        loose_q = [joint.qposadr[0] + np.arange(7) for joint in free]
        loose_v = np.concatenate([self._v, *(joint.dofadr[0] + np.arange(6) for joint in free)])
        self._locked_q = np.setdiff1d(np.arange(model.nq), np.concatenate([self._q, *loose_q]))
        self._locked_v = np.setdiff1d(np.arange(model.nv), loose_v)
        model.dof_armature[self._locked_v] = _LOCK
        for fault in self._faults.joints:
            if fault.joint not in spec.joints:
                raise RefusedError(f"No joint {fault.joint!r} on robot {spec.name!r}. {nearest(fault.joint, spec.joints)}")
        self.reset()

    def reset(self, position: Array | None = None, *, now_s: float = 0.0) -> None:
        """Stand still at ``position`` (n,) [rad], home by default, with no command on the way."""
        start = np.asarray(self.spec.home if position is None else position, float)
        if start.shape != (self.spec.dim,) or not np.isfinite(start).all():
            raise RefusedError(f"{self.spec.name} starts at {self.spec.dim} finite joint positions, got {start}.")
        self._model.dof_armature[self._v] = _ARMATURE
        mujoco.mj_resetData(self._model, self._data)
        self._data.qpos[self._q] = start
        mujoco.mj_forward(self._model, self._data)
        self._posture = self._data.qpos.copy()
        self._setpoint, self._rate = start.copy(), np.zeros(self.spec.dim)
        self._order = _Order(np.array([now_s]), start[None])
        self._coming: deque[tuple[float, _Order]] = deque()
        self._now_s = now_s
        self._history: deque[JointReading] = deque(maxlen=int(2.0 / TIMESTEP_S))
        self._stuck: dict[str, float] = {}
        self._remember(np.zeros(self.spec.dim))

    @property
    def now_s(self) -> float:
        """Time up to which the robot was simulated [s]."""
        return self._now_s

    @property
    def data(self) -> mujoco.MjData:
        """The simulation, for what a scene's objects do and where things are; the robot is commanded by ``send_...`` alone."""
        return self._data

    @property
    def position(self) -> Array:
        """True joint positions (n,) [rad], whatever the encoders say."""
        return self._data.qpos[self._q].copy()

    def send_position(self, position: Array, *, now_s: float) -> None:
        """Take what a forward position controller takes (n,) [rad]; held until the next command, without a timeout."""
        self._send(_Order(np.array([now_s]), self._checked(position)[None]), now_s)

    def send_velocity(self, velocity: Array, *, now_s: float) -> None:
        """Take what a forward velocity controller takes (n,) [rad/s]; goes on for ever, as the real one does."""
        self._send(_Order(np.array([now_s]), self._checked(velocity)[None], velocity=True), now_s)

    def send_trajectory(self, positions: Array, *, times_s: Array, now_s: float) -> None:
        """Take what a joint trajectory controller takes: (h, n) [rad] at increasing ``times_s`` (h,) on the twin's clock.

        The way begins where the setpoint is. As there, the old trajectory is forgotten, points that are past are skipped and a
        trajectory that is all past is refused.

        Raises:
            RefusedError: shapes, values or times are not as described.
        """
        times = np.asarray(times_s, float)
        points = np.stack([self._checked(row) for row in positions]) if len(positions) else np.empty((0, self.spec.dim))
        if times.shape != (len(points),) or not len(points) or not (np.diff(times) > 0).all() or not np.isfinite(times).all():
            raise RefusedError(f"A trajectory has as many increasing times as points: {len(points)} points came with {times}.")
        if times[-1] <= now_s:
            raise RefusedError(f"The trajectory ended at {times[-1]} s, now is {now_s} s.")
        ahead = times > now_s
        self._send(_Order(times[ahead], points[ahead]), now_s)

    def advance(self, now_s: float) -> None:
        """Simulate up to ``now_s``; a time that is past changes nothing."""
        while self._now_s + TIMESTEP_S <= now_s + 1e-9:
            self._step()

    def reading(self, now_s: float) -> JointReading | None:
        """Return what the driver publishes now, with delay, loss, noise and offsets; None if that message is lost."""
        faults = self._faults
        if self._rng.random() < faults.state_loss:
            return None
        limit_s = now_s - faults.state_delay_s
        if faults.frozen_since_s is not None:
            limit_s = min(limit_s, faults.frozen_since_s)
        newest = next((r for r in reversed(self._history) if r.stamp_s <= limit_s + 1e-9), self._history[0])
        position = newest.position + faults.position_noise * self._rng.standard_normal(self.spec.dim)
        velocity = newest.velocity + faults.velocity_noise * self._rng.standard_normal(self.spec.dim)
        for fault in faults.joints:
            if fault.kind == "offset" and newest.stamp_s >= fault.since_s:
                position[self.spec.joints.index(fault.joint)] += fault.value
        return JointReading(position, velocity, newest.effort.copy(), newest.stamp_s)

    def _send(self, order: _Order, now_s: float) -> None:
        if self._rng.random() >= self._faults.command_loss:
            self._coming.append((now_s + self._faults.command_delay_s, order))

    def _step(self) -> None:
        """Advance by one physics step: newest order, setpoint, servo, faults."""
        while self._coming and self._coming[0][0] <= self._now_s + 1e-9:
            _, order = self._coming.popleft()
            self._rate = order.points[0] if order.velocity else np.zeros(self.spec.dim)
            begin = np.concatenate([[self._now_s], order.times_s]), np.concatenate([self._setpoint[None], order.points])
            self._order = order if order.velocity or len(order.points) == 1 else _Order(*begin)
        self._setpoint = self._order.position(self._now_s + TIMESTEP_S, self._setpoint + self._rate * TIMESTEP_S)
        self._setpoint = np.clip(self._setpoint, self.spec.position_low, self.spec.position_high)
        effort = self._servo()
        for fault in self._faults.joints:
            if self._now_s >= fault.since_s and fault.kind in ("limp", "stuck"):
                effort[self.spec.joints.index(fault.joint)] = 0
        self._data.qfrc_applied[self._v] = effort
        mujoco.mj_step(self._model, self._data)
        self._now_s += TIMESTEP_S
        self._brake()
        self._remember(effort)

    def _servo(self) -> Array:
        """Return the joint torques (n,) of a computed-torque servo towards the setpoint."""
        model, data = self._model, self._data
        acceleration, torque = np.zeros(model.nv), np.zeros(model.nv)
        acceleration[self._v] = _STIFFNESS * (self._setpoint - data.qpos[self._q]) - _DAMPING * data.qvel[self._v]
        acceleration[self._v[[self.spec.joints.index(joint) for joint in self._stuck]]] = 0
        mujoco.mj_mulM(model, data, torque, acceleration)
        return np.clip((torque + data.qfrc_bias - data.qfrc_passive)[self._v], -self._limit, self._limit)

    def _brake(self) -> None:
        """Hold the joints that are not ours, and those whose brake is closed, where they were."""
        self._data.qpos[self._locked_q], self._data.qvel[self._locked_v] = self._posture[self._locked_q], 0
        for fault in self._faults.joints:
            if fault.kind == "stuck" and self._now_s >= fault.since_s:
                index = self.spec.joints.index(fault.joint)
                self._model.dof_armature[self._v[index]] = _LOCK
                held = self._stuck.setdefault(fault.joint, float(self._data.qpos[self._q[index]]))
                self._data.qpos[self._q[index]], self._data.qvel[self._v[index]] = held, 0.0

    def _remember(self, effort: Array) -> None:
        data = self._data
        self._history.append(JointReading(data.qpos[self._q].copy(), data.qvel[self._v].copy(), effort.copy(), self._now_s))

    def _checked(self, values: Array) -> Array:
        values = np.asarray(values, float)
        if values.shape != (self.spec.dim,) or not np.isfinite(values).all():
            raise RefusedError(f"{self.spec.name} takes {self.spec.dim} finite numbers, got {values}; nothing was sent.")
        return values
