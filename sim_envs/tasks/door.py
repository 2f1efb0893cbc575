"""robosuite's Door: turn the handle and pull the door open."""

from __future__ import annotations

from robolearn.core.protocols import Env, Expert
from robolearn.core.types import Array
from sim_envs.robosuite_task import FIDELITIES, Frame, RobosuiteTask, Situation
from sim_envs.task import EnvOptions, Task

OPEN_RAD = 0.3


def success(situation: Situation) -> Array:
    """Hinge turned by more than 0.3 rad (``Door._check_success``)."""
    return situation.angles[:, 0] > OPEN_RAD


ROBOSUITE = RobosuiteTask(
    name="door",
    robosuite_name="Door",
    max_episode_steps=300,
    frames=(Frame("door", "body", "Door_frame"), Frame("handle", "site", "Door_handle")),
    angles=(("hinge_angle", "Door_hinge"), ("handle_angle", "Door_latch_joint")),
    success_points=(),
    success=success,
    reset_moves_bodies=True,
)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of Door environments."""
    from sim_envs.robosuite_env import RobosuiteEnv

    return RobosuiteEnv(ROBOSUITE, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.door import DoorExpert

    return DoorExpert(num_envs, quality)


TASK = Task(
    name="door",
    summary="Turn the handle and pull the door open (robosuite Door, Panda).",
    env_id="Door",
    fidelities=FIDELITIES,
    max_episode_steps=ROBOSUITE.max_episode_steps,
    make_env=make_env,
    make_expert=make_expert,
)
