"""Observations in, one conditioning vector out; and the checks at the seam where observations enter a policy."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.observation import check_observation, flat_streams
from robolearn.core.types import ACTION, Array, FeatureSpec, Observation, Spaces, is_image
from robolearn.data.normalizer import Normalizer
from robolearn.nets.images import ImageConfig, ImageEncoder, crop, require_large_enough


class ObservationEncoder(nn.Module):
    """Concatenates normalised flat streams and image features over ``obs_horizon`` steps into one vector per row.

    Attributes:
        condition_dim: length of that vector.
    """

    def __init__(self, features: Mapping[str, FeatureSpec], obs_horizon: int, *, image: ImageConfig) -> None:
        super().__init__()
        if obs_horizon < 1:
            raise RefusedError(f"{obs_horizon=} must be at least 1.")
        self.features = dict(features)
        self.obs_horizon = obs_horizon
        per_step = sum(feature.shape[0] for key, feature in features.items() if not is_image(key))
        self.cameras = [key for key in features if is_image(key)]
        for key in self.cameras:
            require_large_enough(key, features[key].shape, image.crop_fraction)
        self.crop_fraction, self.shared = image.crop_fraction, image.shared
        encoders = min(1, len(self.cameras)) if image.shared else len(self.cameras)
        self.images = nn.ModuleList(ImageEncoder(image) for _ in range(encoders))
        self.condition_dim = obs_horizon * (per_step + 2 * image.keypoints * len(self.cameras))

    def forward(self, observation: Mapping[str, Tensor], rng: torch.Generator | None) -> Tensor:
        """Return the condition (b, condition_dim).

        Args:
            observation: key -> (b, o, ...), flat streams normalised, images raw uint8 (b, o, height, width, 3).
            rng: draws the crops in training; None crops the centre.
        """
        parts = [observation[key].flatten(1) for key in self.features if not is_image(key)]
        for index, key in enumerate(self.cameras):
            pictures = crop(observation[key], self.crop_fraction, rng)
            encoder = self.images[0 if self.shared else index]
            parts.append(encoder(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).flatten(1))
        return torch.cat(parts, dim=-1)

    def positions(self, key: str) -> list[list[int]]:
        """Return where the condition holds the elements of ``key``: one list per observation step."""
        sizes = {k: f.shape[0] for k, f in self.features.items() if not is_image(k)}
        flat = self.obs_horizon * sum(sizes.values())
        per_camera = (self.condition_dim - flat) // (self.obs_horizon * max(1, len(self.cameras)))
        start = 0
        for name, size in (sizes | dict.fromkeys(self.cameras, per_camera)).items():
            if name == key:
                return [list(range(start + o * size, start + (o + 1) * size)) for o in range(self.obs_horizon)]
            start += self.obs_horizon * size
        raise RefusedError(f"Observation key {key!r} is not encoded. {nearest(key, self.features)}")

    def element_names(self) -> list[str]:
        """Return a name for each element of the condition: the stream's own, ``<key>.<number>`` where it gives none."""
        flat = [(key, feature) for key, feature in self.features.items() if not is_image(key)]
        steps = range(self.obs_horizon)
        names = [n for key, f in flat for _ in steps for n in f.names or [f"{key}.{i}" for i in range(f.shape[0])]]
        per_camera = (self.condition_dim - len(names)) // max(1, len(self.cameras))
        return names + [f"{key}.{i}" for key in self.cameras for i in range(per_camera)]

    def read(self, observation: Observation, device: torch.device) -> dict[str, Tensor]:
        """Check a raw observation (:func:`check_observation`); return tensors of the encoded keys on ``device``."""
        check_observation(observation, self.features, self.obs_horizon)
        return {key: _tensor(observation[key], device) for key in self.features}

    def check(self, batch: Mapping[str, Tensor]) -> None:
        """Refuse a training batch whose observation keys or shapes are not the encoder's; values are not looked at."""
        for key, feature in self.features.items():
            if key not in batch:
                raise RefusedError(f"Batch lacks {key!r}; it has {sorted(batch)}.")
            wanted = (self.obs_horizon, *feature.shape)
            if tuple(batch[key].shape[1:]) != wanted:
                raise RefusedError(f"{key} must have shape (b, {', '.join(map(str, wanted))}), got {tuple(batch[key].shape)}.")


def require_streams(normalizer: Normalizer, spaces: Spaces) -> Normalizer:
    """Return ``normalizer``, refused unless its streams are exactly those that a policy of ``spaces`` normalises."""
    wanted = set(flat_streams(spaces))
    if not isinstance(normalizer, Normalizer) or set(normalizer.modes) != wanted:
        came = sorted(normalizer.modes) if isinstance(normalizer, Normalizer) else normalizer
        raise RefusedError(f"The normaliser must know exactly {sorted(wanted)}; it knows {came}.")
    return normalizer


def check_actions(batch: Mapping[str, Tensor], pred_horizon: int, action_dim: int) -> Tensor:
    """Return ``batch["action"]`` (b, h, a), refused by name where it is missing or has another shape."""
    if ACTION not in batch:
        raise RefusedError(f"Batch lacks {ACTION!r}; it has {sorted(batch)}.")
    action = batch[ACTION]
    if action.ndim != 3 or tuple(action.shape[1:]) != (pred_horizon, action_dim):
        raise RefusedError(f"action must have shape (b, {pred_horizon}, {action_dim}), got {tuple(action.shape)}.")
    return action


def _tensor(value: Array, device: torch.device) -> Tensor:
    dtype = np.uint8 if value.dtype == np.uint8 else np.float32
    return torch.from_numpy(np.ascontiguousarray(value, dtype=dtype)).to(device)
