"""The order in which training visits windows: a function of seed and position, so that resuming needs one number."""

from __future__ import annotations

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.seeding import generator
from robolearn.core.types import Array


class WindowOrder:
    """An endless row of window numbers: one permutation of all windows per epoch, laid end to end, so that none is dropped."""

    def __init__(self, windows: int, seed: int) -> None:
        if windows < 1:
            raise RefusedError("The training dataset has no windows.")
        self.windows = windows
        self._seed = seed
        self._epoch = -1
        self._permutation: Array = np.empty(0, np.int64)

    def rows(self, start: int, count: int) -> Array:
        """Return the (count,) int64 window numbers at positions ``start`` to ``start + count - 1``."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.windows)
            piece = self._of_epoch(epoch)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return np.concatenate(pieces)

    def _of_epoch(self, epoch: int) -> Array:
        if epoch != self._epoch:
            self._permutation = generator(self._seed, "window order", epoch).permutation(self.windows)
            self._epoch = epoch
        return self._permutation
