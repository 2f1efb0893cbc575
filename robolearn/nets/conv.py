"""1-D convolutions that stay fast at batch 1 on a CPU; parameters and results are those of torch's modules."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

SMALL_PROBLEM = 16
"""Positions (batch x time) up to which a matmul beats the library's convolutions, which re-pack their weights at every call.

Measured on one core of an AMD EPYC (AVX-512), kernel 5, 256 channels: 0.10 against 0.45 ms at 4 positions, equal at 16;
transposed, kernel 4: 0.18 against 0.90 ms at 8 positions. In training (batch 256) the library's are 1.3 to 1.8 times faster.
"""


class Conv1d(nn.Conv1d):
    """Convolution over (b, channels, time) that becomes one matmul where there are few output positions on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, out_channels, time')."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        if not _is_small(x, 1 + (x.shape[2] + 2 * padding - kernel) // stride):
            return super().forward(x)
        if kernel == 1 and stride == 1 and padding == 0:
            windows = x.transpose(1, 2)
        else:
            windows = functional.pad(x, (padding, padding)).unfold(2, kernel, stride).transpose(1, 2).flatten(2)
        return functional.linear(windows, self.weight.flatten(1), self.bias).transpose(1, 2)


class Upsample1d(nn.ConvTranspose1d):
    """Transposed convolution of kernel 4, stride 2 and padding 1: doubles the time axis of (b, channels, time)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return (b, channels, 2 * time).

        Each input step spreads over four output steps: ``out[2i + j - 1] += x[i] @ weight[..., j]``. So ``out[2i]`` is column 1
        of step i plus column 3 of step i - 1, and ``out[2i + 1]`` is column 2 of step i plus column 0 of step i + 1.
        """
        if not _is_small(x, x.shape[2]):
            return super().forward(x, output_size)
        spread = torch.matmul(x.transpose(1, 2), self.weight.flatten(1)).unflatten(-1, (-1, 4))
        even = spread[..., 1] + functional.pad(spread[:, :-1, :, 3], (0, 0, 1, 0))
        odd = spread[..., 2] + functional.pad(spread[:, 1:, :, 0], (0, 0, 0, 1))
        doubled = torch.stack((even, odd), dim=2).flatten(1, 2)
        return doubled.transpose(1, 2) if self.bias is None else (doubled + self.bias).transpose(1, 2)


def _is_small(x: Tensor, steps: int) -> bool:
    """Whether ``steps`` positions per row are few enough; autocast's casts of the weights would eat the gain."""
    return x.device.type == "cpu" and x.shape[0] * steps <= SMALL_PROBLEM and not torch.is_autocast_enabled("cpu")
