"""Recording an episode step by step, each frame durable within a fixed time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array, Episode, FeatureSpec
from robolearn.data.disk import refusal
from robolearn.data.episode_file import check_finite
from robolearn.data.folder import INTERRUPTED
from robolearn.data.header import T_WALL
from robolearn.data.journal import JournalWriter

type Annotate = Callable[[Episode], Mapping[str, Any]]
"""From a recorded episode to further facts about it; may take its time."""


class Recording:
    """An episode that is being recorded; leaving its ``with`` block without :meth:`finish` keeps it as ``interrupted``.

    A frame is safe from the death of this process once :meth:`add_frame` returns, and from the loss of power within
    ``flush_interval_s``: a background thread syncs, so neither the control loop nor a pause in it delays that.
    """

    def __init__(
        self,
        journal: JournalWriter,
        streams: Mapping[str, FeatureSpec],
        *,
        store: Callable[[Annotate | None], int],
        later: Callable[[Callable[[], int]], Future[int]],
        flush_interval_s: float,
    ) -> None:
        """Wrap a journal.

        Args:
            journal: just created; its name is the episode's number.
            streams: what each frame must hold.
            store: turns the closed journal into a finished episode and returns its position.
            later: runs a function in the store's background thread.
            flush_interval_s: the longest that a frame waits for its sync to begin.
        """
        self._journal = journal
        self._streams = dict(streams)
        self._store = store
        self._later = later
        self._episode = int(journal.path.stem)
        self._flush_interval_s = flush_interval_s
        self._sync_error: OSError | None = None
        self._stop = threading.Event()
        self._ended = False
        self.frames = 0
        """Steps added so far."""
        self.durable_frames = 0
        """Steps that would survive a loss of power now."""
        self._flusher = threading.Thread(target=self._flush_forever, name="robolearn-flush", daemon=True)
        self._flusher.start()

    @property
    def open(self) -> bool:
        """Whether frames can still be added."""
        return not self._stop.is_set()

    def add_frame(self, frame: Mapping[str, Array], *, t_wall: float) -> None:
        """Add one step.

        Args:
            frame: every stream of the store except ``t_wall``, without a time axis.
            t_wall: Unix time [s] of the observation.

        Raises:
            RefusedError: a stream is missing, unknown, misshapen or not finite, or the disk is full. The frame is not added and
                the earlier ones are safe.
        """
        self._require_open()
        if self._sync_error is not None:
            raise refusal(
                self._sync_error, f"Frames of {self._journal.path} after step {self.durable_frames - 1} are not durable"
            )
        arrays = self._checked({**frame, T_WALL: np.float64(t_wall)})
        try:
            self._journal.add_frame(arrays)
        except OSError as error:
            kept = f"Step {self.frames} was not recorded, the {self.frames} before it are kept in {self._journal.path}"
            raise refusal(error, kept) from error
        self.frames += 1

    def finish(self, *, success: bool, outcome: str | None = None, metadata: Mapping[str, Any] | None = None) -> int:
        """End the episode and store it.

        Args:
            success: whether the task was solved.
            outcome: ``success`` or ``failure`` by default; any other word the operator wants.
            metadata: facts known only now; they are joined with those given at the start.

        Returns:
            Position of the episode in the store.

        Raises:
            RefusedError: there are no frames, or the disk is full; then the episode stays in its journal, complete, and becomes a
                stored one when the store is next opened for appending.
        """
        self._end(success, outcome, metadata)
        self._settle()
        return self._store(None)

    def hand_over(
        self,
        *,
        success: bool,
        outcome: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        annotate: Annotate | None = None,
    ) -> Future[int]:
        """End the episode as :meth:`finish` does, but return at once: a background thread syncs, compresses and stores it.

        The last record is written before this returns, so that the death of the process loses nothing of the episode.

        Args:
            success: see :meth:`finish`.
            outcome: see :meth:`finish`.
            metadata: see :meth:`finish`.
            annotate: asked in the background for facts to be stored with the episode.

        Returns:
            The position, once it is stored; it raises what :meth:`finish` would.

        Raises:
            RefusedError: there are no frames, or the disk is full: see :meth:`finish`.
        """
        self._end(success, outcome, metadata)

        def store() -> int:
            self._settle()
            return self._store(annotate)

        return self._later(store)

    def discard(self) -> None:
        """Throw the episode away: the only way in which recorded frames are deleted."""
        self._require_open()
        self._close()
        self._journal.path.unlink()

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.open:
            return
        if self.frames == 0:
            self.discard()
            return
        try:
            self.finish(success=False, outcome=INTERRUPTED)
        except RefusedError as refused:
            if error is None:
                raise
            error.add_note(str(refused))  # what ended the recording is the news; where its frames are comes with it

    def _checked(self, frame: Mapping[str, Any]) -> dict[str, Array]:
        """Return the frame as arrays in the dtype of their streams."""
        where = f"Episode {self._episode}, step {self.frames}"
        missing, unknown = sorted(set(self._streams) - set(frame)), sorted(set(frame) - set(self._streams))
        if missing or unknown:
            raise RefusedError(f"{where}: streams {missing} are missing and {unknown} are unknown.")
        arrays = {}
        for key, feature in self._streams.items():
            array = np.asarray(frame[key])
            if array.shape != feature.shape or array.dtype != np.dtype(feature.dtype):
                raise RefusedError(
                    f"{where}: stream {key!r} is {array.dtype} {array.shape}, the store keeps {feature.dtype} {feature.shape}."
                )
            check_finite(array[None], feature, where=f"Episode {self._episode}, stream {key!r}", first_step=self.frames)
            arrays[key] = array
        return arrays

    def _require_open(self) -> None:
        if not self.open:
            raise RefusedError(f"Episode {self._episode} is finished already.")

    def _end(self, success: bool, outcome: str | None, metadata: Mapping[str, Any] | None) -> None:
        """Write the last record; the process may die from here on."""
        self._require_open()
        if self.frames == 0:
            raise RefusedError(f"Episode {self._episode} has no frames; discard it instead.")
        outcome = outcome or ("success" if success else "failure")
        try:
            self._journal.add_done({"success": bool(success), "metadata": {**(metadata or {}), "outcome": outcome}})
        except (TypeError, ValueError) as error:
            raise RefusedError(f"Metadata of episode {self._episode} cannot be written as JSON: {error}.") from error
        except OSError as error:
            self._close()
            raise self._not_stored(error) from error
        self._ended = True
        self._stop.set()

    def _settle(self) -> None:
        """Bring the last record to the disk itself."""
        try:
            self._flusher.join()
            self._journal.sync()
        except OSError as error:
            raise self._not_stored(error) from error
        finally:
            self._close()

    def _not_stored(self, error: OSError) -> RefusedError:
        kept = f"Episode {self._episode} was not stored; its {self.frames} frames are kept in {self._journal.path}"
        return refusal(error, kept)

    def _close(self) -> None:
        self._stop.set()
        self._flusher.join()
        self._journal.close()

    def _flush_forever(self) -> None:
        over = False
        while not over:
            over = self._stop.wait(self._flush_interval_s)
            written = self.frames
            # The last record of an episode that was ended is synced here too: storing it may have to wait for earlier ones.
            due = self._ended if over else written != self.durable_frames
            if not due:
                continue
            try:
                self._journal.sync()
            except OSError as error:
                self._sync_error = error
                return
            self.durable_frames = written
