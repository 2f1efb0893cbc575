"""Which device computes, and how a batch gets there."""

from __future__ import annotations

from functools import cache

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


@cache
def multiplies_bf16(device_type: str) -> bool:
    """Return whether ``cpu`` or ``cuda`` has instructions for products of bfloat16 numbers; without, they are the slow ones."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    able = torch.cpu.get_capabilities()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch with every tensor on ``device``; those that are there already are not copied."""
    return {name: value.to(device, non_blocking=True) for name, value in batch.items()}
