"""The order in which training visits windows: a function of seed and position, so that resuming needs one number."""

from __future__ import annotations

import torch

from robolearn.core.errors import RefusedError
from robolearn.core.seeding import generator


class WindowOrder:
    """An endless row of window numbers: one permutation of all windows per epoch, laid end to end, so that none is dropped.

    With weights, an epoch is as many draws with replacement, each window in proportion to its weight.

    The numbers lie on the training device: copying them there for every batch would make the host wait for the device.
    """

    def __init__(
        self, windows: int, seed: int, device: torch.device | str = "cpu", *, weights: torch.Tensor | None = None
    ) -> None:
        """``weights`` (windows,), none negative, not all zero."""
        if windows < 1:
            raise RefusedError("The training dataset has no windows.")
        if weights is not None and (len(weights) != windows or not bool((weights >= 0).all()) or not float(weights.sum()) > 0):
            raise RefusedError(f"{windows} weights, none negative and not all zero, are needed; got {len(weights)}.")
        self._chances = None if weights is None else (weights.double() / weights.double().sum()).cpu().numpy()
        self.windows = windows
        self._seed = seed
        self._device = device
        self._epoch = -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def rows(self, start: int, count: int) -> torch.Tensor:
        """Return the (count,) int64 window numbers at positions ``start`` to ``start + count - 1``."""
        pieces = []
        while count > 0:
            epoch, offset = divmod(start, self.windows)
            piece = self._of_epoch(epoch)[offset : offset + count]
            pieces.append(piece)
            start, count = start + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def _of_epoch(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            rng = generator(self._seed, "window order", epoch)
            if self._chances is None:
                permutation = rng.permutation(self.windows)
            else:
                permutation = rng.choice(self.windows, size=self.windows, p=self._chances)
            self._permutation, self._epoch = torch.from_numpy(permutation).to(self._device), epoch
        return self._permutation
