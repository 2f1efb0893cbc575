"""robosuite's Lift: pick up a cube from the table."""

from __future__ import annotations

from robolearn.core.protocols import Env, Expert
from robolearn.core.types import Array
from sim_envs.robosuite_task import FIDELITIES, Frame, RobosuiteTask, Situation
from sim_envs.task import EnvOptions, Task

TABLE_HEIGHT_M = 0.8


def success(situation: Situation) -> Array:
    """Cube centre more than 4 cm above the table top (``Lift._check_success``)."""
    return situation.points[:, 0, 2] > TABLE_HEIGHT_M + 0.04


ROBOSUITE = RobosuiteTask(
    name="lift",
    robosuite_name="Lift",
    max_episode_steps=200,
    frames=(Frame("cube", "body", "cube_main"),),
    success_points=(("body", "cube_main"),),
    success=success,
)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of Lift environments."""
    from sim_envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(ROBOSUITE, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.lift import LiftExpert

    return LiftExpert(num_envs, quality)


TASK = Task(
    name="lift",
    summary="Pick up a cube from the table (robosuite Lift, Panda).",
    env_id="Lift",
    fidelities=FIDELITIES,
    max_episode_steps=ROBOSUITE.max_episode_steps,
    make_env=make_env,
    make_expert=make_expert,
)
