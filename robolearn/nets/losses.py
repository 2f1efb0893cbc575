"""Reductions that several losses share."""

from __future__ import annotations

from torch import Tensor


def chunk_mean(error: Tensor, is_pad: Tensor | None) -> Tensor:
    """Return the mean of elementwise errors (b, h, a), over the steps that ``is_pad`` (b, h) bool does not mark; scalar."""
    if is_pad is None:
        return error.mean()
    kept = (~is_pad).to(error.dtype)
    return (error.mean(dim=-1) * kept).sum() / kept.sum().clamp_min(1.0)
