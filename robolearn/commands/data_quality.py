"""``robolearn data quality``: measures of every episode, and sampling weights for ``train``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.run import write_json
from robolearn.data.disk import refusal
from robolearn.data.quality import StoreQuality, Streams, audit_sample, measure
from robolearn.data.store import EpisodeStore
from robolearn.data.weights import MEASURES, EpisodeWeights, advantages, curation_weights, trajectory_weights

METHODS = ("return", "advantage", *MEASURES)


def quality(
    path: Path,
    *,
    by: str,
    keep: float,
    temperature: float,
    weights: Path | None,
    json: Path | None,
    audit: int,
    reference: Path | None,
) -> None:
    """Print the measures; write weights and JSON where wanted.

    Raises:
        RefusedError: an unknown method, or a file exists or cannot be written.
    """
    if by not in METHODS:
        raise RefusedError(f"--by {by!r} is unknown. {nearest(by, METHODS)}")
    for file in (weights, json):
        if file is not None and file.exists():
            raise RefusedError(f"{file} exists; nothing is overwritten.")
        if file is not None and not file.parent.is_dir():  # said before measuring, which can take minutes
            raise RefusedError(f"{file} cannot be written: there is no folder {file.parent}.")
    console = Console()
    with EpisodeStore.open(path) as store:
        pairs = None
        if reference is not None:
            with EpisodeStore.open(reference) as other:
                pairs = measure(other).coverage
        found = measure(store, reference=pairs)
        _print(found, console, audit)
        if weights is not None:
            made = _weights(store, found, by, keep, temperature)
            made.write(weights)
            used = int((made.weights > 0).sum())
            effective = made.weights.sum() ** 2 / (made.weights**2).sum()
            console.print(
                f"{weights}: {made.method}; {used} of {len(store)} episodes drawn, {effective:.1f} in effect. "
                f"Train with data.weights={weights}",
                soft_wrap=True,
                highlight=False,
            )
    if json is not None:
        try:
            write_json(json, found.to_json())
        except OSError as error:
            raise refusal(error, f"{json} was not written") from error


def _weights(store: EpisodeStore, found: StoreQuality, by: str, keep: float, temperature: float) -> EpisodeWeights:
    if by in MEASURES:
        return EpisodeWeights(store.checksum(), f"least {by}, the best {keep:g} kept", curation_weights(found, by, keep=keep))
    streams = Streams.of(store)
    scores = streams.returns
    if by == "advantage":
        firsts = np.concatenate([[0], np.cumsum(store.lengths)[:-1]])
        scores = advantages(streams.returns, streams.states[firsts])
    method = f"{by}-weighted trajectories at temperature {temperature:g}"
    return EpisodeWeights(store.checksum(), method, trajectory_weights(scores, temperature=temperature))


def _print(found: StoreQuality, console: Console, audit: int) -> None:
    table = Table(
        "episode", "steps", "success", "divergence", "diversity", "jerk", "idle", "nearest", "distance", title="Quality"
    )
    for e in found.episodes[:200]:
        numbers = (f"{e.action_divergence:.4f}", f"{e.transition_diversity:.4f}", f"{e.jerk:.4f}", f"{e.idle:.3f}")
        table.add_row(
            str(e.episode), str(e.length), str(e.success), *numbers, str(e.nearest_episode), f"{e.nearest_distance:.3f}"
        )
    console.print(table)
    if len(found.episodes) > 200:
        console.print(f"... and {len(found.episodes) - 200} more; --json FILE keeps all")
    console.print(
        f"trajectory quality TQ {found.trajectory_quality_text}, state-action coverage {found.coverage} pairs, "
        f"SACo {found.saco:.3f}",
        highlight=False,
    )
    console.print(f"near-duplicates: {', '.join(f'{a}={b}' for a, b in found.duplicates) or 'none'}", highlight=False)
    sample = audit_sample(found, audit)
    if sample:
        console.print(f"look at the outcome label of: {', '.join(map(str, sample))}", highlight=False)
