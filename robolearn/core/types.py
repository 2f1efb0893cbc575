"""Values that cross the seams: observations, action chunks, steps and the specifications that describe them.

Dimension letters used in shapes: ``b`` batch, ``o`` observation steps, ``h`` predicted steps, ``s`` state, ``a`` action.
Observation keys are LeRobot's: ``observation.state`` (what a real robot measures of itself), ``observation.environment_state``
(privileged object poses), ``observation.images.<camera>`` (uint8, height x width x 3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from robolearn.core.errors import RefusedError

STATE = "observation.state"
ENVIRONMENT_STATE = "observation.environment_state"
IMAGES_PREFIX = "observation.images."
ACTION = "action"

type Array = np.ndarray
type Observation = dict[str, Array]
"""LeRobot key -> array whose first axis is the batch; a policy sees a second axis of ``obs_horizon`` steps."""


def is_image(key: str) -> bool:
    """Return whether an observation key names a camera stream."""
    return key.startswith(IMAGES_PREFIX)


@dataclass(frozen=True)
class FeatureSpec:
    """Shape, dtype and per-element names of one stream, without batch and time axes."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    names: tuple[str, ...] = ()
    """One name per element of a flat feature; empty for images."""

    def __post_init__(self) -> None:
        if self.names and (len(self.shape) != 1 or len(self.names) != self.shape[0]):
            raise RefusedError(f"A feature of shape {self.shape} needs {self.shape} names, got {len(self.names)}.")


@dataclass(frozen=True)
class Spaces:
    """What a policy reads and what it commands; saved beside every dataset and checkpoint and compared before use."""

    robot: str
    """Name of the embodiment, for example ``panda``; two robots never share a checkpoint silently."""
    observation: Mapping[str, FeatureSpec]
    action: FeatureSpec
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_rate_hz: float

    def __post_init__(self) -> None:
        n = self.action.shape[0]
        if len(self.action_low) != n or len(self.action_high) != n:
            raise RefusedError(f"Action bounds must have {n} entries, got {len(self.action_low)} and {len(self.action_high)}.")
        if not (math.isfinite(self.control_rate_hz) and self.control_rate_hz > 0):
            raise RefusedError(f"control_rate_hz={self.control_rate_hz} must be positive and finite.")

    @property
    def action_dim(self) -> int:
        """Number of elements of one action."""
        return self.action.shape[0]

    def action_scaling(self) -> tuple[Array, Array]:
        """Return centre and half range (a,) float32 of the action's bounds: ``(action - centre) / half_range`` is in [-1, 1]."""
        low, high = np.asarray(self.action_low, np.float32), np.asarray(self.action_high, np.float32)
        return (high + low) / 2, (high - low) / 2

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serialisable form that :meth:`from_json` inverts."""
        return {
            "robot": self.robot,
            "observation": {k: _feature_json(f) for k, f in self.observation.items()},
            "action": _feature_json(self.action),
            "action_low": list(self.action_low),
            "action_high": list(self.action_high),
            "control_rate_hz": self.control_rate_hz,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Spaces:
        """Rebuild the spaces from :meth:`to_json`.

        Raises:
            RefusedError: a field is missing or malformed.
        """
        try:
            observation = {k: _feature_from_json(f) for k, f in data["observation"].items()}  # type: ignore[attr-defined]
            return cls(
                robot=str(data["robot"]),
                observation=observation,
                action=_feature_from_json(data["action"]),  # type: ignore[arg-type]
                action_low=tuple(float(x) for x in data["action_low"]),  # type: ignore[attr-defined]
                action_high=tuple(float(x) for x in data["action_high"]),  # type: ignore[attr-defined]
                control_rate_hz=float(data["control_rate_hz"]),  # type: ignore[arg-type]
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RefusedError(f"Malformed description of observation and action spaces: {error!r}.") from error


def _feature_json(feature: FeatureSpec) -> dict[str, object]:
    return {"shape": list(feature.shape), "dtype": feature.dtype, "names": list(feature.names)}


def _feature_from_json(data: Mapping[str, object]) -> FeatureSpec:
    return FeatureSpec(
        shape=tuple(int(n) for n in data["shape"]),  # type: ignore[attr-defined]
        dtype=str(data["dtype"]),
        names=tuple(str(n) for n in data["names"]),  # type: ignore[attr-defined]
    )


def require_compatible(needed: Spaces, offered: Spaces, *, what: str) -> None:
    """Refuse to join a policy (``needed``) with an environment, dataset or robot (``offered``) that differs from it.

    Every observation key that is needed must be offered with the same shape, dtype and element names; the action must be the same
    in names, shape and bounds. Extra offered keys are allowed.

    Raises:
        RefusedError: names the first difference, both values and ``what`` was being joined.
    """
    if needed.robot != offered.robot:
        raise RefusedError(f"{what}: made for robot {needed.robot!r}, but {offered.robot!r} is offered.")
    for key, feature in needed.observation.items():
        if key not in offered.observation:
            raise RefusedError(f"{what}: needs observation {key!r}; offered are {sorted(offered.observation)}.")
        if offered.observation[key] != feature:
            raise RefusedError(f"{what}: {key!r} needs {feature}, but {offered.observation[key]} is offered.")
    for name in ("action", "action_low", "action_high", "control_rate_hz"):
        if getattr(needed, name) != getattr(offered, name):
            raise RefusedError(f"{what}: {name} needs {getattr(needed, name)}, offered {getattr(offered, name)}.")


@dataclass(frozen=True)
class EnvSpec:
    """What an environment is: its task, fidelity, spaces and time."""

    task: str
    fidelity: str
    """``reference``, ``exact``, ``turbo`` or ``native``; said beside every published number."""
    spaces: Spaces
    max_episode_steps: int
    cameras: tuple[str, ...] = ()
    """Cameras that :meth:`robolearn.core.protocols.Env.render` can draw."""


@dataclass(frozen=True)
class Step:
    """Result of one control step of ``b`` environments.

    ``terminated`` (solved, or lost for good) and ``truncated`` (cut short by ``max_episode_steps``) exclude each other;
    truncation is not failure: bootstrap through it (Pardo et al. 2018).
    """

    observation: Observation
    reward: Array
    """(b,) float32."""
    terminated: Array
    """(b,) bool."""
    truncated: Array
    """(b,) bool."""
    success: Array
    """(b,) bool, reported by the environment and never inferred from the reward."""

    @property
    def ended(self) -> Array:
        """(b,) bool: the episode is over, whatever the reason."""
        return self.terminated | self.truncated


@dataclass(frozen=True)
class ActionChunk:
    """Consecutive future actions; row 0 is for the control step at which the newest observation was taken."""

    actions: Array
    """(b, h, a) float32 in the robot's own action units."""
    latent_noise: Array | None = None
    """(b, ...) float32 what the chunk was decoded from, where somebody wants to learn from it."""

    def __post_init__(self) -> None:
        if self.actions.ndim != 3:
            raise RefusedError(f"An action chunk has shape (b, h, a), got {self.actions.shape}.")


@dataclass(frozen=True)
class Episode:
    """One reset-to-end record of ``t`` steps, as held in memory."""

    data: Mapping[str, Array]
    """Stream key -> (t, ...) array; observation keys, ``action``, and any extra stream such as ``action.sent``."""
    success: bool
    """Whether the environment or the operator reported the task as solved."""
    seed: int | None = None
    """Seed of the initial state; None where the world was not simulated."""
    metadata: Mapping[str, object] = field(default_factory=dict)
    """JSON-serialisable facts: task, operator, outcome, fidelity, wall-clock start."""

    def __len__(self) -> int:
        return len(self.data[ACTION])
