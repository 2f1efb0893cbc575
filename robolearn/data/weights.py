"""How often each episode is drawn in training: weights from quality or returns, and the file that carries them to ``train``.

    {"format": "robolearn-weights", "version": 1, "store_checksum": "...", "method": "...", "weights": [w_0, ..., w_n-1]}

One weight per episode of the store, by position; a window is drawn in proportion to its episode's weight. The checksum
ties the file
to the data that it was made for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array
from robolearn.data.disk import refusal, write_whole
from robolearn.data.quality import EpisodeQuality, StoreQuality
from robolearn.data.store import EpisodeStore

FORMAT, VERSION = "robolearn-weights", 1
MEASURES = ("action_divergence", "transition_diversity", "jerk", "idle", "length")
"""Measures by which episodes are curated; less is better in each."""


def trajectory_weights(scores: Array, *, temperature: float = 0.1) -> Array:
    """Return (n,) weights that sum to 1: softmax of the scores, scaled to [0, 1], over the temperature.

    "Harnessing Mixed Offline Reinforcement Learning Datasets via Trajectory Weighting" (Hong et al. 2023, arXiv
    2306.13085): with the
    returns G as scores these are return-weighted (RW), with G - V(s_0) advantage-weighted (AW); alpha = 0.1 is the paper's.

    Raises:
        RefusedError: the temperature is not positive, or a score is not finite.
    """
    if not temperature > 0 or not np.isfinite(scores).all() or not len(scores):
        raise RefusedError(f"{temperature=} must be positive and all of the {len(scores)} scores finite.")
    spread = scores.max() - scores.min()
    scaled = (scores - scores.min()) / spread if spread > 0 else np.zeros(len(scores))
    exponent = np.exp((scaled - scaled.max()) / temperature)
    return exponent / exponent.sum()


def advantages(returns: Array, first_states: Array, *, ridge: float = 1e-3) -> Array:
    """Return (n,) G - V(s_0) with V the linear regression of returns (n,) on first states (n, s), as in the paper."""
    design = np.concatenate([first_states - first_states.mean(0), np.ones((len(returns), 1))], 1)
    penalty = ridge * np.eye(design.shape[1])
    penalty[-1, -1] = 0.0
    solution = np.linalg.solve(design.T @ design + penalty, design.T @ returns)
    return returns - design @ solution


def curation_weights(quality: StoreQuality, measure: str, *, keep: float) -> Array:
    """Return (n,) weights: equal for the best ``keep`` part of the episodes by a measure (least first), zero for the others.

    Raises:
        RefusedError: an unknown measure, or ``keep`` outside of (0, 1].
    """
    if measure not in MEASURES:
        raise RefusedError(f"Measure {measure!r} is unknown. {nearest(measure, MEASURES)}")
    if not 0 < keep <= 1:
        raise RefusedError(f"{keep=} must lie in (0, 1].")
    values = np.array([_value(e, measure) for e in quality.episodes])
    count = max(1, round(keep * len(values)))
    weights = np.zeros(len(values))
    weights[np.argsort(values, kind="stable")[:count]] = 1 / count
    return weights


def _value(episode: EpisodeQuality, measure: str) -> float:
    return float(getattr(episode, measure))


@dataclass(frozen=True)
class EpisodeWeights:
    """A weights file."""

    store_checksum: str
    method: str
    """In words, for provenance."""
    weights: Array
    """(n,) float64, not negative, not all zero."""

    def __post_init__(self) -> None:
        if (
            self.weights.ndim != 1
            or not np.isfinite(self.weights).all()
            or (self.weights < 0).any()
            or not self.weights.sum() > 0
        ):
            raise RefusedError("Weights are one finite number per episode, none negative and not all zero.")

    def write(self, path: Path) -> None:
        """Write the file.

        Raises:
            RefusedError: it exists, or cannot be written.
        """
        if path.exists():
            raise RefusedError(f"{path} exists; nothing is overwritten.")
        head = {"format": FORMAT, "version": VERSION, "store_checksum": self.store_checksum, "method": self.method}
        try:
            write_whole(path, json.dumps({**head, "weights": self.weights.tolist()}, indent=1).encode())
        except OSError as error:
            raise refusal(error, f"{path} was not written") from error

    @classmethod
    def read(cls, path: Path, store: EpisodeStore) -> EpisodeWeights:
        """Read a file that was made for ``store``.

        Raises:
            RefusedError: missing, damaged, or made for other data.
        """
        try:
            body = json.loads(path.read_bytes())
            found = (body["format"], body["version"])
            weights = cls(str(body["store_checksum"]), str(body["method"]), np.array(body["weights"], np.float64))
        except OSError as error:
            raise refusal(error, f"Cannot read the weights {path}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RefusedError(f"{path} is damaged or no weights file: {error}.") from error
        if found != (FORMAT, VERSION):
            raise RefusedError(f"{path} says format and version {found}; {(FORMAT, VERSION)} is read.")
        if weights.store_checksum != store.checksum() or len(weights.weights) != len(store):
            raise RefusedError(
                f"{path} was made for other data than {store.path} holds now; make it anew: robolearn data quality."
            )
        return weights
