"""Scaling of streams to the range a network likes; the numbers travel inside the network's weights as buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError, nearest

type Mode = Literal["min_max", "mean_std", "identity"]
MODES: tuple[str, ...] = get_args(Mode.__value__)

SMALLEST_RANGE = 1e-4
"""An element whose range (``min_max``) or deviation (``mean_std``) is smaller counts as constant: it is centred, not scaled.

Scaling it would blow measurement noise up to full range; the value is Diffusion Policy's (``LinearNormalizer``).
"""


@dataclass(frozen=True)
class Statistics:
    """Per-element statistics of one stream; each field has d entries."""

    minimum: tuple[float, ...]
    maximum: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Population standard deviation."""
    count: int
    """Steps that went in."""

    @classmethod
    def of(cls, rows: np.ndarray) -> Statistics:
        """Measure (steps, d) values, in float64.

        Raises:
            RefusedError: the shape is another, there are no steps, or a value is not finite.
        """
        if rows.ndim != 2 or rows.shape[0] == 0:
            raise RefusedError(f"Statistics need an array of shape (steps, d) with steps > 0, got {rows.shape}.")
        values = rows.astype(np.float64)
        if not np.isfinite(values).all():
            step, element = np.argwhere(~np.isfinite(values))[0]
            raise RefusedError(f"Statistics need finite numbers; step {step}, element {element} is {values[step, element]}.")
        low, high, mean, std = (tuple(part.tolist()) for part in (values.min(0), values.max(0), values.mean(0), values.std(0)))
        return cls(low, high, mean, std, count=len(rows))

    def to_json(self) -> dict[str, object]:
        """Return a JSON form that :meth:`from_json` inverts."""
        return {"min": self.minimum, "max": self.maximum, "mean": self.mean, "std": self.std, "count": self.count}

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> Statistics:
        """Rebuild statistics from :meth:`to_json`.

        Raises:
            RefusedError: a field is missing or malformed.
        """
        try:
            numbers = {name: tuple(float(x) for x in data[name]) for name in ("min", "max", "mean", "std")}  # type: ignore[attr-defined]
            count = int(data["count"])  # type: ignore[call-overload]
            return cls(numbers["min"], numbers["max"], numbers["mean"], numbers["std"], count=count)
        except (KeyError, TypeError, ValueError) as error:
            raise RefusedError(f"Malformed statistics: {error!r}.") from error


class Normalizer(nn.Module):
    """Per stream and element ``apply(x) = (x - centre) * scale``, inverted by ``invert(x) = x / scale + centre``.

    - ``min_max``: centre (max + min) / 2, scale 2 / (max - min): the training data fill [-1, 1].
    - ``mean_std``: centre mean, scale 1 / std.
    - ``identity``: centre 0, scale 1.

    An element that hardly moves (:data:`SMALLEST_RANGE`) gets scale 1 in either mode. A new module knows its keys and sizes and
    no numbers: it must be fitted or loaded before use.
    """

    def __init__(self, dims: Mapping[str, int], modes: Mapping[str, Mode] | Mode = "min_max") -> None:
        """Prepare buffers.

        Args:
            dims: stream -> number of elements.
            modes: one for all streams, or stream -> mode for each of ``dims``.

        Raises:
            RefusedError: a mode is unknown or missing, or is given for an unknown stream.
        """
        super().__init__()
        self.modes: dict[str, Mode] = dict.fromkeys(dims, modes) if isinstance(modes, str) else dict(modes)
        if set(self.modes) != set(dims):
            raise RefusedError(f"Normaliser modes name {sorted(self.modes)}, the streams are {sorted(dims)}.")
        for key, mode in self.modes.items():
            if mode not in MODES:
                raise RefusedError(f"Normaliser mode {mode!r} of {key!r} is unknown. {nearest(mode, MODES)}")
        for key, d in dims.items():
            identity = self.modes[key] == "identity"
            self.register_buffer(_buffer(key, "centre"), torch.full((d,), 0.0 if identity else torch.nan))
            self.register_buffer(_buffer(key, "scale"), torch.full((d,), 1.0 if identity else torch.nan))
        self._ready: set[str] = set()

    def fit(self, statistics: Mapping[str, Statistics]) -> Normalizer:
        """Set centre and scale from the statistics of the training episodes (extra streams are ignored); returns itself.

        Raises:
            RefusedError: a stream's statistics are missing or of another size.
        """
        for key, mode in self.modes.items():
            if key not in statistics:
                raise RefusedError(f"No statistics for {key!r} to fit the normaliser. {nearest(key, statistics)}")
            centre, scale = _centre_and_scale(statistics[key], mode)
            own = self.get_buffer(_buffer(key, "centre"))
            if centre.shape != tuple(own.shape):
                raise RefusedError(f"Statistics of {key!r} have {centre.shape[0]} elements, the normaliser {own.shape[0]}.")
            own.copy_(torch.from_numpy(centre))
            self.get_buffer(_buffer(key, "scale")).copy_(torch.from_numpy(scale))
        self._ready.clear()
        return self

    def apply(self, key: str, x: Tensor) -> Tensor:  # type: ignore[override]
        """Return ``x`` (..., d) of stream ``key`` in normalised units; hides ``torch.nn.Module.apply``, which nothing here needs.

        Raises:
            RefusedError: the key is unknown, the last axis has another size, or the normaliser was never fitted.
        """
        centre, scale = self._numbers(key, x)
        return (x - centre) * scale

    def invert(self, key: str, x: Tensor) -> Tensor:
        """Return normalised ``x`` (..., d) of stream ``key`` in its own units; the errors are those of applying."""
        centre, scale = self._numbers(key, x)
        return x / scale + centre

    def centre(self, key: str) -> Tensor:
        """Return the raw values (d,) of stream ``key`` that are zero in normalised units.

        Raises:
            RefusedError: the key is unknown, or the normaliser was never fitted.
        """
        return self._fitted(key)[0].clone()

    def scale(self, key: str) -> Tensor:
        """Return the normalised units per raw unit (d,) of stream ``key``; the errors are those of :meth:`centre`."""
        return self._fitted(key)[1].clone()

    def _fitted(self, key: str) -> tuple[Tensor, Tensor]:
        if key not in self.modes:
            raise RefusedError(f"The normaliser has no numbers for {key!r}. {nearest(key, self.modes)}")
        return self._numbers(key, self.get_buffer(_buffer(key, "centre")))

    def _numbers(self, key: str, x: Tensor) -> tuple[Tensor, Tensor]:
        if key not in self.modes:
            raise RefusedError(f"The normaliser has no numbers for {key!r}. {nearest(key, self.modes)}")
        centre, scale = self.get_buffer(_buffer(key, "centre")), self.get_buffer(_buffer(key, "scale"))
        if x.shape[-1] != centre.shape[0]:
            raise RefusedError(
                f"{key!r} has {x.shape[-1]} elements in shape {tuple(x.shape)}, the normaliser knows {centre.shape[0]}."
            )
        if key not in self._ready:  # looked at once: on a GPU this waits for the device
            if not bool((torch.isfinite(centre) & torch.isfinite(scale) & (scale != 0)).all()):
                raise RefusedError(f"The normaliser has not been fitted or loaded for {key!r}.")
            self._ready.add(key)
        return centre, scale


def _centre_and_scale(statistics: Statistics, mode: Mode) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 (d,) centre and scale; see :class:`Normalizer`."""
    if mode == "min_max":
        low, high = np.array(statistics.minimum), np.array(statistics.maximum)
        centre, spread, width = (low + high) / 2, (high - low) / 2, high - low
    elif mode == "mean_std":
        centre, spread = np.array(statistics.mean), np.array(statistics.std)
        width = spread
    else:
        centre = np.zeros(len(statistics.mean))
        spread = width = np.ones_like(centre)
    scale = np.divide(1, spread, out=np.ones_like(spread), where=width >= SMALLEST_RANGE)
    return centre.astype(np.float32), scale.astype(np.float32)


def _buffer(key: str, name: str) -> str:
    """Return the buffer's name; torch allows no dot in it."""
    return f"{key.replace('.', '/')}/{name}"
