"""Lift a cube: own scene written for speed, with the actions and observations of robosuite's Lift."""

from sim_envs.experts.native_lift import NativeLiftExpert
from sim_envs.native_env import NativeLiftEnv
from sim_envs.task import Task

MAX_EPISODE_STEPS = 100

TASK = Task(
    name="native_lift",
    summary="Panda lifts a cube; own fast MuJoCo scene (5 ms physics).",
    env_id="NativeLift",
    fidelities=("native",),
    max_episode_steps=MAX_EPISODE_STEPS,
    make_env=lambda options: NativeLiftEnv(options, MAX_EPISODE_STEPS),
    make_expert=NativeLiftExpert,
)
