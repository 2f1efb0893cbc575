"""The seams of the platform: loops know these interfaces and no task, policy or method by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from robolearn.core.types import ActionChunk, Array, EnvSpec, Observation, Spaces, Step

type RandomSource = np.random.Generator | Sequence[np.random.Generator]
"""One generator, or one per batch row: with one per row a row's result does not depend on what else is in the batch."""


@runtime_checkable
class Env(Protocol):
    """A batch of ``b`` environments that step together; nothing resets by itself.

    An environment whose episode has ended ignores actions and repeats its last result until it is reset.
    """

    spec: EnvSpec
    num_envs: int

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> Observation:
        """Start episodes from ``seeds``.

        Args:
            seeds: (b,) one seed per environment; equal seeds give equal episodes for equal actions.
            mask: (b,) bool, which environments to reset; all by default. Others keep their state (their seeds are ignored).

        Returns:
            Observation of all ``b`` environments.
        """

    def step(self, action: Array) -> Step:
        """Apply ``action`` (b, a) for one control step.

        Raises:
            RefusedError: the shape is not (b, a) or a value is not finite; no environment has moved.
        """

    def render(self, index: int, camera: str, height: int, width: int) -> Array:
        """Return a (height, width, 3) uint8 picture of environment ``index``."""

    def close(self) -> None:
        """Free simulators and graphics contexts."""


class Expert(Protocol):
    """A scripted demonstrator for a batch of environments; reads privileged observations only, never the simulator."""

    def reset(self, seeds: Sequence[int] | Array, mask: Array | None = None) -> None:
        """Draw a new style (approach side, speed, pauses, ...) from each seed, for the masked environments."""

    def act(self, observation: Observation) -> tuple[Array, Array]:
        """Return (executed, intended) actions, each (b, a): with and without the deliberate noise."""


@runtime_checkable
class Policy(Protocol):
    """Observation history in, chunk of future actions out; holds no episode state."""

    spaces: Spaces
    obs_horizon: int
    pred_horizon: int

    def predict(self, observation: Observation, rng: RandomSource) -> ActionChunk:
        """Return ``pred_horizon`` actions for each row.

        Args:
            observation: key -> (b, obs_horizon, ...) in raw units, newest last.
            rng: source of every random draw.
        """


@runtime_checkable
class LatentPolicy(Policy, Protocol):
    """A generative policy whose chunk is a deterministic function of the observation and of one noise tensor."""

    latent_shape: tuple[int, ...]

    def decode(self, observation: Observation, latent_noise: Array) -> ActionChunk:
        """Return the chunk that ``latent_noise`` (b, *latent_shape) generates; ``predict`` is this on standard normal noise."""


@runtime_checkable
class ContinuingPolicy(Policy, Protocol):
    """A policy whose chunk can begin with what the robot will be executing while the chunk is computed (real-time chunking)."""

    def continue_chunk(
        self, observation: Observation, rng: RandomSource, committed: Array, *, delay: int, method: str
    ) -> ActionChunk:
        """Return chunks like :meth:`Policy.predict`'s that continue ``committed``.

        Args:
            observation: key -> (b, obs_horizon, ...) in raw units, newest last.
            rng: source of every random draw.
            committed: (b, n, a) raw units, what is planned from the newest observation's step on, n <= pred_horizon.
            delay: leading steps of it that will have been executed when the chunk arrives.
            method: ``trained`` (the policy was trained to be given them) or ``guided`` (each denoising step is pulled to them,
            and
                more softly to the rest of the plan).

        Raises:
            RefusedError: the delay is longer than the plan, or than the policy was trained for.
        """


@runtime_checkable
class CorrectingPolicy(Policy, Protocol):
    """A policy that adjusts each action of its chunk when its turn comes, from what is seen by then (residual policies)."""

    def correct(self, observation: Observation, action: Array, rng: RandomSource) -> Array:
        """Return the actions (b, a) to execute now in place of the chunk's ``action`` (b, a).

        Args:
            observation: key -> (b, obs_horizon, ...) in raw units, newest last.
            action: (b, a) raw units, what the chunk holds for this step.
            rng: source of every random draw.
        """
