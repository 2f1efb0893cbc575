"""Looking back at recorded episodes: lists, pictures and paths for the page, and whether an episode's actions succeed again."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.protocols import Env
from robolearn.core.types import STATE, Array, Episode, is_image
from robolearn.data import folder
from robolearn.data.episode_file import EpisodeFile
from robolearn.data.header import ACTION_SENT, INTERVENTION
from robolearn.data.store import EpisodeStore
from robolearn.teleop.session import EpisodeCard

_PATH_POINTS = 200
"""Points of a hand's path that the page draws."""
_FACTS = ("operator", "notes", "replay_success", "intervention_steps", "timing")


def episode_cards(store: EpisodeStore) -> list[EpisodeCard]:
    """Return what the page lists of every episode, the oldest first."""
    cards = []
    for position in range(len(store)):
        facts = store.metadata(position)
        shown = {key: facts[key] for key in _FACTS if key in facts}
        cards.append(
            EpisodeCard(position, facts["number"], facts["success"], facts["length"], facts["seed"], str(facts["outcome"]), shown)
        )
    return cards


class EpisodeReader:
    """Reads finished episodes for the page, in its threads; the store's own writer is not touched."""

    def __init__(self, store: EpisodeStore) -> None:
        self._path, self._streams = store.path, store.header.streams
        self._camera = next((key for key in store.header.spaces.observation if is_image(key)), None)
        self._lock = threading.Lock()
        self._open: tuple[int, EpisodeFile] | None = None

    def frame(self, number: int, step: int) -> Array:
        """Return a picture (h, w, 3) uint8 of the first recorded camera; a step beyond the end is the last.

        Raises:
            RefusedError: no such episode, or it has no camera.
        """
        if self._camera is None:
            raise RefusedError("These episodes were recorded without a camera.")
        with self._lock:
            file = self._file(number)
            step = min(step, int(file.attributes["episode"]["length"]) - 1)
            picture: Array = file.rows(self._camera, step, step + 1)[0]
        return picture

    def summary(self, number: int) -> dict[str, Any]:
        """Return the facts and the hand's path of an episode.

        Raises:
            RefusedError: no such episode.
        """
        with self._lock:
            file = self._file(number)
            facts = dict(file.attributes["episode"])
            length = int(facts["length"])
            rows = np.linspace(0, length - 1, min(length, _PATH_POINTS)).round().astype(int)
            names = self._streams[STATE].names if STATE in self._streams else ()
            axes = [names.index(f"eef_pos_{axis}") for axis in "xyz" if f"eef_pos_{axis}" in names]
            path = file.rows(STATE, 0, length)[rows][:, axes].astype(float) if len(axes) == 3 else np.zeros((0, 3))
            people = INTERVENTION in self._streams
            human = file.rows(INTERVENTION, 0, length)[rows, 0].astype(float) if people else np.zeros(0)
        return {
            **facts["metadata"],
            "number": number,
            "length": length,
            "success": facts["success"],
            "seed": facts["seed"],
            "camera": self._camera,
            "path": np.round(path, 4).tolist(),
            "human": human.tolist(),
        }

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._open is not None:
                self._open[1].close()
                self._open = None

    def _file(self, number: int) -> EpisodeFile:
        if self._open is None or self._open[0] != number:
            file = EpisodeFile(folder.episode_path(self._path, number))
            if self._open is not None:
                self._open[1].close()
            self._open = number, file
        return self._open[1]


class ReplayCheck:
    """Sends an episode's actions again from its initial state, in an environment of its own, and says whether it succeeds.

    Where simulation is deterministic a recorded success that does not succeed again has lost or shifted steps.
    """

    def __init__(self, env: Env) -> None:
        self._env = env

    def __call__(self, episode: Episode) -> Mapping[str, Any]:
        """Return ``replay_success`` and ``replay_state_error``, the largest difference from the recorded states [SI units]."""
        if episode.seed is None:
            return {}
        observation = self._env.reset([episode.seed])
        error, success = 0.0, False
        for step, sent in enumerate(episode.data[ACTION_SENT]):
            error = max(error, float(np.abs(observation[STATE][0] - episode.data[STATE][step]).max()))
            result = self._env.step(sent[None])
            observation, success = result.observation, bool(result.success[0])
        return {"replay_success": success, "replay_state_error": error}
