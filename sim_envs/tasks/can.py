"""robosuite's PickPlaceCan: carry a can from one bin to its place in the other."""

from __future__ import annotations

import numpy as np

from robolearn.core.protocols import Env, Expert
from robolearn.core.types import Array
from sim_envs.robosuite_task import FIDELITIES, Frame, RobosuiteTask, Situation
from sim_envs.task import EnvOptions, Task

PLACE_LOW_M = (0.1, 0.28, 0.8)
PLACE_HIGH_M = (0.1 + 0.39 / 2, 0.28 + 0.49 / 2, 0.9)
"""The can's quarter of the target bin: bin 2 at (0.1, 0.28, 0.8), size 0.39 x 0.49 m (``PickPlace.not_in_bin``, bin 3)."""
MAX_REACH_REWARD = 0.6


def success(situation: Situation) -> Array:
    """Can inside its quarter of the bin and the gripper away from it (``PickPlace._check_success``)."""
    can = situation.points[:, 0]
    inside = ((can > PLACE_LOW_M) & (can < PLACE_HIGH_M)).all(axis=-1)
    distance = np.linalg.norm(situation.eef[:, 0] - can, axis=-1)
    return inside & (1 - np.tanh(10.0 * distance) < MAX_REACH_REWARD)


ROBOSUITE = RobosuiteTask(
    name="can",
    robosuite_name="PickPlaceCan",
    max_episode_steps=400,
    frames=(Frame("can", "body", "Can_main"),),
    success_points=(("body", "Can_main"),),
    success=success,
    parked_bodies=("Milk_main", "Bread_main", "Cereal_main"),
)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of PickPlaceCan environments."""
    from sim_envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(ROBOSUITE, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.can import CanExpert

    return CanExpert(num_envs, quality)


TASK = Task(
    name="can",
    summary="Carry a can to its place in the other bin (robosuite PickPlaceCan, Panda).",
    env_id="PickPlaceCan",
    fidelities=FIDELITIES,
    max_episode_steps=ROBOSUITE.max_episode_steps,
    make_env=make_env,
    make_expert=make_expert,
)
