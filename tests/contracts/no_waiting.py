"""Watches that nothing in a step of learning makes the host wait for the device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class NoWaiting(TorchDispatchMode):
    """Fails where an operator makes the host wait for a number or a size: on a GPU that stops everything."""

    WAITING = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal", "aten::is_nonzero")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        masked = name.startswith("aten::index") and any(i.dtype == torch.bool for i in args[1] if isinstance(i, torch.Tensor))
        assert name not in self.WAITING, name
        assert not masked, f"{name} with a mask"
        return func(*args, **(kwargs or {}))
