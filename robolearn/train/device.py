"""Which device computes, and how a batch gets there."""

from __future__ import annotations

import torch

from robolearn.core.errors import RefusedError
from robolearn.data.dataset import Batch


def choose_device(name: str) -> torch.device:
    """Return the torch device called ``name``: ``cpu``, ``cuda``, ``cuda:<index>``, or ``auto`` for CUDA where there is one.

    Raises:
        RefusedError: unknown name, or a GPU that this machine does not have.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda", 0) if gpus else torch.device("cpu")
    available = ["auto", "cpu", *(["cuda"] if gpus else []), *(f"cuda:{i}" for i in range(gpus))]
    if name not in available:
        raise RefusedError(f"Device {name!r} is not available here. Available: {', '.join(available)}.")
    return torch.device("cuda", 0) if name == "cuda" else torch.device(name)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on ``device``; those that are there already are not copied."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
