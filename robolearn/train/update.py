"""One gradient step: loss, backward, clipping, AdamW; nothing in it makes the host wait for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.train.checkpoint import require_same_tensors
from robolearn.train.config import TrainConfig
from robolearn.train.interfaces import Batch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SLOTS = ("step", "exp_avg", "exp_avg_sq")


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
    """Trains the parameters of ``policy``; from the first loss or gradient that is not finite on, nothing moves any more.

    That stop happens on the device: AdamW's fused kernel reads :attr:`diverged` (as it reads a gradient scaler's verdict) and
    leaves weights and moments alone. The host may look at :attr:`diverged` much later and still finds the last good state.

    Attributes:
        loss_module: called with a batch and a generator; its backward pass leaves the gradients of the whole batch.
        diverged: () float32 on the device, 1 from the first bad update on.
        completed: () int64 on the device, updates that took effect.
    """

    def __init__(self, loss_module: nn.Module, policy: nn.Module, config: TrainConfig, device: torch.device) -> None:
        self.loss_module = loss_module
        self._parameters = {name: p for name, p in policy.named_parameters() if p.requires_grad}
        matrices = [p for p in self._parameters.values() if p.ndim > 1]
        others = [p for p in self._parameters.values() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.precision == "fp16")
        self._clip = config.grad_clip_norm
        self._parallel = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.diverged = torch.zeros((), device=device)
        self.completed = torch.zeros((), dtype=torch.int64, device=device)

    @property
    def reads_every_step(self) -> bool:
        """Whether the host looks at :attr:`diverged` after each update: free on a CPU, and loss scaling waits anyway."""
        return self.diverged.device.type == "cpu" or self.scaler.is_enabled()

    def step(self, batch: Batch, rng: torch.Generator, learning_rate: float) -> dict[str, Tensor]:
        """Make one update and return its metrics, still on the device: loss, gradient norm before clipping, the policy's own."""
        loss, metrics = self.loss_module(batch, rng)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        with torch.no_grad():
            loss = loss.detach()
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            self._note_divergence(loss, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate
            self._apply(gradients, norm)
            self.completed += (1 - self.diverged).long()
        self.optimizer.zero_grad(set_to_none=True)
        return {"loss": loss, "grad_norm": norm, **metrics}

    def _note_divergence(self, loss: Tensor, norm: Tensor) -> None:
        # A loss scaler meets infinite gradients as a matter of course and lowers its scale; only the loss itself counts then.
        finite = torch.isfinite(loss) if self.scaler.is_enabled() else torch.isfinite(loss + norm)
        bad = 1 - finite.float()
        if self._parallel:
            torch.distributed.all_reduce(bad, op=torch.distributed.ReduceOp.MAX)
        torch.maximum(self.diverged, bad, out=self.diverged)

    def _apply(self, gradients: list[Tensor], norm: Tensor) -> None:
        if self.scaler.is_enabled():
            torch._foreach_mul_(gradients, (self._clip / (norm + 1e-6)).clamp(max=1.0))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            return
        # The fused kernel divides by grad_scale and obeys found_inf: clipping and the guard cost no pass over the gradients.
        optimizer: Any = self.optimizer
        optimizer.grad_scale = (norm / self._clip).clamp(min=1.0)
        optimizer.found_inf = self.diverged
        optimizer.step()

    def tensors(self) -> dict[str, Tensor]:
        """Return AdamW's state by parameter name, for a checkpoint."""
        state = self.optimizer.state
        return {f"{name}.{slot}": state[p][slot] for name, p in self._parameters.items() if p in state for slot in _SLOTS}

    def restore(self, tensors: Mapping[str, Tensor], *, step: int, scaler: Mapping[str, Any] | None, where: str) -> None:
        """Continue from a checkpoint's optimiser state after ``step`` updates.

        Raises:
            RefusedError: the tensors do not belong to this policy's parameters.
        """
        expected: dict[str, Tensor] = {}
        for name, p in self._parameters.items():
            expected |= {f"{name}.step": torch.zeros(()), f"{name}.exp_avg": p.detach(), f"{name}.exp_avg_sq": p.detach()}
        require_same_tensors(expected, tensors, where=where)
        for name, p in self._parameters.items():
            self.optimizer.state[p] = {slot: tensors[f"{name}.{slot}"].to(p.device) for slot in _SLOTS}
        if scaler:
            self.scaler.load_state_dict(dict(scaler))
        self.completed.fill_(step)
