"""One gradient step: loss, backward, clipping, AdamW; nothing in it makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError
from robolearn.data.dataset import Batch
from robolearn.train.checkpoint import require_same_tensors
from robolearn.train.config import TrainConfig

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_EPSILON = 1e-8
_FIRST_SCALE, _SCALE_GROWTH, _SCALE_BACKOFF, _GROWTH_INTERVAL = 2.0**16, 2.0, 0.5, 2000
"""Loss scaling as in ``torch.amp.GradScaler``."""


class LossModule(nn.Module):
    """A policy whose forward pass is its loss, as torch.compile and data-parallel wrappers want it."""

    def __init__(self, policy: nn.Module, precision: str, device_type: str) -> None:
        super().__init__()
        self.policy: Any = policy
        self._autocast = _AUTOCAST.get(precision)
        self._device_type = device_type

    def forward(self, batch: Batch, rng: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's loss and metrics, computed in the chosen precision."""
        with torch.autocast(self._device_type, dtype=self._autocast, enabled=self._autocast is not None):
            return self.policy.loss(batch, rng)


class Updater:
    """Trains the parameters of ``policy`` with AdamW (Loshchilov and Hutter 2019).

    From the first loss or gradient that is not finite on, nothing moves any more, and that stop happens on the device: the kernel
    reads :attr:`diverged` and leaves weights and moments alone. The host may look much later and still finds the last good state.
    The kernel is the one behind ``torch.optim.AdamW(fused=True)``, called directly because it also takes the clipping factor and
    the guard (torch keeps these two arguments for its loss scaling): neither then costs a pass over the gradients.

    Attributes:
        loss_module: called with a batch and a generator; its backward pass leaves the gradients of the whole batch.
        diverged: () float32 on the device, 1 from the first bad update on.
        completed: () int64 on the device, updates before the bad one.
    """

    def __init__(self, loss_module: nn.Module, policy: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.loss_module = loss_module
        self._parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        for name, p in self._parameters.items():
            if p.dtype != torch.float32:
                raise RefusedError(f"Parameter {name!r} must be float32 to be trained, got {p.dtype}.")
        self._moments = {
            name: (torch.zeros_like(p.detach()), torch.zeros_like(p.detach())) for name, p in self._parameters.items()
        }
        rows = [(p, *self._moments[name]) for name, p in self._parameters.items()]
        matrices, others = ([row for row in rows if (row[0].ndim > 1) == wanted] for wanted in (True, False))
        self._groups = ((config.weight_decay, matrices), (0.0, others))
        self._betas, self._clip = config.betas, config.grad_clip_norm
        self._parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.diverged = torch.zeros((), device=device)
        self.completed = torch.zeros((), dtype=torch.int64, device=device)
        self._applied = torch.zeros(
            (), device=device
        )  # without those that a loss scale skipped: the bias correction counts these
        self._scale: Tensor | None = None
        if config.precision == "fp16":
            self._scale = torch.full((), _FIRST_SCALE, device=device)
            self._growth = torch.zeros((), dtype=torch.int32, device=device)

    @property
    def reads_every_step(self) -> bool:
        """Whether the host looks at :attr:`diverged` after each update, which is free on a CPU."""
        return self.diverged.device.type == "cpu"

    def step(self, batch: Batch, rng: torch.Generator, learning_rate: float) -> dict[str, Tensor]:
        """Make one update and return its metrics, still on the device: loss, gradient norm before clipping, the policy's own."""
        loss, metrics = self.loss_module(batch, rng)
        (loss if self._scale is None else loss * self._scale).backward()
        with torch.no_grad():
            norm = self._apply(loss.detach(), learning_rate)
        for p in self._parameters.values():
            p.grad = None
        return {"loss": loss, "grad_norm": norm, **metrics}

    def _apply(self, loss: Tensor, learning_rate: float) -> Tensor:
        """Judge, clip and apply the gradients; return their norm before clipping."""
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self._scale is not None:
            norm = norm / self._scale
        overflow = 1 - torch.isfinite(norm).float()
        # A scaled loss overflows as a matter of course, and its scale is lowered; only the loss itself counts as divergence then.
        bad = 1 - torch.isfinite(loss if self._scale is not None else loss + norm).float()
        if self._parallel:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        torch.maximum(self.diverged, bad, out=self.diverged)
        skip = torch.maximum(self.diverged, overflow)
        self.completed += (1 - self.diverged).long()
        self._applied += 1 - skip
        divisor = (norm / self._clip).clamp(min=1.0)
        if self._scale is not None:
            divisor = divisor * self._scale
            self._adapt_scale(overflow)
        for decay, group in self._groups:
            self._adamw(group, learning_rate, decay, divisor, skip)
        return norm

    def _adamw(
        self, group: list[tuple[nn.Parameter, Tensor, Tensor]], learning_rate: float, decay: float, divisor: Tensor, skip: Tensor
    ) -> None:
        rows = [(p, p.grad, first, second) for p, first, second in group if p.grad is not None]
        if rows:
            parameters, gradients, firsts, seconds = (list(column) for column in zip(*rows, strict=True))
            torch._fused_adamw_(
                parameters, gradients, firsts, seconds, [], [self._applied] * len(rows),
                lr=learning_rate, beta1=self._betas[0], beta2=self._betas[1], weight_decay=decay, eps=_EPSILON,
                amsgrad=False, maximize=False, grad_scale=divisor, found_inf=skip,
            )  # fmt: skip
            # The kernel does not say that it wrote; whoever keeps something made from the weights would not notice.
            torch.autograd.graph.increment_version(parameters)

    def _adapt_scale(self, overflow: Tensor) -> None:
        assert self._scale is not None
        before = self._scale.clone(), self._growth.clone()
        torch._amp_update_scale_(self._scale, self._growth, overflow, _SCALE_GROWTH, _SCALE_BACKOFF, _GROWTH_INTERVAL)
        for tensor, old in zip((self._scale, self._growth), before, strict=True):
            tensor.copy_(torch.where(self.diverged > 0, old, tensor))

    def tensors(self) -> dict[str, Tensor]:
        """Return AdamW's state, moments by parameter name, for a checkpoint."""
        state = {"applied": self._applied}
        if self._scale is not None:
            state |= {"loss_scale": self._scale, "loss_scale_growth": self._growth}
        for name, (first, second) in self._moments.items():
            state |= {f"{name}.exp_avg": first, f"{name}.exp_avg_sq": second}
        return state

    def restore(self, tensors: Mapping[str, Tensor], *, step: int, where: str) -> None:
        """Continue from a checkpoint's optimiser state after ``step`` updates.

        Raises:
            RefusedError: the tensors do not belong to this policy's parameters.
        """
        own = self.tensors()
        require_same_tensors(own, tensors, where=where)
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
        self.completed.fill_(step)
