"""Videos: H.264 for the report, GIF for a README, and grids of several episodes."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array

SUCCESS_COLOR = (46, 158, 91)
"""RGB of the border around a solved episode."""
FAILURE_COLOR = (209, 73, 91)
"""RGB of the border around a failed one."""


def encode_mp4(frames: Array, frame_rate_hz: float, *, quality: int = 24) -> bytes:
    """Return frames (t, height, width, 3) uint8 as an H.264 MP4 that every browser plays.

    Args:
        frames: even height and width.
        frame_rate_hz: pictures per second.
        quality: constant rate factor; 18 is hardly distinguishable, 30 is rough.

    Raises:
        RefusedError: wrong shape or dtype, or an odd size.
    """
    import av

    _check_frames(frames)
    t, height, width, _ = frames.shape
    if height % 2 or width % 2:
        raise RefusedError(f"H.264 needs an even height and width, got {height} x {width}.")
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(frame_rate_hz).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(quality), "preset": "medium"}
        stream.thread_count = 1  # more threads give other bytes from machine to machine
        for index in range(t):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frames[index]), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def grid_video(clips: Sequence[Array], *, successes: Sequence[bool], columns: int | None = None, border: int = 4) -> Array:
    """Tile clips into one, each with a green or red border; clips that end earlier show their last picture.

    Args:
        clips: each (t_i, height, width, 3) uint8, all of one size.
        successes: one per clip.
        columns: clips per row; about square by default.
        border: pixels around each clip.

    Returns:
        (max t, rows * (height + 2 border), columns * (width + 2 border), 3) uint8.
    """
    sizes = {clip.shape[1:] for clip in clips}
    if not clips or len(sizes) != 1 or len(successes) != len(clips):
        raise RefusedError(f"A grid needs clips of one size and an outcome for each, got {len(clips)} of sizes {sorted(sizes)}.")
    columns = columns or math.ceil(math.sqrt(len(clips)))
    rows = math.ceil(len(clips) / columns)
    height, width, _ = next(iter(sizes))
    cell_height, cell_width, length = height + 2 * border, width + 2 * border, max(len(clip) for clip in clips)
    grid = np.full((length, rows * cell_height, columns * cell_width, 3), 255, np.uint8)
    for index, (clip, success) in enumerate(zip(clips, successes, strict=True)):
        _check_frames(clip)
        top, left = index // columns * cell_height, index % columns * cell_width
        cell = grid[:, top : top + cell_height, left : left + cell_width]
        cell[:] = SUCCESS_COLOR if success else FAILURE_COLOR
        inside = cell[:, border : border + height, border : border + width]
        inside[: len(clip)] = clip
        inside[len(clip) :] = clip[-1]
    return grid


def write_video(path: Path, frames: Array, frame_rate_hz: float) -> None:
    """Write an ``.mp4`` or an endless ``.gif``, after its name.

    Raises:
        RefusedError: another suffix, wrong frames, or the file cannot be written.
    """
    if path.suffix == ".mp4":
        data = encode_mp4(frames, frame_rate_hz)
    elif path.suffix == ".gif":
        data = _encode_gif(frames, frame_rate_hz)
    else:
        raise RefusedError(f"{path}: videos are written as .mp4 or .gif, not {path.suffix!r}.")
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RefusedError(f"Cannot write {path}: {error.strerror or error}.") from error


def _encode_gif(frames: Array, frame_rate_hz: float) -> bytes:
    """Return a GIF with one palette for all pictures, so that still parts stay equal and compress to nothing."""
    from PIL import Image

    _check_frames(frames)
    # The palette is made from pictures spread over the clip; without dithering equal pixels get equal colours in every picture.
    sample = frames[np.linspace(0, len(frames) - 1, min(len(frames), 8)).astype(int)]
    palette = Image.fromarray(sample.reshape(-1, *frames.shape[2:])).quantize(255, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / frame_rate_hz), loop=0, optimize=True
    )
    return buffer.getvalue()


def _check_frames(frames: Array) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or frames.dtype != np.uint8:
        raise RefusedError(f"Frames must be (t, height, width, 3) uint8 with t > 0, got {frames.shape} {frames.dtype}.")
