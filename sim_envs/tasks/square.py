"""robosuite's NutAssemblySquare: fit a square nut over a square peg."""

from __future__ import annotations

import numpy as np

from robolearn.core.protocols import Env, Expert
from robolearn.core.types import Array
from sim_envs.robosuite_task import FIDELITIES, Frame, RobosuiteTask, Situation
from sim_envs.task import EnvOptions, Task

PEG_XY_M = (0.23, 0.1)
TABLE_HEIGHT_M = 0.82
MAX_REACH_REWARD = 0.6


def success(situation: Situation) -> Array:
    """Nut within 3 cm of the peg's axis and 5 cm of the table, gripper away from it (``NutAssembly._check_success``)."""
    nut = situation.points[:, 0]
    on_peg = (np.abs(nut[:, :2] - PEG_XY_M) < 0.03).all(axis=-1) & (nut[:, 2] < TABLE_HEIGHT_M + 0.05)
    distance = np.linalg.norm(situation.eef[:, 0] - nut, axis=-1)
    return on_peg & (1 - np.tanh(10.0 * distance) < MAX_REACH_REWARD)


ROBOSUITE = RobosuiteTask(
    name="square",
    robosuite_name="NutAssemblySquare",
    max_episode_steps=400,
    frames=(Frame("nut", "body", "SquareNut_main"),),
    success_points=(("body", "SquareNut_main"),),
    success=success,
    parked_bodies=("RoundNut_main",),
)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of NutAssemblySquare environments."""
    from sim_envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(ROBOSUITE, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.square import SquareExpert

    return SquareExpert(num_envs, quality)


TASK = Task(
    name="square",
    summary="Fit a square nut over a square peg (robosuite NutAssemblySquare, Panda).",
    env_id="NutAssemblySquare",
    fidelities=FIDELITIES,
    max_episode_steps=ROBOSUITE.max_episode_steps,
    make_env=make_env,
    make_expert=make_expert,
)
