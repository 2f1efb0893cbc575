"""A policy of several tasks, told which one to do: it then reads and offers what that task's robot does."""

from __future__ import annotations

from typing import Any, cast

from robolearn.core.multitask import TaskColumns, task_spaces
from robolearn.core.observation import check_observation
from robolearn.core.protocols import ContinuingPolicy, LatentPolicy, Policy, RandomSource
from robolearn.core.types import ActionChunk, Array, Observation


class OneTask:
    """Lays the task's streams out in the joined space and asks the policy.

    Attributes:
        joint: the policy of all tasks.
        task: the one that it does.
        spaces: the task's own.
    """

    def __init__(self, joint: Any, task: str) -> None:
        """Choose ``task`` of a policy with a fitted normaliser.

        Raises:
            RefusedError: the policy does not know the task.
        """
        self.joint, self.task = joint, task
        self.spaces = task_spaces(joint.spaces, task)
        self.obs_horizon, self.pred_horizon = int(joint.obs_horizon), int(joint.pred_horizon)
        self._columns = TaskColumns.of(joint.spaces, task)
        self._absent = {key: joint.normalizer.centre(key).cpu().numpy() for key in self._columns.blocks}

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.Policy.predict`."""
        return self.joint.predict(self._placed(observation), rng)

    def _placed(self, observation: Observation) -> Observation:
        check_observation(observation, self.spaces.observation, self.obs_horizon)
        return self._columns.place({key: observation[key] for key in self.spaces.observation}, self._absent)


class OneTaskLatent(OneTask):
    """The same of a generative policy, which also decodes latent noise and continues chunks."""

    def __init__(self, joint: Any, task: str) -> None:
        super().__init__(joint, task)
        self.latent_shape: tuple[int, ...] = joint.latent_shape

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.LatentPolicy.decode`."""
        return self.joint.decode(self._placed(observation), latent_noise)

    def continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """See :meth:`robolearn.core.protocols.ContinuingPolicy.continue_chunk`."""
        return self.joint.continue_chunk(self._placed(observation), rng, committed, delay=delay, method=method)


def one_task(policy: Policy, task: str) -> Policy:
    """Return a policy of several tasks that does ``task``.

    Raises:
        RefusedError: it was not trained for it; its tasks are named.
    """
    both = isinstance(policy, LatentPolicy) and isinstance(policy, ContinuingPolicy)
    return cast(Policy, OneTaskLatent(policy, task) if both else OneTask(policy, task))
