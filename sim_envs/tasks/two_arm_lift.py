"""robosuite's TwoArmLift: two arms lift a pot by its handles."""

from __future__ import annotations

from robolearn.core.protocols import Env, Expert
from robolearn.core.types import Array
from sim_envs.robosuite_task import FIDELITIES, Frame, RobosuiteTask, Situation
from sim_envs.task import EnvOptions, Task

POT_HALF_HEIGHT_M = 0.07


def success(situation: Situation) -> Array:
    """Pot bottom more than 10 cm above the table top (``TwoArmLift._check_success``)."""
    return situation.points[:, 0, 2] - POT_HALF_HEIGHT_M > situation.points[:, 1, 2] + 0.10


ROBOSUITE = RobosuiteTask(
    name="two_arm_lift",
    robosuite_name="TwoArmLift",
    max_episode_steps=300,
    num_arms=2,
    frames=(
        Frame("pot", "body", "pot_root"),
        Frame("handle0", "site", "pot_handle0"),
        Frame("handle1", "site", "pot_handle1", arm=1),
    ),
    success_points=(("site", "pot_center"), ("site", "table_top")),
    success=success,
    cameras=("agentview", "frontview", "birdview", "robot0_eye_in_hand", "robot1_eye_in_hand"),
)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of TwoArmLift environments."""
    from sim_envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(ROBOSUITE, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.two_arm_lift import TwoArmLiftExpert

    return TwoArmLiftExpert(num_envs, quality)


TASK = Task(
    name="two_arm_lift",
    summary="Lift a pot by its two handles (robosuite TwoArmLift, two Pandas).",
    env_id="TwoArmLift",
    fidelities=FIDELITIES,
    max_episode_steps=ROBOSUITE.max_episode_steps,
    make_env=make_env,
    make_expert=make_expert,
)
