"""Checks at the seam where observations enter a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import ACTION, Array, FeatureSpec, Observation, Spaces, is_image


def select_observation(spaces: Spaces, keys: Sequence[str]) -> Spaces:
    """Return ``spaces`` with only the observation ``keys``, in that order.

    Raises:
        RefusedError: no key, or one that is not offered.
    """
    if not keys:
        raise RefusedError(f"A policy reads at least one observation key. {nearest('', spaces.observation)}")
    for key in keys:
        if key not in spaces.observation:
            raise RefusedError(f"Observation key {key!r} is not offered. {nearest(key, spaces.observation)}")
    return replace(spaces, observation={key: spaces.observation[key] for key in keys})


def check_observation(observation: Observation, features: Mapping[str, FeatureSpec], obs_horizon: int) -> int:
    """Return the number of rows ``b`` of an observation that a policy can take: key -> (b, obs_horizon, ...), all ``features``.

    Raises:
        RefusedError: a key is missing, a shape or dtype differs, or a value is not finite; the message names the key.
    """
    missing = [key for key in features if key not in observation]
    if missing:
        raise RefusedError(f"The observation lacks {missing}; it has {sorted(observation)}.")
    rows = int(np.shape(observation[next(iter(features))])[0])
    for key, feature in features.items():
        value = observation[key]
        wanted = (rows, obs_horizon, *feature.shape)
        if np.shape(value) != wanted:
            raise RefusedError(f"{key} must have shape {wanted} (batch, obs_horizon, ...), got {np.shape(value)}.")
        kind = "uint8" if is_image(key) else "floating point"
        if is_image(key) != (value.dtype == np.uint8) or (not is_image(key) and value.dtype.kind != "f"):
            raise RefusedError(f"{key} must be {kind}, got {value.dtype}.")
        if not is_image(key) and not np.isfinite(value).all():
            bad = int(np.argwhere(~np.isfinite(value))[0, 0])
            raise RefusedError(f"{key} holds a value that is not finite, first in row {bad}.")
    return rows


def check_latent(latent_noise: Array, observation: Observation, latent_shape: tuple[int, ...]) -> None:
    """Refuse latent noise that is not (b, *latent_shape) for the ``b`` rows of ``observation``.

    Raises:
        RefusedError: names both shapes.
    """
    wanted = (len(next(iter(observation.values()), ())), *latent_shape)
    if np.shape(latent_noise) != wanted:
        raise RefusedError(f"latent_noise must have shape {wanted}, got {np.shape(latent_noise)}.")


def flat_streams(spaces: Spaces) -> dict[str, int]:
    """Return the streams that a policy of these ``spaces`` normalises, with their sizes: flat observations and ``action``."""
    flat = {key: feature for key, feature in spaces.observation.items() if not is_image(key)}
    for key, feature in flat.items():
        if len(feature.shape) != 1:
            raise RefusedError(f"{key} must have shape (s,), got {feature.shape}.")
    return {key: feature.shape[0] for key, feature in flat.items()} | {ACTION: spaces.action_dim}
