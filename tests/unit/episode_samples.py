"""Small episodes and stores for the tests of robolearn.data."""

from pathlib import Path

import numpy as np

from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, Episode, FeatureSpec, Spaces
from robolearn.data.header import ACTION_SENT, T_WALL
from robolearn.data.store import EpisodeStore

CAMERA = "observation.images.agentview"


def spaces(*, camera: bool = False, robot: str = "panda") -> Spaces:
    observation = {STATE: FeatureSpec((3,), names=("x", "y", "z")), ENVIRONMENT_STATE: FeatureSpec((2,))}
    if camera:
        observation[CAMERA] = FeatureSpec((96, 96, 3), "uint8")
    action = FeatureSpec((2,), names=("dx", "gripper"))
    return Spaces(robot, observation, action, (-1.0, -1.0), (1.0, 1.0), 20.0)


def episode(length: int, seed: int = 0, *, camera: bool = False, success: bool = True) -> Episode:
    """An episode that is a function of its length and seed alone."""
    rng = np.random.default_rng([length, seed])
    data = {
        STATE: rng.standard_normal((length, 3), dtype=np.float32),
        ENVIRONMENT_STATE: rng.standard_normal((length, 2), dtype=np.float32),
        ACTION: rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        ACTION_SENT: rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        T_WALL: 1.7e9 + np.arange(length) / 20,
    }
    if camera:
        data[CAMERA] = rng.integers(0, 256, (length, 96, 96, 3), dtype=np.uint8)
    return Episode(data, success=success, seed=seed, metadata={"operator": "test"})


def frame(whole: Episode, step: int) -> dict:
    """The streams of one step as a recorder gets them."""
    return {key: array[step] for key, array in whole.data.items() if key != T_WALL}


def new_store(path: Path, lengths: tuple[int, ...] = (), *, camera: bool = False) -> EpisodeStore:
    store = EpisodeStore.create(path, spaces(camera=camera), task="lift", fidelity="exact")
    for seed, length in enumerate(lengths):
        store.append(episode(length, seed, camera=camera))
    return store


def assert_same(found: Episode, expected: Episode, *, steps: int | None = None) -> None:
    """Bit equality of all streams, or of the first ``steps`` steps."""
    assert sorted(found.data) == sorted(expected.data)
    for key, array in expected.data.items():
        np.testing.assert_array_equal(found.data[key], array[:steps], err_msg=key, strict=True)
