"""A Fourier GR1 takes a box between both hands and lifts it off the table; legs and waist stand still."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from robolearn.core.protocols import Env, Expert
from sim_envs.task import EnvOptions, Task

if TYPE_CHECKING:
    from sim_envs.twin import RobotTwin
    from sim_envs.twin_env import Pose

MAX_EPISODE_STEPS = 140
BODIES = {"right_hand": "right_hand_eef", "left_hand": "left_hand_eefd", "box": "box"}
RAISED_M = 0.10
UPRIGHT = 0.9
"""Smallest cosine of the box's tilt."""
PLACE_M = (0.26, 0.015, 0.03)
"""Mean distance of the box in front of the robot, and the half ranges in x and y."""
YAW_RAD = 0.15


def begin(rng: np.random.Generator, twin: RobotTwin) -> Mapping[str, Pose]:
    """Put the box somewhere on the table, at some yaw."""
    import mujoco

    from sim_envs.humanoid_scenes import BOX_HALF_M, BOX_JOINT, TABLE_TOP_M

    yaw = rng.uniform(-YAW_RAD, YAW_RAD)
    x, y = PLACE_M[0] + PLACE_M[1] * rng.uniform(-1, 1), PLACE_M[2] * rng.uniform(-1, 1)
    pose = [x, y, TABLE_TOP_M + BOX_HALF_M[2], np.cos(yaw / 2), 0.0, 0.0, np.sin(yaw / 2)]
    twin.data.joint(BOX_JOINT).qpos[:] = pose
    mujoco.mj_forward(twin.data.model, twin.data)
    return {}


def reached(poses: Mapping[str, Pose]) -> bool:
    """The box's bottom is 10 cm above the table, and the box upright."""
    from sim_envs.humanoid_scenes import BOX_HALF_M, TABLE_TOP_M

    place, turn = poses["box"]
    return bool(place[2] - BOX_HALF_M[2] > TABLE_TOP_M + RAISED_M and turn[2, 2] > UPRIGHT)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of lifting robots."""
    from sim_envs.humanoid_scenes import box_on_table
    from sim_envs.twin_env import TwinEnv, TwinTask

    task = TwinTask("gr1_two_arm_lift", "gr1", MAX_EPISODE_STEPS, 5, BODIES, (), box_on_table, begin, reached)
    return TwinEnv(task, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.gr1_two_arm_lift import Gr1LiftExpert

    return Gr1LiftExpert(num_envs, quality)


TASK = Task(
    name="gr1_two_arm_lift",
    summary="A Fourier GR1 lifts a box between both hands (robosuite's model of the robot, joint positions).",
    env_id="Gr1TwoArmLift",
    fidelities=("native",),
    max_episode_steps=MAX_EPISODE_STEPS,
    make_env=make_env,
    make_expert=make_expert,
)
