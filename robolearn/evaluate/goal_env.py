"""Environments that ask for something: each episode is given a goal, which the policy observes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.core.seeding import generator
from robolearn.core.types import Array, Observation, Step
from robolearn.data.hindsight import GOAL, with_goal


class GoalEnv:
    """Adds ``observation.goal`` to what a batch of environments observes; success stays the task's own.

    An episode's goal is one of a list of wanted states, chosen by its seed.
    """

    def __init__(self, env: Env, keys: Sequence[str], goals: Array) -> None:
        """Wrap ``env``; ``goals`` (n, g) are states of its streams ``keys``, one after the other.

        Raises:
            RefusedError: there are no goals, or they have another size than the streams.
        """
        spaces = with_goal(env.spec.spaces, keys)
        size = spaces.observation[GOAL].shape[0]
        if goals.ndim != 2 or not len(goals) or goals.shape[1] != size:
            raise RefusedError(f"Goals of {list(keys)} must have shape (n, {size}), n > 0; got {goals.shape}.")
        self.env, self.spec, self.num_envs = env, replace(env.spec, spaces=spaces), env.num_envs
        self._goals = goals.astype(np.float32)
        self._chosen = np.zeros((env.num_envs, size), np.float32)

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> Observation:
        """See :meth:`robolearn.core.protocols.Env.reset`; draws the goals of the masked environments."""
        observation = self.env.reset(seeds, mask)
        for row in np.flatnonzero(np.ones(self.num_envs, bool) if mask is None else mask):
            self._chosen[row] = self._goals[generator(int(seeds[row]), "goal").integers(len(self._goals))]
        return self._asked(observation)

    def step(self, action: Array) -> Step:
        """See :meth:`robolearn.core.protocols.Env.step`."""
        step = self.env.step(action)
        return replace(step, observation=self._asked(step.observation))

    def _asked(self, observation: Observation) -> Observation:
        return {**observation, GOAL: self._chosen.copy()}

    def render(self, index: int, camera: str, height: int, width: int) -> Array:
        """See :meth:`robolearn.core.protocols.Env.render`."""
        return self.env.render(index, camera, height, width)

    def close(self) -> None:
        """Close the environments."""
        self.env.close()
