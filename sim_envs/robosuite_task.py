"""What robolearn knows of one robosuite task: its objects, its success, the layout of its observation. Imports no simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from robolearn.core.types import ENVIRONMENT_STATE, IMAGES_PREFIX, STATE, Array, FeatureSpec, Spaces

JOINT_POSITION = "observation.joint_position"
FIDELITIES = ("exact", "reference", "turbo")
CONTROL_RATE_HZ = 20.0
ARM_JOINTS = 7
STATE_PER_ARM = 11
ACTION_PER_ARM = 7
FRAME_WIDTH = 12

_XYZ = ("x", "y", "z")
_ROT6D = tuple(str(i) for i in range(6))


@dataclass(frozen=True)
class Frame:
    """A body or site whose pose is observed: position 3, rotation 6, position relative to an end effector 3."""

    name: str
    """Prefix of the element names, for example ``cube``."""
    kind: str
    """``body`` or ``site``."""
    element: str
    """Name of the body or site in the MuJoCo model."""
    arm: int = 0
    """The arm whose end effector ``<name>_to_eef`` refers to."""


@dataclass(frozen=True)
class Situation:
    """What a success test may look at, for ``n`` environments.

    Positions are those that robosuite's own ``_check_success`` sees after a step: taken at the start of the last physics substep.
    """

    points: Array
    """(n, p, 3) positions of the task's ``success_points`` in the world frame [m]."""
    eef: Array
    """(n, arms, 3) end-effector positions [m]."""
    angles: Array
    """(n, j) positions of the task's ``angles`` joints [rad]."""
    touching: Callable[[int, str, str], bool]
    """(row, group, group) -> whether any geom of one contact group touches any geom of the other."""


@dataclass(frozen=True, eq=False)
class RobosuiteTask:
    """A robosuite environment and how robolearn observes and judges it; one object per task file, compared by identity."""

    name: str
    """Name of the task file."""
    robosuite_name: str
    """Name given to ``robosuite.make``."""
    max_episode_steps: int
    """Control steps after which an episode is truncated."""
    frames: tuple[Frame, ...]
    """Observed objects, in the order of ``observation.environment_state``."""
    success_points: tuple[tuple[str, str], ...]
    """(kind, element) of the positions in :attr:`Situation.points`."""
    success: Callable[[Situation], Array]
    """The same answer as robosuite's ``_check_success``, for a batch: (n,) bool."""
    angles: tuple[tuple[str, str], ...] = ()
    """(element name, joint) of observed scalar joints, after the frames."""
    contact_groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of geoms that :attr:`Situation.touching` may be asked about."""
    num_arms: int = 1
    """Number of Panda arms."""
    parked_bodies: tuple[str, ...] = ()
    """Bodies that robosuite moves out of the scene in this variant; the fast model lets them touch nothing."""
    reset_moves_bodies: bool = False
    """Whether a reset edits body poses of the model itself, so that every environment needs its own model."""
    cameras: tuple[str, ...] = ("agentview", "frontview", "birdview", "robot0_eye_in_hand")
    """Cameras that can be drawn."""

    @property
    def robot(self) -> str:
        """Name of the embodiment."""
        return "panda" if self.num_arms == 1 else "panda_pair"

    @property
    def robots(self) -> list[str]:
        """The ``robots`` argument of ``robosuite.make``."""
        return ["Panda"] * self.num_arms

    def spaces(self, cameras: tuple[str, ...], image_size: int) -> Spaces:
        """Return the observation and action spaces with these cameras."""
        observation = {
            STATE: _flat(n for arm in self._arm_prefixes() for n in _state_names(arm)),
            JOINT_POSITION: _flat(f"{arm}joint_position_{i}" for arm in self._arm_prefixes() for i in range(ARM_JOINTS)),
            ENVIRONMENT_STATE: _flat(
                [*(n for f in self.frames for n in _frame_names(f.name)), *(name for name, _ in self.angles)]
            ),
        }
        for camera in cameras:
            observation[IMAGES_PREFIX + camera] = FeatureSpec((image_size, image_size, 3), dtype="uint8")
        action = _flat(arm + n for arm in self._arm_prefixes() for n in ("dx", "dy", "dz", "drx", "dry", "drz", "gripper"))
        size = action.shape[0]
        return Spaces(self.robot, observation, action, (-1.0,) * size, (1.0,) * size, CONTROL_RATE_HZ)

    def _arm_prefixes(self) -> list[str]:
        return [""] if self.num_arms == 1 else [f"robot{i}_" for i in range(self.num_arms)]


def _flat(names: object) -> FeatureSpec:
    listed = tuple(names)  # type: ignore[arg-type,var-annotated]
    return FeatureSpec((len(listed),), names=listed)


def _state_names(arm: str) -> list[str]:
    names = [f"eef_pos_{a}" for a in _XYZ] + [f"eef_rot6d_{i}" for i in _ROT6D] + ["gripper_qpos_0", "gripper_qpos_1"]
    return [arm + n for n in names]


def _frame_names(name: str) -> list[str]:
    return [f"{name}_pos_{a}" for a in _XYZ] + [f"{name}_rot6d_{i}" for i in _ROT6D] + [f"{name}_to_eef_{a}" for a in _XYZ]
