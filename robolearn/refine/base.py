"""What all refinement methods share: the frozen base inside a refined policy, and what a checkpoint holds of the learners."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from robolearn.core.config import Named
from robolearn.core.errors import RefusedError
from robolearn.core.observation import flat_streams
from robolearn.data.normalizer import Normalizer
from robolearn.data.replay_buffer import ReplayBatch
from robolearn.policies import make_policy
from robolearn.train.checkpoint import require_same_tensors


def wrap(base: nn.Module, name: str, config: Any) -> Any:
    """Return refined policy ``name`` around ``base``, whose weights it copies; equal to the base until it has learned.

    Args:
        base: a loaded policy.
        name: ``corrected`` or ``steered``.
        config: its configuration; the field ``base`` is filled in.

    Raises:
        RefusedError: the base has no weights or lacks what the method needs.
    """
    if not isinstance(base, nn.Module):
        raise RefusedError("Only a policy with weights can be refined.")
    own = base.card()  # type: ignore[operator]
    spaces = base.spaces
    config = replace(config, base=Named(own["policy"], base.config))  # type: ignore[arg-type]
    refined: Any = make_policy(name, config, spaces, Normalizer(flat_streams(spaces), own["normalizer"]))  # type: ignore[arg-type]
    refined.base.load_state_dict(base.state_dict())
    refined.to(next(iter(base.state_dict().values())).device).eval()
    return refined


def weights_hash(module: nn.Module) -> str:
    """Return a SHA-256 over the names, types and bytes of all tensors of ``module``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return digest.hexdigest()


def critic_autocast(bf16: bool, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context in which networks compute: bfloat16 if asked for."""
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def descend(loss: Tensor, module: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
    """Make one optimiser step of ``module`` alone; no other parameter that ``loss`` depends on gets a gradient."""
    parameters = list(module.parameters())
    for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
        parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, max_norm)
    optimizer.step()


def module_tensors(modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return weights and Adam states by name."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": value for key, value in state.items()}
    return tensors


def restore_modules(
    tensors: Mapping[str, Tensor], modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Load what :func:`module_tensors` returned.

    Raises:
        RefusedError: the tensors are those of other networks.
    """
    for name, module in modules.items():
        found = {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
        require_same_tensors(module.state_dict(), found, where=f"checkpoint's {name}")
        module.load_state_dict(found)
    for name, optimizer in optimizers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"optimizer/{name}/"):
                index, field = key.removeprefix(f"optimizer/{name}/").split("/")
                state.setdefault(int(index), {})[field] = value
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def settle(target: Tensor, batch: ReplayBatch, weight: float) -> Tensor:
    """Return ``(1 - weight) target + weight outcome`` where the episode's outcome is known, and ``target`` elsewhere, (b,).

    Half bootstrapped, half Monte Carlo: unbiased for the policy that acted, and immediate over any number of steps.
    """
    return torch.where(batch.settled, torch.lerp(target, batch.outcomes, weight), target)
