"""What one real robot is: its joints in order, what they can take, and how its driver is spoken to; it validates itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array

INTERFACES = ("trajectory", "position", "velocity", "twist", "arm_sdk")
"""Ways in which a driver takes commands: JointTrajectory, Float64MultiArray (positions, velocities), Twist, Unitree."""
JOINT_UNITS = {"rad": 1.0, "deg": 180 / np.pi}
"""Unit of joint angles on the driver's wire -> how many of it make one radian; inside robolearn it is always rad."""
QOS = ("sensor", "reliable", "latched")
"""Best effort KEEP_LAST 5 (REP-2003's sensor data); reliable KEEP_LAST 10; reliable, transient local, depth 1."""

_JOINT_FIELDS = ("position_low", "position_high", "max_velocity", "max_acceleration", "max_jerk", "max_effort", "home")
_SOURCED = (*_JOINT_FIELDS, "position_margin", "max_tracking_error", "control_rate_hz", "tcp", "command_interfaces", "topics")


@dataclass(frozen=True)
class TopicSpec:
    """One ROS topic of a driver, with the unit of its numbers."""

    role: str
    """What robolearn uses it for: ``joint_states``, ``command``, ``gripper_command``, ``wrench``, ``low_state``, ..."""
    name: str
    """Topic name, relative to the robot's namespace."""
    message: str
    """ROS type, for example ``sensor_msgs/msg/JointState``."""
    qos: str = "reliable"
    """One of :data:`QOS`."""
    units: str = "rad, rad/s, N m"
    """Units of the message's numbers."""
    interface: str = ""
    """For commands: the entry of :data:`INTERFACES` that this topic takes."""

    def __post_init__(self) -> None:
        if self.qos not in QOS:
            raise RefusedError(f"Topic {self.name!r}: qos={self.qos!r}. {nearest(self.qos, QOS)}")
        if self.interface and self.interface not in INTERFACES:
            raise RefusedError(f"Topic {self.name!r}: interface={self.interface!r}. {nearest(self.interface, INTERFACES)}")


@dataclass(frozen=True)
class GripperSpec:
    """The gripper's one degree of freedom as its driver takes it; a policy's -1 is open and +1 is closed."""

    joint: str
    """Joint name in the joint states."""
    open: float
    """Driver's value when open [unit]."""
    closed: float
    """Driver's value when closed [unit]."""
    unit: str
    """``m`` (width), ``rad``, ``percent``."""
    max_velocity: float
    """[unit/s]"""
    source: str
    """Where the numbers are from."""

    def __post_init__(self) -> None:
        if (
            not np.isfinite([self.open, self.closed, self.max_velocity]).all()
            or self.open == self.closed
            or self.max_velocity <= 0
        ):
            raise RefusedError(
                f"Gripper {self.joint!r}: open={self.open}, closed={self.closed}, max_velocity={self.max_velocity}."
            )


@dataclass(frozen=True)
class Workspace:
    """Where the tool centre points may be, and which bodies must stay apart; both checked by forward kinematics."""

    low: tuple[float, float, float]
    """Corner of the box in the robot's base frame, x y z [m]; the same box for every arm."""
    high: tuple[float, float, float]
    """Opposite corner [m]."""
    source: str
    """Why this box."""
    collision_pairs: tuple[tuple[str, str], ...] = ()
    """Pairs of bodies of the kinematic model that must keep ``min_distance_m``."""
    min_distance_m: float = 0.02
    """Smallest allowed distance between the bodies of a pair [m]."""
    margin_m: float = 0.01
    """Kept from the box and added to that distance while moving: the way to rest is looked at in steps [m]."""

    def __post_init__(self) -> None:
        low, high = np.asarray(self.low, float), np.asarray(self.high, float)
        if low.shape != (3,) or high.shape != (3,) or not (low < high).all():
            raise RefusedError(f"The workspace box needs low < high in x, y and z, got {self.low} and {self.high}.")
        if not (np.isfinite(self.min_distance_m + self.margin_m) and min(self.min_distance_m, self.margin_m) >= 0):
            raise RefusedError(f"min_distance_m={self.min_distance_m}, margin_m={self.margin_m} must be finite, not negative.")


@dataclass(frozen=True)
class KinematicModel:
    """The MJCF that an installed package ships for this robot, used for forward kinematics, twins and the contract test."""

    package: str
    """Import name of the package."""
    path: str
    """File inside the package."""
    joints: tuple[str, ...]
    """The model's joint names, in the order of :attr:`RobotSpec.joints`."""
    base_body: str
    """Body whose frame is the robot's base frame."""
    tcp_bodies: tuple[str, ...]
    """One body per arm that carries its tool centre point for the workspace check."""
    tcp_offset_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """That point in the frame of its body, the same for every arm [m]."""

    def locate(self) -> Path:
        """Return where the installed package keeps the file; the package is not imported.

        Raises:
            RefusedError: the package or the file is not there.
        """
        found = importlib.util.find_spec(self.package)
        for folder in (found.submodule_search_locations or ()) if found else ():
            file = Path(folder) / self.path
            if file.is_file():
                return file
        raise RefusedError(f"The model {self.path!r} of package {self.package!r} is not installed.")


@dataclass(frozen=True)
class RobotSpec:
    """One robot; joint arrays are in the order of ``joints`` and in SI units, whatever the driver's wire uses."""

    name: str
    """As in :attr:`robolearn.core.types.Spaces.robot` where a policy for it exists, for example ``panda``."""
    joints: tuple[str, ...]
    """The driver's joint names; states are matched by name, commands are sent in this order."""
    position_low: tuple[float, ...]
    """[rad]; -inf where a joint turns without end."""
    position_high: tuple[float, ...]
    """[rad]"""
    max_velocity: tuple[float, ...]
    """[rad/s]"""
    max_acceleration: tuple[float, ...]
    """[rad/s^2]"""
    max_jerk: tuple[float, ...]
    """[rad/s^3]"""
    max_effort: tuple[float, ...]
    """[N m]"""
    home: tuple[float, ...]
    """Where episodes start [rad]."""
    control_rate_hz: float
    """Commands per second that the gate sends."""
    base_frame: str
    """tf name of the base."""
    tcp: tuple[str, ...]
    """tf name of the tool centre point of each arm."""
    command_interfaces: tuple[str, ...]
    """What the driver takes, best first; entries of :data:`INTERFACES`."""
    topics: tuple[TopicSpec, ...]
    """The driver's topics."""
    workspace: Workspace
    """Box and body pairs."""
    sources: Mapping[str, str]
    """Field name -> where its numbers are from; every field with a number has an entry."""
    position_margin: float = 0.05
    """Distance kept from both position limits [rad]."""
    speed_scale: float = 0.25
    """Part of the maker's velocity, acceleration and jerk that the gate allows; 1 is the maker's limit."""
    max_relative_target: float = 0.2
    """Largest distance of a command from the measured position [rad]."""
    max_tracking_error: float = 0.15
    """Distance of the measured position from the command at which the gate latches: a stuck, pushed or limp joint [rad].

    Less than ``max_relative_target``, beyond which no command leads, or it would never be reached.
    """
    max_command_age_s: float = 0.25
    """Age at which a chunk may no longer be begun, and how long the policy may be silent [s]."""
    max_observation_age_s: float = 0.1
    """How old the joint states may be [s]."""
    joint_unit: str = "rad"
    """Unit of joint angles on the driver's wire; a key of :data:`JOINT_UNITS`."""
    kp: tuple[float, ...] = ()
    """Proportional gains [N m/rad]; needed by arm_sdk."""
    kd: tuple[float, ...] = ()
    """Damping gains [N m s/rad]; needed by arm_sdk."""
    grippers: tuple[GripperSpec, ...] = ()
    """One per arm that has one."""
    model: KinematicModel | None = None
    """None where no installed package ships one; then the workspace cannot be checked, and the gate says so."""
    wire_index: tuple[int, ...] = field(default=())
    """For arm_sdk: index of each joint in the vendor's motor array; empty elsewhere."""

    def __post_init__(self) -> None:
        n = len(self.joints)
        if n < 1 or len(set(self.joints)) != n:
            raise RefusedError(f"Robot {self.name!r}: joint names must be unique and at least one, got {self.joints}.")
        for name in (*_JOINT_FIELDS, *(f for f in ("kp", "kd", "wire_index") if getattr(self, f))):
            if len(getattr(self, name)) != n:
                raise RefusedError(f"Robot {self.name!r}: {name} needs {n} entries, got {len(getattr(self, name))}.")
        self._check_numbers()
        self._check_interfaces()
        missing = [name for name in self._sourced() if not self.sources.get(name)]
        unknown = sorted(set(self.sources) - {f.name for f in fields(self)})
        if missing or unknown:
            raise RefusedError(f"Robot {self.name!r}: sources lack {missing} and name unknown fields {unknown}.")

    def _check_numbers(self) -> None:
        low, high = np.asarray(self.position_low, float), np.asarray(self.position_high, float)
        margin, home = self.position_margin, np.asarray(self.home, float)
        if np.isnan(low).any() or np.isnan(high).any() or not (np.isfinite(margin) and margin >= 0):
            raise RefusedError(f"Robot {self.name!r}: position limits {low}, {high} with margin {margin} are not numbers.")
        outside = ~((home >= low + margin) & (home <= high - margin))
        if outside.any():
            raise RefusedError(
                f"Robot {self.name!r}: home of {[self.joints[i] for i in np.flatnonzero(outside)]} is outside its limits."
            )
        for name in ("max_velocity", "max_acceleration", "max_jerk", "max_effort", "kp", "kd"):
            values = np.asarray(getattr(self, name), float)
            if not (np.isfinite(values) & (values > 0)).all():
                raise RefusedError(f"Robot {self.name!r}: {name}={values.tolist()} must be positive and finite.")
        positive = ("control_rate_hz", "speed_scale", "max_relative_target", "max_tracking_error")
        for name in (*positive, "max_command_age_s", "max_observation_age_s"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value > 0):
                raise RefusedError(f"Robot {self.name!r}: {name}={value} must be positive and finite.")
        if self.max_tracking_error >= self.max_relative_target:
            raise RefusedError(
                f"Robot {self.name!r}: max_tracking_error={self.max_tracking_error} would never be reached, because commands "
                f"lead by at most max_relative_target={self.max_relative_target}."
            )
        if self.speed_scale > 1:
            raise RefusedError(f"Robot {self.name!r}: speed_scale={self.speed_scale} would exceed the maker's limits.")

    def _check_interfaces(self) -> None:
        for interface in self.command_interfaces:
            if interface not in INTERFACES:
                raise RefusedError(f"Robot {self.name!r}: interface {interface!r}. {nearest(interface, INTERFACES)}")
        commanded = {topic.interface for topic in self.topics if topic.interface}
        if not self.command_interfaces or commanded != set(self.command_interfaces):
            raise RefusedError(f"Robot {self.name!r}: interfaces {self.command_interfaces}, but topics for {sorted(commanded)}.")
        if "arm_sdk" in self.command_interfaces and not (self.kp and self.kd and self.wire_index):
            raise RefusedError(f"Robot {self.name!r}: arm_sdk needs kp, kd and wire_index.")
        if self.joint_unit not in JOINT_UNITS:
            raise RefusedError(f"Robot {self.name!r}: joint_unit={self.joint_unit!r}. {nearest(self.joint_unit, JOINT_UNITS)}")
        if self.model is not None and len(self.model.joints) != len(self.joints):
            raise RefusedError(f"Robot {self.name!r}: the model names {len(self.model.joints)} joints, not {len(self.joints)}.")

    def _sourced(self) -> tuple[str, ...]:
        """Return the fields that must name a source."""
        return _SOURCED + tuple(name for name in ("kp", "kd", "wire_index", "model") if getattr(self, name))

    @property
    def dim(self) -> int:
        """Number of joints."""
        return len(self.joints)

    def topic(self, role: str, interface: str = "") -> TopicSpec:
        """Return the topic of a role (and, for commands, of an interface).

        Raises:
            RefusedError: the robot has no such topic.
        """
        for topic in self.topics:
            if topic.role == role and (not interface or topic.interface == interface):
                return topic
        offered = [f"{t.role}{'/' + t.interface if t.interface else ''}" for t in self.topics]
        raise RefusedError(f"Robot {self.name!r} has no topic for {role!r} {interface}; it has {offered}.")

    def in_order(self, names: tuple[str, ...] | list[str], values: Array) -> Array:
        """Return ``values`` (n, ...) that came under ``names`` in the order of ``joints``, in rad (the wire may be in degrees).

        Raises:
            RefusedError: a joint is missing or named twice, or lengths differ. Joints that the spec does not list are dropped.
        """
        values = np.asarray(values, float)
        if len(names) != len(values):
            raise RefusedError(f"Robot {self.name!r}: {len(names)} joint names came with {len(values)} values.")
        index = {name: i for i, name in enumerate(names)}
        missing = [name for name in self.joints if name not in index]
        if missing or len(index) != len(names):
            raise RefusedError(f"Robot {self.name!r}: joints {missing} are missing or names repeat in {list(names)}.")
        return values[[index[name] for name in self.joints]] / JOINT_UNITS[self.joint_unit]

    def to_wire(self, values: Array) -> Array:
        """Return joint values in rad as the driver takes them."""
        return np.asarray(values, float) * JOINT_UNITS[self.joint_unit]
