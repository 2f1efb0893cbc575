"""What is saved when training stops at a loss or gradient that is not finite."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from robolearn.core.run import write_json
from robolearn.data.dataset import Batch
from robolearn.train.checkpoint import to_cpu

DIVERGED_FOLDER = "diverged"


def save_divergence(
    run_dir: Path, *, step: int, process: int, policy: Any, batch: Batch, loss: Callable[[], Tensor]
) -> tuple[Path, str]:
    """Save the batch of the update that failed and a report of what was not finite.

    Args:
        run_dir: the batch goes to ``diverged/<step>/batch_<process>.safetensors``, the report beside it.
        step: completed updates; the next one failed.
        process: number of this process among the training processes.
        policy: module with the weights before the failed update.
        batch: its input.
        loss: repeats the failed forward pass on ``batch`` with the same random draws.

    Returns:
        The folder and a sentence naming the tensors that were not finite.
    """
    folder = run_dir / DIVERGED_FOLDER / f"{step:09d}"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(to_cpu(batch), folder / f"batch_{process}.safetensors")
    policy.zero_grad(set_to_none=True)
    value = loss()
    value.backward()
    value = value.detach()
    bad_inputs = [name for name, tensor in batch.items() if not torch.isfinite(tensor).all()]
    bad_gradients = [n for n, p in policy.named_parameters() if p.grad is not None and not torch.isfinite(p.grad).all()]
    policy.zero_grad(set_to_none=True)
    report = {"step": step, "loss": repr(float(value)), "batch_not_finite": bad_inputs, "gradients_not_finite": bad_gradients}
    write_json(folder / f"report_{process}.json", report)
    shown = f"{bad_gradients[:3]}{f' and {len(bad_gradients) - 3} more' if len(bad_gradients) > 3 else ''}"
    return folder, f"loss {float(value)}; not finite in the batch: {bad_inputs}; in the gradients: {shown}"
