"""Lift a cube off a moving belt: a task in which a late decision is a wrong one."""

from __future__ import annotations

from robolearn.core.protocols import Env, Expert
from sim_envs.task import EnvOptions, Task

MAX_EPISODE_STEPS = 100


def make_env(options: EnvOptions) -> Env:
    """Build a batch of conveyor environments."""
    from sim_envs.conveyor_env import ConveyorEnv

    return ConveyorEnv(options, MAX_EPISODE_STEPS)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.conveyor import ConveyorExpert

    return ConveyorExpert(num_envs, quality)


TASK = Task(
    name="conveyor",
    summary="Pick up a cube from a moving belt (native lift's scene with a conveyor, Panda).",
    env_id="Conveyor",
    fidelities=("native",),
    max_episode_steps=MAX_EPISODE_STEPS,
    make_env=make_env,
    make_expert=make_expert,
)
