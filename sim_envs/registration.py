"""Gymnasium ids of all tasks: ``robolearn/<Task><Fidelity>-v0``, where a task's default fidelity is not named."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

from sim_envs.task import Task, get_task, task_names

NAMESPACE = "robolearn"
VERSION = 0


def gymnasium_id(task: Task, fidelity: str) -> str:
    """Return the id of a task at a fidelity: ``robolearn/Lift-v0`` is ``exact``, ``robolearn/LiftTurbo-v0`` is ``turbo``."""
    suffix = "" if fidelity == task.fidelities[0] else fidelity.capitalize()
    return f"{NAMESPACE}/{task.env_id}{suffix}-v{VERSION}"


def register_environments() -> None:
    """Register every task and fidelity that is not registered yet; simulators are imported when one is made.

    ``max_episode_steps`` stays unset: our environments truncate by themselves, and a second counter could disagree.
    """
    for name in task_names():
        task = get_task(name)
        for fidelity in task.fidelities:
            if gymnasium_id(task, fidelity) not in registry:
                register(
                    id=gymnasium_id(task, fidelity),
                    entry_point="sim_envs.gymnasium_env:TaskEnv",
                    vector_entry_point="sim_envs.gymnasium_env:TaskVectorEnv",
                    kwargs={"task": name, "fidelity": fidelity},
                )
