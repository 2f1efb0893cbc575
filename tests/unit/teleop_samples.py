"""A small store for recorders, and samples for it."""

from pathlib import Path

import numpy as np
from episode_samples import CAMERA, spaces

from robolearn.core.types import ENVIRONMENT_STATE, STATE
from robolearn.data.header import ACTION_SENT, live_extra
from robolearn.data.store import EpisodeStore
from robolearn.teleop.recorder import Sample, Stamp

PERIOD_S = 1 / 20


def live_store(path: Path, *, camera: bool = False) -> EpisodeStore:
    found = spaces(camera=camera)
    return EpisodeStore.create(path, found, task="lift", fidelity="native", extra=live_extra(found))


def sample(step: int, *, camera: bool = False, human: bool = True, at_s: float | None = None, **ages: float) -> Sample:
    """The sample of a step; ``ages`` [s] make streams old: ``state``, ``environment``, ``pictures``."""
    now = 100 + step * PERIOD_S if at_s is None else at_s
    observation = {
        STATE: np.array([step, 1, 2], np.float32),
        ENVIRONMENT_STATE: np.array([3, step], np.float32),
    }
    names = {STATE: "state", ENVIRONMENT_STATE: "environment"}
    if camera:
        observation[CAMERA] = np.full((96, 96, 3), step % 256, np.uint8)
        names[CAMERA] = "pictures"
    stamps = {key: Stamp(1.7e9 + now - ages.get(name, 0), now - ages.get(name, 0)) for key, name in names.items()}
    action = np.array([0.5, -1.0])
    return Sample(observation, action, action / 2, human, stamps | {ACTION_SENT: Stamp(1.7e9 + now, now)})
