"""A bundle of an untrained policy: its actions depend on every observation, which is all that a transport test needs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from hardware import load_robot
from robolearn.core.observation import flat_streams, select_observation
from robolearn.core.types import ENVIRONMENT_STATE, STATE
from robolearn.data.normalizer import Normalizer, Statistics
from robolearn.deploy.bundle import Bundle, BundleParts, write_bundle
from robolearn.deploy.contracts import contract_from_names
from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.novelty import ObservationNovelty
from robolearn.nets.denoisers import DenoiserConfig
from robolearn.nets.mlp import MlpConfig
from robolearn.policies import config_class, make_policy
from robolearn.policies.loading import save_policy
from robolearn.refine import config_class as method_config
from robolearn.refine import method
from sim_envs.task import EnvOptions, make_env

INITIAL_STATES = 80
FINGERS = ("panda_finger_joint1", "panda_finger_joint2")


def untrained_bundle(
    folder: Path, *, task: str = "lift", kind: str = "chunk_bc", exec_horizon: int = 8, refined: bool = False, **settings: int
) -> Bundle:
    """Return a new bundle; ``refined`` corrects the policy, and scores novelty against the task's initial states.

    ``settings`` are the policy's.
    """
    torch.manual_seed(0)
    env = make_env(task, EnvOptions(1))
    spaces = select_observation(env.spec.spaces, [STATE, ENVIRONMENT_STATE])
    starts = [env.reset([seed]) for seed in range(INITIAL_STATES)] if refined else []
    env.close()
    rng = np.random.default_rng(0)
    rows = {key: rng.uniform(-1, 1, (100, size)) for key, size in flat_streams(spaces).items()}
    normalizer = Normalizer(flat_streams(spaces)).fit({key: Statistics.of(value) for key, value in rows.items()})
    net = DenoiserConfig(kind="mlp", mlp=MlpConfig(width=32, blocks=1, level_width=8))
    config = config_class(kind)(**{"denoiser" if kind == "diffusion" else "net": net}, **settings)
    policy = make_policy(kind, config, spaces, normalizer)
    if refined:
        policy = method("residual").refined_policy(policy, method_config("residual")())
    save_policy(folder / "checkpoint", policy, averaged=policy.state_dict())
    contract = contract_from_names(spaces, arm_joints=load_robot("panda").joints, finger_joints=FINGERS)
    novelty = ObservationNovelty.fit(starts, spaces) if refined else None
    parts = BundleParts(folder / "checkpoint", contract, ExecutorConfig(exec_horizon), task, novelty=novelty)
    return write_bundle(folder / "bundle", parts)
