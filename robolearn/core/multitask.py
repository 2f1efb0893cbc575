"""Several tasks of one robot as one observation space, so that one policy can be trained on all of them.

A stream that is the same in every task is shared. A stream that differs (the objects of a scene, usually) becomes one block of
columns per task, side by side, each with its own scaling; what belongs to the other tasks is absent. Absent numbers are put at
the normaliser's centre, so they reach the network as exact zeros: its first linear layer is then one encoder per task, added
up, and no number of one task is ever read with the meaning or the scale of another's. The alternative, one padded vector whose
k-th number means something else in each task, would share weights and scaling between unrelated quantities.

The joined space describes itself: the one-hot stream :data:`TASK` is named after the tasks, the columns of a block ``<task>/<own
name>``. A checkpoint therefore knows what each of its tasks must offer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array, FeatureSpec, Observation, Spaces, is_image

TASK = "observation.task"
"""One-hot of the task; its elements are named after the tasks."""
_MARK = "/"


def join_spaces(tasks: Mapping[str, Spaces]) -> Spaces:
    """Return the joined space of ``tasks``; every task must offer the same observation keys.

    Raises:
        RefusedError: no tasks, different robots, actions or cameras, or a stream that differs and has no names.
    """
    if not tasks or any(not name or _MARK in name for name in tasks):
        raise RefusedError(f"Joined tasks need names without {_MARK!r}; got {list(tasks)}.")
    first, reference = next(iter(tasks.items()))
    for name, spaces in tasks.items():
        for what in ("robot", "action", "action_low", "action_high", "control_rate_hz"):
            mine, other = getattr(reference, what), getattr(spaces, what)
            if mine != other:
                raise RefusedError(f"Tasks {first!r} and {name!r} cannot share a policy: {what} is {mine} and {other}.")
        if TASK in spaces.observation:
            raise RefusedError(f"Task {name!r} offers {TASK!r} itself; that name is kept for joined tasks.")
        if set(spaces.observation) != set(reference.observation):
            both = sorted(reference.observation), sorted(spaces.observation)
            raise RefusedError(f"Tasks {first!r} and {name!r} cannot share a policy: they observe {both[0]} and {both[1]}.")
    observation = {key: _join(key, {name: s.observation[key] for name, s in tasks.items()}) for key in reference.observation}
    return replace(reference, observation={**observation, TASK: FeatureSpec((len(tasks),), names=tuple(tasks))})


def _join(key: str, features: Mapping[str, FeatureSpec]) -> FeatureSpec:
    kinds = list(features.values())
    if all(feature == kinds[0] for feature in kinds):
        return kinds[0]
    for task, feature in features.items():
        if is_image(key) or len(feature.shape) != 1 or not feature.names or feature.dtype != kinds[0].dtype:
            raise RefusedError(
                f"{key!r} differs between tasks {list(features)}; only flat streams of one dtype whose elements are named can, "
                f"and {task!r} has {feature}."
            )
        if any(_MARK in name for name in feature.names):
            raise RefusedError(f"{key!r} of task {task!r}: element names must not hold {_MARK!r}.")
    names = tuple(f"{task}{_MARK}{name}" for task, feature in features.items() for name in feature.names)
    return FeatureSpec((len(names),), kinds[0].dtype, names)


def tasks_of(spaces: Spaces) -> tuple[str, ...]:
    """Return the tasks of a joined space, nothing for the space of a single task."""
    feature = spaces.observation.get(TASK)
    return feature.names if feature else ()


def task_spaces(joined: Spaces, task: str) -> Spaces:
    """Return what ``task`` by itself must offer to a policy of the ``joined`` space.

    Raises:
        RefusedError: the policy does not know the task; its own are named.
    """
    columns = TaskColumns.of(joined, task).blocks
    own = {}
    for key, feature in joined.observation.items():
        if key in columns:
            names = tuple(name.partition(_MARK)[2] for name in feature.names[columns[key]])
            feature = FeatureSpec((len(names),), feature.dtype, names)
        if key != TASK:
            own[key] = feature
    return replace(joined, observation=own)


@dataclass(frozen=True)
class TaskColumns:
    """Where the numbers of one task lie in the joined streams."""

    one_hot: Array
    """(tasks,) float32, the task's :data:`TASK`."""
    blocks: Mapping[str, slice]
    """Stream -> the task's columns; a shared stream is not among them."""

    @classmethod
    def of(cls, joined: Spaces, task: str) -> TaskColumns:
        """Find the columns of ``task``.

        Raises:
            RefusedError: the joined space does not hold the task.
        """
        tasks = tasks_of(joined)
        if task not in tasks:
            raise RefusedError(f"The policy was not trained for task {task!r}. {nearest(task, tasks)}")
        blocks = {}
        for key, feature in joined.observation.items():
            if key != TASK and feature.names and all(_MARK in name for name in feature.names):
                mine = [i for i, name in enumerate(feature.names) if name.partition(_MARK)[0] == task]
                blocks[key] = slice(mine[0], mine[-1] + 1)
        return cls(np.eye(len(tasks), dtype=np.float32)[tasks.index(task)], blocks)

    def place(self, observation: Observation, absent: Mapping[str, Array]) -> Observation:
        """Return the joined observation of a task's own, key -> (..., d).

        Args:
            observation: the task's streams; at least one, all of the same leading axes.
            absent: stream with blocks -> (d,) what stands for numbers of other tasks.
        """
        placed = dict(observation)
        for key, columns in self.blocks.items():
            own = observation[key]
            full = np.broadcast_to(absent[key].astype(own.dtype), (*own.shape[:-1], len(absent[key]))).copy()
            full[..., columns] = own
            placed[key] = full
        lead = next(value.shape[:2] for value in observation.values())
        placed[TASK] = np.broadcast_to(self.one_hot, (*lead, len(self.one_hot))).copy()
        return placed
