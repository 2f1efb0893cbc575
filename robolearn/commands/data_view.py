"""``robolearn data view``: episodes in Rerun."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from robolearn.commands.data_edit import numbers
from robolearn.core.errors import RefusedError
from robolearn.core.types import is_image
from robolearn.data.store import EpisodeStore


def view(path: Path, episodes: str | None, save: Path | None) -> None:
    """Log episodes to the viewer, or to a file.

    Raises:
        RefusedError: rerun-sdk is not installed, the file exists, or there is no such episode.
    """
    try:
        import rerun as rr
    except ImportError as error:
        raise RefusedError("`robolearn data view` needs Rerun: pip install 'robolearn[data]'.") from error
    if save is not None and save.exists():
        raise RefusedError(f"{save} exists; nothing is overwritten.")
    with EpisodeStore.open(path) as store:
        chosen = numbers(episodes) or list(range(min(10, len(store))))
        store.metadata(max(chosen, default=0))
        for index in chosen:
            stream = rr.RecordingStream("robolearn", recording_id=f"{store.checksum()[:12]}-{index}")
            if save is None:
                stream.spawn()
            else:
                stream.save(save if len(chosen) == 1 else save.with_stem(f"{save.stem}_{index:06d}"))
            for key, spec in store.header.streams.items():
                place = f"episode_{index}/{key.replace('.', '/')}"
                for step in range(int(store.lengths[index])):
                    stream.set_time("step", sequence=step)
                    value = store.read_rows(index, key, step, step + 1)[0]
                    shown = rr.Image(value) if is_image(key) else rr.Scalars(np.ravel(value).astype(np.float64))
                    stream.log(place, shown)
                if spec.names and not is_image(key):
                    stream.log(place, rr.SeriesLines(names=list(spec.names)), static=True)
            stream.flush()
