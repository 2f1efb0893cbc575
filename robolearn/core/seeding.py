"""Seeds: one root seed gives every consumer a named, independent generator; rows of a batch can have one each."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import RandomSource
from robolearn.core.types import Array

TRAIN_SEED_BLOCK = 0
"""Initial states of demonstrations start at this seed."""
ONLINE_SEED_BLOCK = 10_000_000
"""Initial states met by online refinement."""
SEEDS_PER_RUN = 1_000_000
"""Seeds of one online run: run ``seed`` has those from ``ONLINE_SEED_BLOCK + seed SEEDS_PER_RUN`` on."""
VALIDATION_SEED_BLOCK = 50_000_000
"""Initial states used to choose a checkpoint."""
TEST_SEED_BLOCK = 100_000_000
"""Initial states of reported evaluations; never used to choose anything."""


def first_online_seed(seed: int) -> int:
    """Return the first initial state of the online run with this seed.

    Raises:
        RefusedError: its initial states would be those of validation or test.
    """
    first = ONLINE_SEED_BLOCK + seed * SEEDS_PER_RUN
    if first in (VALIDATION_SEED_BLOCK, TEST_SEED_BLOCK):
        block = "validation" if first == VALIDATION_SEED_BLOCK else "test"
        raise RefusedError(f"{seed=} would train on the initial states of the {block} episodes, from {first} on; take another.")
    return first


def generator(seed: int, *names: str | int) -> np.random.Generator:
    """Return the generator of the consumer called ``names`` under the root ``seed``.

    Names are hashed into the spawn key of a SeedSequence, so adding a consumer never shifts the stream of another.
    """
    if seed < 0:
        raise RefusedError(f"{seed=} must not be negative.")
    key = tuple(n if isinstance(n, int) else zlib.crc32(n.encode()) for n in names)
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=key))


def standard_normal(rng: RandomSource, shape: Sequence[int]) -> Array:
    """Draw float32 N(0, 1) noise of ``shape`` (b, ...); from one generator, or row i from generator i."""
    if isinstance(rng, np.random.Generator):
        return rng.standard_normal(tuple(shape), dtype=np.float32)
    if len(rng) != shape[0]:
        raise RefusedError(f"{len(rng)} generators for {shape[0]} rows; one per row is needed.")
    return np.stack([g.standard_normal(tuple(shape[1:]), dtype=np.float32) for g in rng])


def uniform(rng: RandomSource, shape: Sequence[int]) -> Array:
    """Draw float32 U[0, 1) noise of ``shape`` (b, ...), rows as in :func:`standard_normal`."""
    if isinstance(rng, np.random.Generator):
        return rng.random(tuple(shape), dtype=np.float32)
    if len(rng) != shape[0]:
        raise RefusedError(f"{len(rng)} generators for {shape[0]} rows; one per row is needed.")
    return np.stack([g.random(tuple(shape[1:]), dtype=np.float32) for g in rng])
