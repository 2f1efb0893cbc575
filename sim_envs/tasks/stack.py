"""robosuite's Stack: put a small cube on a larger one."""

from __future__ import annotations

import numpy as np

from robolearn.core.protocols import Env, Expert
from robolearn.core.types import Array
from sim_envs.robosuite_task import FIDELITIES, Frame, RobosuiteTask, Situation
from sim_envs.task import EnvOptions, Task

TABLE_HEIGHT_M = 0.8
REACH_M = 0.08
"""Centres of touching cubes (half-sizes 20 and 25 mm) lie closer than the sum of their half-diagonals, 0.0346 + 0.0433 m."""


def success(situation: Situation) -> Array:
    """Cube A lifted 4 cm, touching cube B and not held by both finger pads (``Stack.staged_rewards``)."""
    cube_a, cube_b = situation.points[:, 0], situation.points[:, 1]
    stacked = (cube_a[:, 2] > TABLE_HEIGHT_M + 0.04) & (np.linalg.norm(cube_a - cube_b, axis=-1) < REACH_M)
    # Contacts are looked up one environment at a time, so only where the cheap conditions hold.
    for row in np.flatnonzero(stacked):
        held = situation.touching(row, "left_pad", "cubeA") and situation.touching(row, "right_pad", "cubeA")
        stacked[row] = not held and situation.touching(row, "cubeA", "cubeB")
    return stacked


ROBOSUITE = RobosuiteTask(
    name="stack",
    robosuite_name="Stack",
    max_episode_steps=300,
    frames=(Frame("cubeA", "body", "cubeA_main"), Frame("cubeB", "body", "cubeB_main")),
    success_points=(("body", "cubeA_main"), ("body", "cubeB_main")),
    success=success,
    contact_groups={
        "cubeA": ("cubeA_g0",),
        "cubeB": ("cubeB_g0",),
        "left_pad": ("gripper0_right_finger1_pad_collision",),
        "right_pad": ("gripper0_right_finger2_pad_collision",),
    },
)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of Stack environments."""
    from sim_envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(ROBOSUITE, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.stack import StackExpert

    return StackExpert(num_envs, quality)


TASK = Task(
    name="stack",
    summary="Put a small cube on a larger one (robosuite Stack, Panda).",
    env_id="Stack",
    fidelities=FIDELITIES,
    max_episode_steps=ROBOSUITE.max_episode_steps,
    make_env=make_env,
    make_expert=make_expert,
)
