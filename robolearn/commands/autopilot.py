"""A trained policy at the controls of a teleoperation session, through the same executor as everywhere."""

from __future__ import annotations

import numpy as np

from robolearn.core.protocols import Policy
from robolearn.core.seeding import generator
from robolearn.core.types import Array, Observation
from robolearn.deploy.executor import ChunkExecutor, ExecutorConfig


class PolicyAutopilot:
    """See :class:`robolearn.teleop.session.Autopilot`. After a person has driven it decides anew from what it has seen since."""

    def __init__(self, policy: Policy, config: ExecutorConfig) -> None:
        self._executor = ChunkExecutor(policy, config, num_rows=1)
        self._rng = generator(0)

    def reset(self, seed: int) -> None:
        """Begin an episode; its randomness is a function of the seed."""
        self._executor.reset()
        self._rng = generator(seed, "teleop", "policy")

    def act(self, observation: Observation) -> Array:
        """Return the action (a,) of one control step."""
        return np.asarray(self._executor.act(observation, [self._rng])[0])

    def skip(self, observation: Observation) -> None:
        """See a step that a person drove."""
        self._executor.skip(observation)
        self._executor.replan()
