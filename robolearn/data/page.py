"""One HTML page about a store: pictures, trajectories, histograms, lengths, ranges and outliers; everything inside the file."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, Array, is_image
from robolearn.data.disk import refusal, write_whole
from robolearn.data.quality import StoreQuality
from robolearn.data.store import EpisodeStore

MAX_STEPS = 200_000
MAX_LINES = 60
THUMBNAILS = 8
OUTLIER_DEVIATIONS = 6.0
"""A value this many robust standard deviations (1.4826 MAD) from the median is an outlier."""

_RANGE_COLUMNS = ("element", "least", "median", "largest", "outliers", "episodes with them")

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}
td,th{padding:.2rem .6rem;text-align:right;border-bottom:1px solid #e3e6ea}td:first-child,th:first-child{text-align:left}
.row{display:flex;flex-wrap:wrap;gap:.5rem}.row img{width:120px;image-rendering:auto;border-radius:4px}
figure{margin:0;font-size:.75rem;text-align:center}img.wide{width:100%}.bad{color:#b3261e}
"""


def write_page(store: EpisodeStore, quality: StoreQuality, path: Path) -> None:
    """Write the page.

    Raises:
        RefusedError: the file exists or cannot be written, or the store is empty.
    """
    if path.exists():
        raise RefusedError(f"{path} exists; nothing is overwritten.")
    keys = [k for k, spec in store.header.streams.items() if not is_image(k) and spec.shape != ()]
    streams = {key: _rows(store, key) for key in keys}
    ranges = [row for key, rows in streams.items() for row in _ranges(key, store.header.streams[key].names, rows)]
    title = f"{store.header.task}, {store.header.fidelity}: {len(store)} episodes"
    parts = [
        f"<h1>{html.escape(title)}</h1><p>{_summary(store, quality)}</p>",
        *([f"<h2>Pictures</h2>{_thumbnails(store)}"] if any(is_image(k) for k in store.header.streams) else []),
        f"<h2>Lengths and outcomes</h2>{_figure(_lengths(store))}",
        f"<h2>Trajectories</h2>{_figure(_trajectories(store, keys))}",
        f"<h2>Actions</h2>{_figure(_histograms(streams[ACTION], store.header.spaces.action.names))}",
        f"<h2>Quality</h2>{_figure(_quality(quality))}",
        f"<h2>Ranges and outliers</h2>{_table(_RANGE_COLUMNS, ranges)}",
    ]
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>{''.join(parts)}"
    try:
        write_whole(path, page.encode())
    except OSError as error:
        raise refusal(error, f"{path} was not written") from error


def _summary(store: EpisodeStore, quality: StoreQuality) -> str:
    header = store.header
    facts = (
        f"robot {header.spaces.robot}, {header.spaces.control_rate_hz:g} Hz, {int(store.lengths.sum())} steps, "
        f"{int(store.successes.sum())} successes; TQ {quality.trajectory_quality_text}, SACo {quality.saco:.3f}, "
        f"{len(quality.duplicates)} pairs of near-duplicates; checksum {store.checksum()[:16]}"
    )
    return html.escape(facts)


def _rows(store: EpisodeStore, key: str) -> tuple[Array, Array]:
    """Return (t, d) of at most :data:`MAX_STEPS` steps, and the episode of each."""
    parts = [store.read(i, [key]).data[key].reshape(int(n), -1) for i, n in enumerate(store.lengths)]
    rows, owner = np.concatenate(parts), np.repeat(np.arange(len(store)), store.lengths)
    step = max(1, -(-len(rows) // MAX_STEPS))
    return rows[::step].astype(np.float64), owner[::step]


def outliers(values: Array) -> Array:
    """Return (t,) bool: further than 6 robust deviations, 1.4826 median|x - median|, from the median; none where that is 0."""
    centre = np.median(values)
    deviation = 1.4826 * np.median(np.abs(values - centre))
    return np.abs(values - centre) > OUTLIER_DEVIATIONS * deviation if deviation > 0 else np.zeros(len(values), bool)


def _ranges(key: str, names: Sequence[str], stream: tuple[Array, Array]) -> list[tuple[str, ...]]:
    rows, owner = stream
    out: list[tuple[str, ...]] = []
    for i in range(min(rows.shape[1], 64)):
        values, name = rows[:, i], names[i] if names else str(i)
        far = outliers(values)
        where = ", ".join(map(str, np.unique(owner[far])[:8]))
        numbers = (f"{values.min():.4g}", f"{np.median(values):.4g}", f"{values.max():.4g}", str(int(far.sum())))
        out.append((f"{key} {name}", *numbers, where))
    return out


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{cells}</tr>{body}</table>"


def _thumbnails(store: EpisodeStore) -> str:
    """First, middle and last picture of a few episodes, of every camera."""
    from PIL import Image

    out = []
    chosen = np.unique(np.linspace(0, len(store) - 1, min(THUMBNAILS, len(store))).astype(int)).tolist()
    for key in (k for k in store.header.streams if is_image(k)):
        for index in chosen:
            length = int(store.lengths[index])
            for step in sorted({0, length // 2, length - 1}):
                picture = Image.fromarray(store.read_rows(index, key, step, step + 1)[0])
                picture.thumbnail((240, 240))
                content = io.BytesIO()
                picture.save(content, "JPEG", quality=85)
                word = "success" if store.successes[index] else "failure"
                label = html.escape(f"{key.rsplit('.', 1)[-1]}, episode {index} ({word}), step {step}")
                out.append(f'<figure><img alt="" src="data:image/jpeg;base64,{_base64(content)}"><br>{label}</figure>')
    return f'<div class="row">{"".join(out)}</div>'


def _base64(content: io.BytesIO) -> str:
    return base64.b64encode(content.getvalue()).decode()


def _figure(figure: Any) -> str:
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return f'<img class="wide" alt="" src="data:image/png;base64,{_base64(content)}">'


def _new(rows: int, columns: int, height: float) -> tuple[Any, Array]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, height * rows), layout="constrained")
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False)).ravel()


def _lengths(store: EpisodeStore) -> Any:
    figure, axes = _new(1, 2, 3)
    bins = np.histogram_bin_edges(store.lengths, bins="auto")
    for outcome, colour in ((True, "#2b7a4b"), (False, "#b3261e")):
        chosen = store.lengths[store.successes == outcome]
        axes[0].hist(chosen, bins=bins, color=colour, alpha=0.7, label=f"{'success' if outcome else 'failure'} ({len(chosen)})")
    axes[0].set(xlabel="steps", ylabel="episodes")
    axes[0].legend(frameon=False)
    axes[1].scatter(np.arange(len(store)), store.lengths, c=np.where(store.successes, "#2b7a4b", "#b3261e"), s=12)
    axes[1].set(xlabel="episode", ylabel="steps")
    return figure


def _trajectories(store: EpisodeStore, keys: Sequence[str]) -> Any:
    """The first state stream's first elements over time, one line per episode."""
    key = next((k for k in keys if k != ACTION), ACTION)
    names = store.header.streams[key].names
    width = min(6, int(np.prod(store.header.streams[key].shape)))
    figure, axes = _new(-(-width // 3), 3, 2.6)
    chosen = np.unique(np.linspace(0, len(store) - 1, min(MAX_LINES, len(store))).astype(int)).tolist()
    for index in chosen:
        rows = store.read(index, [key]).data[key].reshape(int(store.lengths[index]), -1)
        colour = "#2b7a4b" if store.successes[index] else "#b3261e"
        for i in range(width):
            axes[i].plot(rows[:, i], color=colour, alpha=0.35, linewidth=0.8)
    for i in range(width):
        axes[i].set_title(f"{key} {names[i] if names else i}", fontsize=9)
    for axis in axes[width:]:
        axis.axis("off")
    return figure


def _histograms(stream: tuple[Array, Array], names: Sequence[str]) -> Any:
    rows = stream[0]
    width = min(12, rows.shape[1])
    figure, axes = _new(-(-width // 4), 4, 2.2)
    for i in range(width):
        axes[i].hist(rows[:, i], bins=50, color="#33658a")
        axes[i].set_title(names[i] if names else str(i), fontsize=9)
        axes[i].set_yscale("log")
    for axis in axes[width:]:
        axis.axis("off")
    return figure


def _quality(quality: StoreQuality) -> Any:
    figure, axes = _new(1, 4, 3)
    colour = ["#2b7a4b" if e.success else "#b3261e" for e in quality.episodes]
    for axis, name in zip(axes, ("action_divergence", "transition_diversity", "jerk", "idle"), strict=True):
        axis.scatter([e.episode for e in quality.episodes], [getattr(e, name) for e in quality.episodes], c=colour, s=12)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_xlabel("episode")
    return figure
