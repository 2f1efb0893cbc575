"""Both hands of a Unitree G1 reach for targets in front of its chest; legs and waist stand still."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from robolearn.core.protocols import Env, Expert
from sim_envs.task import EnvOptions, Task

if TYPE_CHECKING:
    from sim_envs.twin import RobotTwin
    from sim_envs.twin_env import Pose

MAX_EPISODE_STEPS = 100
HANDS = {"left_hand": "left_hand_palm_link", "right_hand": "right_hand_palm_link"}
TARGETS = ("left_target", "right_target")
REACHED_M = 0.04
SPREAD_RAD = 0.5
"""Targets are where the hands are when every joint is up to this far from home: each can be reached."""
NEAREST_M = 0.08
"""Nearer targets are drawn again."""


def begin(rng: np.random.Generator, twin: RobotTwin) -> Mapping[str, Pose]:
    """Draw joint positions and return where the hands would be."""
    import mujoco

    spec, data = twin.spec, mujoco.MjData(twin.data.model)
    here = [twin.data.body(body).xpos for body in HANDS.values()]
    low, high = np.array(spec.position_low) + 0.1, np.array(spec.position_high) - 0.1
    while True:
        data.qpos[:] = np.clip(np.array(spec.home) + rng.uniform(-SPREAD_RAD, SPREAD_RAD, spec.dim), low, high)
        mujoco.mj_kinematics(twin.data.model, data)
        there = [data.body(body).xpos.copy() for body in HANDS.values()]
        far = min(np.linalg.norm(a - b) for a, b in zip(here, there, strict=True))
        # In front, and apart from each other and from the chest.
        if far > NEAREST_M and min(p[0] for p in there) > 0.16 and there[0][1] > 0.08 and there[1][1] < -0.08:
            return {name: (place, np.eye(3)) for name, place in zip(TARGETS, there, strict=True)}


def reached(poses: Mapping[str, Pose]) -> bool:
    """Both palms within 4 cm of their targets."""
    pairs = zip(HANDS, TARGETS, strict=True)
    return all(bool(np.linalg.norm(poses[hand][0] - poses[target][0]) < REACHED_M) for hand, target in pairs)


def make_env(options: EnvOptions) -> Env:
    """Build a batch of reaching robots."""
    from sim_envs.humanoid_scenes import bare_scene
    from sim_envs.twin_env import TwinEnv, TwinTask

    task = TwinTask("g1_reach", "g1", MAX_EPISODE_STEPS, 5, HANDS, TARGETS, bare_scene, begin, reached)
    return TwinEnv(task, options)


def make_expert(num_envs: int, quality: float) -> Expert:
    """Build the scripted demonstrator."""
    from sim_envs.experts.g1_reach import G1ReachExpert

    return G1ReachExpert(num_envs, quality)


TASK = Task(
    name="g1_reach",
    summary="Both hands of a Unitree G1 reach for targets (own model of the upper body, joint positions).",
    env_id="G1Reach",
    fidelities=("native",),
    max_episode_steps=MAX_EPISODE_STEPS,
    make_env=make_env,
    make_expert=make_expert,
)
