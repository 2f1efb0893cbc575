"""Windows of episodes as tensors on the training device: what was seen, and what was done from then on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, is_image
from robolearn.data.header import ACTION_SENT
from robolearn.data.normalizer import Statistics
from robolearn.data.store import EpisodeStore
from robolearn.data.weights import EpisodeWeights

type Batch = dict[str, Tensor]
"""Key -> (b, o, ...) for observations and (b, h, a) for ``action``, raw units; ``<key>_is_pad`` (b, o) or (b, h) bool."""

PAD_SUFFIX = "_is_pad"


@dataclass(frozen=True)
class WindowConfig:
    """How windows are cut from episodes."""

    obs_horizon: int = 2
    """Observation steps in a window, the newest last."""
    pred_horizon: int = 16
    """Action steps in a window; the first is the action of the newest observation's step."""
    action_key: str = ACTION
    """``action`` learns what was intended, ``action.sent`` what was executed."""
    image_cache_gib: float = 2.0
    """Image streams that fit into so many GiB together are kept decoded on the device; larger ones stream from the store."""

    def __post_init__(self) -> None:
        if self.obs_horizon < 1 or self.pred_horizon < 1:
            raise RefusedError(f"{self.obs_horizon=} and {self.pred_horizon=} must be at least 1.")
        if self.action_key not in (ACTION, ACTION_SENT):
            raise RefusedError(f"action_key {self.action_key!r} is unknown. Allowed: {ACTION!r}, {ACTION_SENT!r}.")


class WindowDataset:
    """One window per step of the chosen episodes; beyond an episode's ends its end step is repeated and marked as padding.

    State streams lie on the device with that padding in place, so a window is one contiguous run of memory: serving a batch is
    one row gather per stream from an overlapping view, without a Python loop.
    """

    def __init__(
        self,
        store: EpisodeStore,
        config: WindowConfig,
        *,
        episodes: Sequence[int],
        keys: Sequence[str] | None = None,
        device: torch.device | str = "cpu",
        weights: EpisodeWeights | None = None,
    ) -> None:
        """Load the state streams.

        Args:
            store: where the episodes lie; it must stay open while image streams are served from it.
            config: how windows are cut.
            episodes: positions in the store; windows are numbered in this order.
            keys: observation streams wanted; all of the store's by default.
            device: where the batches are made.
            weights: how often windows of each episode of the store are drawn in training; alike where None.

        Raises:
            RefusedError: an episode, key or device does not exist, a flat stream holds no floating-point numbers, or there are
                no episodes.
        """
        spaces = store.header.spaces
        keys = list(spaces.observation) if keys is None else list(keys)
        unknown = sorted(set(keys) - set(spaces.observation))
        if unknown or not keys:
            raise RefusedError(f"{store.path} has no observation {unknown}. It offers: {sorted(spaces.observation)}.")
        if config.action_key not in store.header.streams:
            raise RefusedError(f"{store.path} keeps no {config.action_key!r} stream, so it cannot be learnt from.")
        if not len(episodes):
            raise RefusedError(f"No episodes of {store.path} were chosen.")
        self.config = config
        self.spaces = spaces
        self.episodes = [int(i) for i in episodes]
        self.device = _device(device)
        self._store = store
        self._state_keys = [key for key in keys if not is_image(key)]
        for key in (*self._state_keys, config.action_key):
            _require_float(store, key)
        self._image_keys = [key for key in keys if is_image(key)]
        self._streams = self._load_state()
        self.lengths = np.array([store.metadata(i)["length"] for i in self.episodes], dtype=np.int64)
        """(n,) steps of each chosen episode."""
        self.window_weights = self._weigh(weights)
        """(windows,) float64, by which windows are drawn in training; None draws each once an epoch."""
        self._weighted_by = weights.method if weights else None
        self._build_tables()
        self._images = self._load_images()

    def __len__(self) -> int:
        """Return the number of windows, which is the number of steps."""
        return int(self.lengths.sum())

    def batch(self, indices: Tensor) -> Batch:
        """Return the windows whose newest observations are the steps ``indices`` (b,) int64, counted through all episodes."""
        config, b = self.config, indices.shape[0]
        indices = indices.to(self.device)
        obs_pad = self._obs_pad.index_select(0, self._steps_before.index_select(0, indices))
        batch: Batch = {}
        starts = self._obs_starts.index_select(0, indices)
        for key in self._state_keys:
            rows = self._obs_views[key].index_select(0, starts)
            batch[key] = rows.view(b, config.obs_horizon, *self.spaces.observation[key].shape)
            batch[key + PAD_SUFFIX] = obs_pad
        for key in self._image_keys:
            batch[key] = self._image_windows(key, indices)
            batch[key + PAD_SUFFIX] = obs_pad
        rows = self._action_view.index_select(0, self._action_starts.index_select(0, indices))
        batch[ACTION] = rows.view(b, config.pred_horizon, *self.spaces.action.shape)
        batch[ACTION + PAD_SUFFIX] = self._action_pad.index_select(0, self._steps_after.index_select(0, indices))
        return batch

    def states(self, key: str) -> np.ndarray:
        """Return a state stream (windows, d): row i is the newest observation of window i."""
        return self._streams[key]

    def statistics(self) -> dict[str, Statistics]:
        """Return the statistics of every state stream and of ``action``, each step counted once."""
        return {key: Statistics.of(rows) for key, rows in self._streams.items()}

    def provenance(self) -> dict[str, object]:
        """Return which data this is, for run folders and checkpoints."""
        made = {"path": str(self._store.path), "checksum": self._store.checksum(), "episodes": self.episodes, "steps": len(self)}
        return made | ({"weights": self._weighted_by} if self._weighted_by else {})

    def _weigh(self, weights: EpisodeWeights | None) -> Tensor | None:
        if weights is None:
            return None
        per_episode = weights.weights[self.episodes]
        if not per_episode.sum() > 0:
            raise RefusedError(f"Every chosen episode of {self._store.path} has weight 0.")
        return torch.from_numpy(np.repeat(per_episode, self.lengths))

    def _load_state(self) -> dict[str, np.ndarray]:
        """Return stream -> (steps, d) float32 of all chosen episodes in a row; the learnt action is called ``action``."""
        sources = {key: key for key in self._state_keys} | {ACTION: self.config.action_key}
        parts: dict[str, list[np.ndarray]] = {key: [] for key in sources}
        for index in self.episodes:
            episode = self._store.read(index, list(sources.values()))
            for key, source in sources.items():
                # Imported stores may keep float64; networks compute in float32, and acting gives them nothing else.
                array = np.asarray(episode.data[source], np.float32)
                parts[key].append(array.reshape(array.shape[0], -1))
        return {key: np.concatenate(arrays) for key, arrays in parts.items()}

    def _build_tables(self) -> None:
        """Lay out padded streams and, for every window, where it starts in them and how near it is to its episode's ends."""
        o, h, device = self.config.obs_horizon, self.config.pred_horizon, self.device
        lengths = torch.from_numpy(self.lengths)
        firsts = lengths.cumsum(0) - lengths
        order = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        step = torch.arange(int(lengths.sum())) - firsts[order]
        self._episode_of, self._step_of = order, step
        # Each earlier episode contributes its own padding: o - 1 rows before it, or h - 1 rows after it.
        everything = torch.arange(len(step))
        self._obs_starts = (everything + order * (o - 1)).to(device)
        self._action_starts = (everything + order * (h - 1)).to(device)
        # Row n of a mask table: n steps lie before (after) the newest observation in its episode, as far as the window reaches.
        self._steps_before = step.clamp(max=o - 1).to(device)
        self._steps_after = (lengths[order] - 1 - step).clamp(max=h - 1).to(device)
        self._obs_pad = (torch.arange(o - 1, -1, -1)[None] > torch.arange(o)[:, None]).to(device)
        self._action_pad = (torch.arange(h)[None] > torch.arange(h)[:, None]).to(device)
        self._obs_views = {key: self._padded_view(self._streams[key], before=o - 1, after=0) for key in self._state_keys}
        self._action_view = self._padded_view(self._streams[ACTION], before=0, after=h - 1)

    def _padded_view(self, rows: np.ndarray, *, before: int, after: int) -> Tensor:
        """Return the overlapping view (starts, window * d) of a stream, its episodes padded with copies of their end steps."""
        sources, first = [], 0
        for length in self.lengths.tolist():
            sources.append(np.arange(-before, length + after).clip(0, length - 1) + first)
            first += length
        padded = torch.from_numpy(rows[np.concatenate(sources)]).to(self.device)
        window, d = before + after + 1, padded.shape[1]
        return padded.as_strided((padded.shape[0] - window + 1, window * d), (d, 1))

    def _load_images(self) -> dict[str, Tensor] | None:
        """Return stream -> (steps, height, width, 3) on the device, or None where that would not fit the configured memory."""
        steps = len(self)
        size = sum(int(np.prod(self.spaces.observation[key].shape)) * steps for key in self._image_keys)
        if not self._image_keys or size > self.config.image_cache_gib * 2**30:
            return None
        images = {}
        for key in self._image_keys:
            cache = torch.empty((steps, *self.spaces.observation[key].shape), dtype=torch.uint8, device=self.device)
            first = 0
            for index, length in zip(self.episodes, self.lengths.tolist(), strict=True):
                cache[first : first + length] = torch.from_numpy(self._store.read_rows(index, key, 0, length))
                first += length
            images[key] = cache
        return images

    def _image_windows(self, key: str, indices: Tensor) -> Tensor:
        """Return (b, o, height, width, 3) uint8 of an image stream."""
        o = self.config.obs_horizon
        if self._images is not None:
            back = torch.minimum(torch.arange(o - 1, -1, -1, device=self.device)[None], self._steps_before[indices][:, None])
            rows = (indices[:, None] - back).reshape(-1)
            return self._images[key].index_select(0, rows).view(-1, o, *self.spaces.observation[key].shape)
        out = np.empty((len(indices), o, *self.spaces.observation[key].shape), dtype=np.uint8)
        for row, index in enumerate(indices.tolist()):
            step = int(self._step_of[index])
            frames = self._store.read_rows(self.episodes[int(self._episode_of[index])], key, max(0, step - o + 1), step + 1)
            out[row, o - len(frames) :] = frames
            out[row, : o - len(frames)] = frames[0]
        return torch.from_numpy(out).to(self.device)


def _require_float(store: EpisodeStore, key: str) -> None:
    """Refuse a flat stream that a policy would not be given in these numbers when it acts."""
    dtype = store.header.streams[key].dtype
    if np.dtype(dtype).kind != "f":
        raise RefusedError(f"{key} of {store.path} is {dtype}; what is learned from must be floating point or a picture.")


def _device(device: torch.device | str) -> torch.device:
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        available = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise RefusedError(f"Device {str(device)!r} cannot be used. Available: {', '.join(available)}.") from error
    return wanted
