"""``robolearn tasks``: what can be simulated."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sim_envs.task import get_task, task_names


def tasks() -> None:
    """Print one line per task."""
    table = Table("task", "gymnasium id", "fidelities (first is the default)", "steps", "summary", title="Tasks")
    for name in task_names():
        task = get_task(name)
        table.add_row(name, f"robolearn/{task.env_id}-v0", ", ".join(task.fidelities), str(task.max_episode_steps), task.summary)
    Console().print(table)
