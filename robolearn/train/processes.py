"""The training processes of one run: one, or several that ``accelerate`` started."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from robolearn.core.errors import RefusedError

if TYPE_CHECKING:
    from accelerate import Accelerator

_DATA_PARALLEL = {"NO", "MULTI_CPU", "MULTI_GPU"}


class Processes:
    """Number and count of this process, and what the processes do together.

    Raises:
        RefusedError: the accelerator is set to something other than plain data parallelism.
    """

    def __init__(self, accelerator: Accelerator | None) -> None:
        self._accelerator = accelerator
        self.index = 0 if accelerator is None else accelerator.process_index
        self.count = 1 if accelerator is None else accelerator.num_processes
        if accelerator is None:
            return
        kind = str(accelerator.distributed_type.value)
        if kind not in _DATA_PARALLEL:
            raise RefusedError(f"accelerate's distributed type {kind} is not supported; use one of {sorted(_DATA_PARALLEL)}.")
        if accelerator.mixed_precision != "no" or accelerator.gradient_accumulation_steps != 1:
            came = f"{accelerator.mixed_precision=}, {accelerator.gradient_accumulation_steps=}"
            raise RefusedError(f"train.precision sets the precision; accelerate must do neither that nor accumulate, got {came}.")

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.index == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return ``module`` such that its backward pass averages gradients over the processes."""
        return module if self._accelerator is None else self._accelerator.prepare_model(module)

    def largest(self, number: int) -> int:
        """Return the largest of the processes' numbers; every process must call this at the same point of its work."""
        if self._accelerator is None or self.count == 1:
            return number
        tensor = torch.tensor([number], device=self._accelerator.device)
        return int(self._accelerator.gather(tensor).max())

    def wait(self) -> None:
        """Return when every process has come here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()
