"""A task is one file in ``sim_envs/tasks/`` that defines ``TASK``; nothing is registered anywhere else."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.protocols import Env, Expert


@dataclass(frozen=True)
class EnvOptions:
    """How a batch of environments is built; the same for every task."""

    num_envs: int = 1
    """Environments that step together."""
    fidelity: str | None = None
    """``reference``, ``exact``, ``turbo`` or ``native``; None takes the task's first."""
    cameras: tuple[str, ...] = ()
    """Cameras whose pictures are part of the observation, as ``observation.images.<camera>``."""
    image_size: int = 84
    """Height and width of those pictures in pixels."""
    num_threads: int = 1
    """Threads that step the batch; the control step holds no interpreter lock."""
    max_episode_steps: int | None = None
    """Control steps after which an episode is truncated; None takes the task's. A person at the controls needs more."""
    supersample: int | None = None
    """See :class:`sim_envs.render.View`, for what :meth:`Env.render` draws; 1 is fast, as a live view has to be."""


@dataclass(frozen=True)
class Task:
    """Everything the platform needs to know of one task."""

    name: str
    """Equal to the file's name."""
    summary: str
    """One line for people."""
    env_id: str
    """CamelCase stem of the Gymnasium id: ``Lift`` is registered as ``robolearn/Lift-v0``."""
    fidelities: tuple[str, ...]
    """The first is the default."""
    max_episode_steps: int
    """Control steps after which an episode is truncated."""
    make_env: Callable[[EnvOptions], Env]
    make_expert: Callable[[int, float], Expert]
    """(num_envs, quality in [0, 1]) -> expert; 1 is the best it can do, lower quality fails more often."""


def task_names() -> list[str]:
    """Return the names of all tasks: the files of ``sim_envs/tasks``."""
    import sim_envs.tasks

    return sorted(m.name for m in pkgutil.iter_modules(sim_envs.tasks.__path__))


def get_task(name: str) -> Task:
    """Return the task called ``name``.

    Raises:
        RefusedError: no such task; the message lists all and names the nearest.
    """
    if name not in task_names():
        raise RefusedError(f"Unknown task {name!r}. {nearest(name, task_names())}")
    task: Task = importlib.import_module(f"sim_envs.tasks.{name}").TASK
    return task


def make_env(name: str, options: EnvOptions | None = None) -> Env:
    """Build a batch of environments of the task called ``name``.

    Raises:
        RefusedError: unknown task, or a fidelity, camera or number that this task does not offer.
    """
    task = get_task(name)
    options = options or EnvOptions()
    if options.num_envs < 1 or options.num_threads < 1 or options.image_size < 1:
        raise RefusedError(f"num_envs, num_threads and image_size must be at least 1, got {options}.")
    if options.max_episode_steps is not None and options.max_episode_steps < 1:
        raise RefusedError(f"max_episode_steps must be at least 1, got {options.max_episode_steps}.")
    if options.fidelity is not None and options.fidelity not in task.fidelities:
        raise RefusedError(f"Task {name!r} has no fidelity {options.fidelity!r}. Allowed: {', '.join(task.fidelities)}.")
    return task.make_env(options)
