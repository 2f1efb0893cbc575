"""``robolearn data view``: episodes in Rerun."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console

from robolearn.commands.data_edit import numbers
from robolearn.core.errors import RefusedError
from robolearn.core.types import is_image
from robolearn.data.store import EpisodeStore

SHOWN = 10
"""Episodes that are shown where none are named."""


def view(path: Path, episodes: str | None, save: Path | None) -> None:
    """Log episodes to the viewer, or to one file, side by side on a timeline of their steps.

    Raises:
        RefusedError: rerun-sdk is not installed, the file exists, its folder does not, or there is no such episode.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise RefusedError("`robolearn data view` needs Rerun: pip install -e '.[data]'.") from error
    if save is not None and save.exists():
        raise RefusedError(f"{save} exists; nothing is overwritten.")
    if save is not None and not save.parent.is_dir():
        raise RefusedError(f"{save} cannot be written: there is no folder {save.parent}.")
    with EpisodeStore.open(path) as store:
        chosen = numbers(episodes) or list(range(min(SHOWN, len(store))))
        store.metadata(max(chosen, default=0))
        recording = rr.RecordingStream("robolearn", recording_id=store.checksum()[:12])
        if save is None:
            recording.spawn()
        else:
            recording.save(save)
        for index in chosen:
            length = int(store.lengths[index])
            for key, spec in store.header.streams.items():
                place = f"episode_{index}/{key.replace('.', '/')}"
                if is_image(key):  # one at a time: an episode of pictures may be larger than the memory
                    for step in range(length):
                        recording.set_time("step", sequence=step)
                        recording.log(place, rr.Image(store.read_rows(index, key, step, step + 1)[0]).compress())
                    continue
                rows = store.read_rows(index, key, 0, length).reshape(length, -1).astype(np.float64)
                steps = rr.TimeColumn("step", sequence=np.arange(length))
                recording.send_columns(place, indexes=[steps], columns=rr.Scalars.columns(scalars=rows))
                if spec.names:
                    recording.log(place, rr.SeriesLines(names=list(spec.names)), static=True)
        recording.flush()
        left = f" ({len(store) - len(chosen)} more: --episodes)" if episodes is None and len(store) > len(chosen) else ""
    Console().print(f"{len(chosen)} episodes of {path}{left} {f'are in {save}' if save else 'are in the viewer'}")
