"""How strongly a new chunk is held to what is already being executed; see :class:`robolearn.core.protocols.ContinuingPolicy`."""

from __future__ import annotations

import math

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array


def soft_weights(delay: int, planned: int, horizon: int) -> Array:
    """Return (horizon,) float32 how strongly each step of a new chunk is held to the committed one.

    1 for the ``delay`` steps that will have been executed before the chunk arrives, then decaying as ``c (e^c - 1) / (e - 1)``
    with ``c = (planned - i) / (planned - delay + 1)``, to 0 at ``planned``, behind which nothing is committed (Black et al. 2025,
    arXiv 2506.07339, eq. 5).

    Raises:
        RefusedError: not 0 <= delay <= planned <= horizon.
    """
    if not 0 <= delay <= planned <= horizon:
        raise RefusedError(f"A delay of {delay} steps must lie in [0, {planned}], the planned steps, of a chunk of {horizon}.")
    step = np.arange(horizon)
    part = np.clip((planned - step) / (planned - delay + 1), 0.0, 1.0)
    return np.where(step < delay, 1.0, part * np.expm1(part) / (math.e - 1.0)).astype(np.float32)
