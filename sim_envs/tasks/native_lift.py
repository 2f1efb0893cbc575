"""Lift a cube: own scene written for speed, with the actions and observations of robosuite's Lift."""

from __future__ import annotations

from robolearn.core.protocols import Env, Expert
from sim_envs.task import EnvOptions, Task

MAX_EPISODE_STEPS = 100


def make_env(options: EnvOptions) -> Env:
    """Build a batch of native lift environments."""
    from sim_envs.native_env import NativeLiftEnv

    return NativeLiftEnv(options, MAX_EPISODE_STEPS)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.native_lift import NativeLiftExpert

    return NativeLiftExpert(num_envs, quality)


TASK = Task(
    name="native_lift",
    summary="Pick up a cube from the table (own fast MuJoCo scene with 5 ms physics, Panda).",
    env_id="NativeLift",
    fidelities=("native",),
    max_episode_steps=MAX_EPISODE_STEPS,
    make_env=make_env,
    make_expert=make_expert,
)
