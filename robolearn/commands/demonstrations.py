"""Scripted demonstrations: roll an expert out and hand over whole episodes, failures included, in the order of their seeds."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from robolearn.core.protocols import Env, Expert
from robolearn.core.types import ACTION, Array, Episode, Observation
from robolearn.data.header import ACTION_SENT, T_WALL


def demonstrate(env: Env, expert: Expert, *, first_seed: int) -> Iterator[Episode]:
    """Yield one episode per seed, from ``first_seed`` upwards, without end.

    An episode holds every observation stream, the intended ``action``, the ``action.sent`` with its deliberate noise, and
    the wall-clock time of each step. All but the last depends on its seed alone: batches are finished as a whole and yielded in
    seed order, so the batch size changes only speed.
    """
    seed = first_seed
    while True:
        seeds = np.arange(seed, seed + env.num_envs)
        yield from _batch(env, expert, seeds)
        seed += env.num_envs


def _batch(env: Env, expert: Expert, seeds: Array) -> list[Episode]:
    observation = env.reset(seeds)
    expert.reset(seeds)
    observations: list[Observation] = []
    intended_actions, sent_actions, stamps = [], [], []
    lengths = np.zeros(env.num_envs, np.int64)
    success = np.zeros(env.num_envs, bool)
    ended = np.zeros(env.num_envs, bool)
    while not ended.all():
        # Environments reuse their output arrays from step to step.
        stamps.append(np.full(env.num_envs, time.time()))
        observations.append({key: value.copy() for key, value in observation.items()})
        sent, intended = expert.act(observation)
        sent_actions.append(sent.astype(np.float32))
        intended_actions.append(intended.astype(np.float32))
        lengths += ~ended
        step = env.step(sent)
        observation, ended, success = step.observation, step.ended.copy(), step.success.copy()
    streams = {key: np.stack([o[key] for o in observations]) for key in observations[0]}
    streams |= {ACTION: np.stack(intended_actions), ACTION_SENT: np.stack(sent_actions), T_WALL: np.stack(stamps)}
    return [
        Episode(
            data={key: value[: lengths[i], i].copy() for key, value in streams.items()},
            success=bool(success[i]),
            seed=int(seeds[i]),
            metadata={"operator": "scripted expert", "outcome": "success" if success[i] else "failure"},
        )
        for i in range(env.num_envs)
    ]
