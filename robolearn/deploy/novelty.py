"""How unlike the training data an observation is, with a threshold that calm operation exceeds with a stated probability.

The score is the mean distance to the k nearest reference observations after whitening: the Mahalanobis metric of the training
data, so that units do not matter. The threshold is split-conformal (Vovk et al. 2005; Lei et al. 2018): observations of episodes
that were kept apart are scored, and the ceil((n + 1)(1 - alpha))-th smallest of the n scores is exceeded by a new observation of
the same kind with a probability of at most alpha, whatever the distribution, as long as it is exchangeable with them. Steps of
one episode are not, so the calibration takes one number per episode, its largest score: the promise is for whole episodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from robolearn.core.errors import RefusedError
from robolearn.core.run import read_json, write_json
from robolearn.core.types import Array, Observation, Spaces, is_image

ARRAYS_FILE, KEYS_FILE = "novelty.safetensors", "novelty.json"
CALIBRATION_EVERY = 4
"""Every fourth episode calibrates the threshold, the others are the reference."""


@dataclass(frozen=True)
class NoveltyConfig:
    """How the score is made."""

    neighbours: int = 5
    """k, reference observations whose mean distance is the score."""
    alpha: float = 0.05
    """Allowed part of calm episodes with a step beyond the threshold."""
    references: int = 2000
    """Reference observations that are kept; more are thinned evenly."""
    ridge: float = 1e-3
    """Added to every eigenvalue of the correlations, so that a direction without variance does not decide alone."""

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.references < self.neighbours:
            raise RefusedError(f"neighbours={self.neighbours} must lie in [1, references={self.references}].")
        if not (0 < self.alpha < 1 and np.isfinite(self.ridge) and self.ridge > 0):
            raise RefusedError(f"alpha={self.alpha} must lie in (0, 1) and ridge={self.ridge} be positive.")


class NoveltyScore:
    """Score of observations (b, d) against reference observations; 1 is the threshold."""

    def __init__(self, centre: Array, whitening: Array, references: Array, *, threshold: float, neighbours: int) -> None:
        d = len(centre)
        if whitening.shape != (d, d) or references.shape[1:] != (d,) or len(references) < neighbours:
            raise RefusedError(f"Shapes {whitening.shape}, {references.shape} do not fit {d} elements, {neighbours} neighbours.")
        if not (np.isfinite(threshold) and threshold > 0):
            raise RefusedError(f"The novelty threshold {threshold} must be positive and finite.")
        self._centre, self._whitening, self._references = centre, whitening, references
        self._squares = (references**2).sum(axis=1)
        self._threshold, self._neighbours = threshold, neighbours

    @classmethod
    def fit(cls, reference: Array, calibration: list[Array], *, config: NoveltyConfig | None = None) -> NoveltyScore:
        """Make a score from training observations (n, d) and the episodes (t, d) that were kept apart.

        Raises:
            RefusedError: too few observations or episodes for alpha, different widths, or a number that is not finite.
        """
        config = config or NoveltyConfig()
        reference = np.asarray(reference, float)
        if reference.ndim != 2 or len(reference) < max(config.neighbours, 2):
            raise RefusedError(f"The reference is (n, d) with n at least {max(config.neighbours, 2)}, got {reference.shape}.")
        rank = int(np.ceil((len(calibration) + 1) * (1 - config.alpha)))
        if rank > len(calibration):
            needed = int(np.ceil(1 / config.alpha)) - 1
            raise RefusedError(f"alpha={config.alpha} needs {needed} calibration episodes, got {len(calibration)}.")
        if not np.isfinite(reference).all():
            raise RefusedError("The reference observations are not all finite.")
        centre = reference.mean(axis=0)
        spread = reference.std(axis=0)
        # An element that never changed in training has no spread of its own; a thousandth of its size must do.
        scale = np.where(spread > 1e-9 * np.maximum(np.abs(centre), 1), spread, 1e-3 * np.maximum(np.abs(centre), 1))
        correlation = np.cov((reference - centre) / scale, rowvar=False).reshape(len(centre), -1)
        values, vectors = np.linalg.eigh(correlation + config.ridge * np.eye(len(centre)))
        whitening = vectors / np.sqrt(values) / scale[:, None]
        kept = reference[np.unique(np.linspace(0, len(reference) - 1, min(config.references, len(reference))).astype(int))]
        references = (kept - centre) @ whitening
        raw = cls(centre, whitening, references, threshold=1.0, neighbours=config.neighbours)
        worst = np.sort([raw(np.asarray(episode, float)).max() for episode in calibration])
        return cls(centre, whitening, references, threshold=float(worst[rank - 1]), neighbours=config.neighbours)

    def __call__(self, observation: Array) -> Array:
        """Return score / threshold (b,) of observations (b, d); infinite where one is not finite.

        Raises:
            RefusedError: the width is not that of the reference.
        """
        observation = np.asarray(observation, float)
        if observation.ndim != 2 or observation.shape[1] != len(self._centre):
            raise RefusedError(f"Observations are (b, {len(self._centre)}), got {observation.shape}.")
        good = np.isfinite(observation).all(axis=1)
        white = (np.where(good[:, None], observation, self._centre) - self._centre) @ self._whitening
        squares = (white**2).sum(axis=1)[:, None] + self._squares - 2 * white @ self._references.T
        nearest = np.partition(squares, self._neighbours - 1, axis=1)[:, : self._neighbours]
        score = np.sqrt(np.maximum(nearest, 0)).mean(axis=1) / self._threshold
        return np.where(good, score, np.inf)

    def state(self) -> dict[str, Array]:
        """Return the arrays that :meth:`restore` reads; safetensors holds them beside a policy."""
        return {
            "centre": self._centre,
            "whitening": self._whitening,
            "references": self._references,
            "threshold": np.array([self._threshold]),
            "neighbours": np.array([self._neighbours]),
        }

    @classmethod
    def restore(cls, state: dict[str, Array]) -> NoveltyScore:
        """Rebuild from :meth:`state`.

        Raises:
            RefusedError: an array is missing or has the wrong shape.
        """
        try:
            centre, whitening, references = (np.asarray(state[key], float) for key in ("centre", "whitening", "references"))
            threshold, neighbours = float(state["threshold"][0]), int(state["neighbours"][0])
        except (KeyError, IndexError) as error:
            raise RefusedError(f"A stored novelty score lacks {error}; it holds {sorted(state)}.") from error
        return cls(centre, whitening, references, threshold=threshold, neighbours=neighbours)


class ObservationNovelty:
    """The score of what a policy sees: its flat observations of one control step, one after the other.

    Pictures are not looked at. A value of 1 is the threshold; the gate slows down from there on and stops at its
    ``novelty_stop``.
    """

    def __init__(self, sizes: Mapping[str, int], score: NoveltyScore) -> None:
        self._sizes, self._score = dict(sizes), score

    @classmethod
    def fit(
        cls, episodes: Sequence[Mapping[str, Array]], spaces: Spaces, *, config: NoveltyConfig | None = None
    ) -> ObservationNovelty:
        """Make the score from training episodes, key -> (t, s); every fourth one is kept apart for the threshold.

        Raises:
            RefusedError: the policy reads nothing flat, or there are too few episodes for ``config.alpha``.
        """
        sizes = {key: feature.shape[0] for key, feature in spaces.observation.items() if not is_image(key)}
        if not sizes:
            raise RefusedError(f"A policy that reads only {list(spaces.observation)} offers nothing flat to score.")
        rows = [np.concatenate([np.asarray(episode[key], float) for key in sizes], axis=1) for episode in episodes]
        reference = [row for i, row in enumerate(rows) if i % CALIBRATION_EVERY]
        calibration = rows[::CALIBRATION_EVERY]
        if not reference:
            raise RefusedError(f"{len(rows)} training episodes are too few to score observations by.")
        return cls(sizes, NoveltyScore.fit(np.concatenate(reference), calibration, config=config))

    def __call__(self, observation: Observation) -> float:
        """Return score / threshold of one observation, key -> (s,); infinite where one is not finite."""
        row = np.concatenate([np.asarray(observation[key], float) for key in self._sizes])
        return float(self._score(row[None])[0])

    def require_fits(self, spaces: Spaces, *, what: str) -> None:
        """Refuse unless it scores exactly the flat observations of ``spaces``.

        Raises:
            RefusedError: names both.
        """
        flat = {key: feature.shape[0] for key, feature in spaces.observation.items() if not is_image(key)}
        if flat != self._sizes:
            raise RefusedError(f"{what}: novelty is scored on {self._sizes}, the policy reads {flat}.")

    def save(self, folder: Path) -> None:
        """Write the score into ``folder``, which is made."""
        folder.mkdir()
        save_file({name: np.ascontiguousarray(value) for name, value in self._score.state().items()}, folder / ARRAYS_FILE)
        write_json(folder / KEYS_FILE, {"sizes": self._sizes})

    @classmethod
    def load(cls, folder: Path) -> ObservationNovelty:
        """Read what :meth:`save` wrote.

        Raises:
            RefusedError: a file is missing, damaged, or does not fit the other.
        """
        card = read_json(folder / KEYS_FILE, what="description of the novelty score")
        sizes = card.get("sizes")
        if not isinstance(sizes, dict) or not all(isinstance(size, int) for size in sizes.values()):
            raise RefusedError(f"{folder / KEYS_FILE}: 'sizes' must map observation keys to sizes, got {sizes!r}.")
        try:
            state = load_file(folder / ARRAYS_FILE)
        except (OSError, SafetensorError) as error:
            raise RefusedError(f"{folder / ARRAYS_FILE} is missing or damaged: {error}.") from error
        width = sum(sizes.values())
        if "centre" in state and len(state["centre"]) != width:
            raise RefusedError(f"{folder}: the sizes {sizes} make {width} elements, the arrays hold {len(state['centre'])}.")
        return cls(sizes, NoveltyScore.restore(state))
