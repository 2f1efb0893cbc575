"""Camera pictures in, feature vectors out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError


@dataclass(frozen=True)
class ImageConfig:
    """How camera pictures become features: ResNet-18 from scratch with GroupNorm, then spatial softmax."""

    crop_fraction: float = 0.9
    """Side of the crop over side of the picture; random in training, centred otherwise. 1 crops nothing."""
    keypoints: int = 32
    """Expected image positions per camera and step; two numbers each."""
    shared: bool = False
    """One encoder for all cameras instead of one per camera."""

    def __post_init__(self) -> None:
        if not 0.0 < self.crop_fraction <= 1.0 or self.keypoints < 1:
            raise RefusedError(f"Image encoder: crop_fraction must lie in (0, 1] and keypoints be >= 1; got {self}.")


class ImageEncoder(nn.Module):
    """ResNet-18 (He et al. 2016) without its pooling, then the expected positions of ``keypoints`` feature maps.

    BatchNorm is replaced by GroupNorm with 16 channels per group, because running statistics and averaged weights do not mix
    (Chi et al. 2023, section 3.2).
    """

    def __init__(self, config: ImageConfig) -> None:
        from torchvision.models import resnet18  # costs seconds at import

        super().__init__()
        trunk = resnet18(weights=None, norm_layer=lambda channels: nn.GroupNorm(channels // 16, channels))
        self.trunk = nn.Sequential(*list(trunk.children())[:-2])
        self.keypoints = nn.Conv2d(512, config.keypoints, 1)
        self.feature_dim = 2 * config.keypoints

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 pictures (n, height, width, 3) to (n, feature_dim)."""
        x = images.permute(0, 3, 1, 2).to(self.keypoints.weight.dtype) / 127.5 - 1.0
        return expected_positions(self.keypoints(self.trunk(x)).float())


def require_large_enough(key: str, shape: tuple[int, ...], fraction: float) -> None:
    """Refuse cameras whose cropped pictures ResNet-18, which divides by 32, would shrink to one pixel: it has no position."""
    if len(shape) != 3 or shape[2] != 3 or min(round(side * fraction) for side in shape[:2]) <= 32:
        raise RefusedError(f"{key} of shape {shape} is too small: more than 32 pixels a side must remain of (height, width, 3).")


def expected_positions(maps: Tensor) -> Tensor:
    """Return the (n, 2 k) mean x and y, in [-1, 1], of the softmax of each of ``maps`` (n, k, height, width).

    Spatial softmax (Levine et al. 2016, section 4.2); the k values of x come first.
    """
    height, width = maps.shape[-2:]
    weight = maps.flatten(2).softmax(dim=-1).unflatten(-1, (height, width))
    x = torch.linspace(-1.0, 1.0, width, device=maps.device)
    y = torch.linspace(-1.0, 1.0, height, device=maps.device)
    return torch.cat(((weight.sum(dim=-2) * x).sum(dim=-1), (weight.sum(dim=-1) * y).sum(dim=-1)), dim=-1)


def crop(images: Tensor, fraction: float, rng: torch.Generator | None) -> Tensor:
    """Cut a window out of pictures (b, o, height, width, 3); all steps of one row share its place, so motion stays visible.

    Args:
        images: any dtype.
        fraction: side of the window over side of the picture.
        rng: draws one place per row; None takes the centre.

    Returns:
        (b, o, height', width', 3).
    """
    rows, (height, width) = len(images), (int(side) for side in images.shape[2:4])  # int: a tracer's shapes are tensors
    cut_height, cut_width = round(height * fraction), round(width * fraction)
    spare = torch.tensor([height - cut_height + 1, width - cut_width + 1], device=images.device)
    if rng is None:
        top, left = (height - cut_height) // 2, (width - cut_width) // 2
        return images[:, :, top : top + cut_height, left : left + cut_width]
    corner = (torch.rand((rows, 2), generator=rng, device=images.device) * spare).long()
    y = corner[:, :1] + torch.arange(cut_height, device=images.device)
    x = corner[:, 1:] + torch.arange(cut_width, device=images.device)
    row = torch.arange(rows, device=images.device)[:, None, None]
    # Advanced indices on both sides of a slice put their axes first: (b, height', width', o, 3).
    return images[row, :, y[:, :, None], x[:, None, :]].permute(0, 3, 1, 2, 4)
