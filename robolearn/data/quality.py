"""How good demonstrations are, per episode and for the whole: the measures of two papers, and plainer ones.

Sources: "Data Quality in Imitation Learning" (Belkhale, Cui, Sadigh 2023, arXiv 2306.02437): action divergence and transition
diversity. "A Dataset Perspective on Offline Reinforcement Learning" (Schweighofer et al. 2022, arXiv 2111.04714):
trajectory quality
TQ and state-action coverage SACo. Every function takes arrays; states are standardised and actions scaled to [-1, 1] by
the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from scipy.spatial import cKDTree

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, Array, is_image
from robolearn.data.header import REWARD
from robolearn.data.store import EpisodeStore

MAX_STEPS = 200_000
"""More steps than this are thinned evenly before neighbours are searched."""
MAX_NEIGHBOURS = 4_000_000
"""So many of them are held in memory at once."""


@dataclass(frozen=True)
class EpisodeQuality:
    """The measures of one episode."""

    episode: int
    length: int
    success: bool
    action_divergence: float
    """See :func:`action_divergence`; small is consistent with the other episodes."""
    transition_diversity: float
    """See :func:`transition_diversity`; large is noisy or stochastic."""
    jerk: float
    """See :func:`jerk`; small is smooth."""
    idle: float
    """See :func:`idle_fraction`."""
    nearest_episode: int
    """The episode that is most like this one; -1 where there is no other."""
    nearest_distance: float
    """See :func:`episode_distances`; zero is a copy."""


@dataclass(frozen=True)
class StoreQuality:
    """The measures of a whole store."""

    trajectory_quality: float | None
    """TQ: mean return over the best return, both above the worst; see :func:`trajectory_quality`."""
    coverage: int
    """Distinct discretised state-action pairs, see :func:`state_action_pairs`."""
    saco: float
    """SACo: that number over the reference's, or over the number of steps where there is no reference."""
    duplicates: tuple[tuple[int, int], ...]
    """Pairs of near-duplicate episodes."""
    episodes: tuple[EpisodeQuality, ...]

    @property
    def trajectory_quality_text(self) -> str:
        """TQ as people read it."""
        tq = self.trajectory_quality
        return "undefined (all returns are alike)" if tq is None else f"{tq:.3f}"

    def to_json(self) -> dict[str, object]:
        """Return a JSON form."""
        return asdict(self)


def action_divergence(states: Array, actions: Array, episode: Array, *, neighbours: int = 8) -> Array:
    """Return (t,) how far each step's action lies from what other episodes do in like states.

    The paper's action divergence is E_{s ~ rho_pi} D(pi_E(.|s), pi(.|s)); with samples alone, pi_E at s is estimated by
    the k nearest
    states **of other episodes** and D by the squared distance to their mean action over a: |a - mean(a_knn)|^2 / d.
    Leaving the own
    episode out is what makes it a score of that episode.

    Args:
        states: (t, s) standardised.
        actions: (t, a) in [-1, 1].
        episode: (t,) int, which episode a step is of.
        neighbours: k.
    """
    found, valid = _foreign_neighbours(states, episode, neighbours)
    weights = valid[..., None].astype(float)
    count = np.maximum(valid.sum(1), 1)[:, None]
    expected = (actions[found] * weights).sum(1) / count
    out = ((actions - expected) ** 2).mean(1)
    out[~valid.any(1)] = 0.0
    return out


def transition_diversity(states: Array, actions: Array, following: Array, *, neighbours: int = 8) -> Array:
    """Return (t,) the spread of the next states after like states and actions: Var(s' - s | k nearest (s, a)), averaged over s.

    The paper's transition diversity is the noise of rho(s'|s, a); a kNN estimate of its variance. Zero for a
    deterministic world whose
    neighbours move alike.

    Args:
        states: (t, s) standardised.
        actions: (t, a) in [-1, 1].
        following: (t, s) the states one step later.
        neighbours: k, the step itself included.
    """
    k = min(neighbours, len(states))
    joint = np.concatenate([states, actions], 1)
    _, found = cKDTree(joint).query(joint, k=k)
    moves = (following - states)[found.reshape(len(states), k)]
    return moves.var(1).mean(1)


def jerk(actions: Array) -> float:
    """Return the mean absolute third difference of an episode's actions (t, a), per step cubed; 0 below four steps."""
    return float(np.abs(np.diff(actions, n=3, axis=0)).mean()) if len(actions) > 3 else 0.0


def idle_fraction(states: Array, *, tolerance: float = 1e-3) -> float:
    """Return the part of an episode's steps (t, s) at which no standardised state moves by more than ``tolerance``."""
    return float((np.abs(np.diff(states, axis=0)) <= tolerance).all(1).mean()) if len(states) > 1 else 0.0


def episode_distances(signatures: Array) -> tuple[Array, Array]:
    """Return (n,) the most alike other episode and the root mean square distance to it, of (n, d) signatures."""
    if len(signatures) < 2:
        return np.full(len(signatures), -1), np.full(len(signatures), np.inf)
    distance, found = cKDTree(signatures).query(signatures, k=2)
    own = found[:, 0] == np.arange(len(signatures))
    other = np.where(own, found[:, 1], found[:, 0])
    return other, np.where(own, distance[:, 1], distance[:, 0]) / np.sqrt(signatures.shape[1])


def signature(states: Array, actions: Array, *, points: int = 16) -> Array:
    """Return an episode's states and actions at ``points`` evenly spaced moments, flattened; like episodes have like ones."""
    at = np.rint(np.linspace(0, len(states) - 1, points)).astype(int)
    return np.concatenate([states[at].ravel(), actions[at].ravel()])


def trajectory_quality(returns: Array, *, worst: float | None = None, best: float | None = None) -> float | None:
    """Return TQ = (mean return - worst) / (best - worst).

    The paper takes the return of a random policy as worst and the best online policy's as best; without them the data's
    own extremes stand in. None where they are equal: episodes that are all alike say nothing of better and worse.
    """
    low = float(returns.min()) if worst is None else worst
    high = float(returns.max()) if best is None else best
    return float((returns.mean() - low) / (high - low)) if high > low else None


def state_action_pairs(states: Array, actions: Array, *, bins: int = 5) -> int:
    """Return the number of distinct (s, a) once each standardised state in [-3, 3] and action in [-1, 1] is cut into ``bins``.

    The paper counts discrete pairs (by HyperLogLog); continuous ones are discretised first, exactly counted here.
    """
    scaled = np.concatenate([np.clip((states + 3) / 6, 0, 1), np.clip((actions + 1) / 2, 0, 1)], 1)
    cells = np.minimum((scaled * bins).astype(np.int8), bins - 1)
    return len(np.unique(cells, axis=0))


def _foreign_neighbours(states: Array, episode: Array, k: int) -> tuple[Array, Array]:
    """Return (t, k) indices of the nearest steps of other episodes and whether each exists."""
    n, reach = len(states), 4 * k
    chosen, valid = np.zeros((n, k), np.int64), np.zeros((n, k), bool)
    if (episode == episode[:1]).all():
        return chosen, valid
    tree, waiting = cKDTree(states), np.arange(n)
    while len(waiting):
        reach = min(reach, n)
        # Where all neighbours are of the own episode, everything is looked at: so many steps at once as memory allows.
        blocks = np.array_split(waiting, -(-len(waiting) * reach // MAX_NEIGHBOURS))
        waiting = np.concatenate([_search(tree, block, episode, reach, (chosen, valid)) for block in blocks])
        if reach == n:
            break
        reach *= 8
    return chosen, valid


def _search(tree: cKDTree, steps: Array, episode: Array, reach: int, into: tuple[Array, Array]) -> Array:
    """Write the foreign ones among the ``reach`` nearest of each of ``steps`` into (chosen, valid); return who has too few."""
    chosen, valid = into
    found = tree.query(tree.data[steps], k=reach)[1].reshape(len(steps), reach)
    foreign = episode[found] != episode[steps][:, None]
    order = np.argsort(~foreign, axis=1, kind="stable")[:, : chosen.shape[1]]
    width = order.shape[1]
    chosen[steps, :width] = np.take_along_axis(found, order, 1)
    valid[steps, :width] = np.take_along_axis(foreign, order, 1)
    return steps[foreign.sum(1) < chosen.shape[1]]


@dataclass(frozen=True)
class Streams:
    """All steps of a store as the measures want them."""

    states: Array
    """(t, s) standardised; every observation of numbers side by side."""
    actions: Array
    """(t, a) scaled to [-1, 1] by the store's bounds."""
    episode: Array
    """(t,) which episode."""
    returns: Array
    """(n,) sum of rewards; 1 for a success and 0 else where no reward is kept."""

    @classmethod
    def of(cls, store: EpisodeStore) -> Streams:
        """Read a store.

        Raises:
            RefusedError: it is empty, or observes pictures alone.
        """
        keys = [key for key in store.header.spaces.observation if not is_image(key)]
        if not len(store) or not keys:
            raise RefusedError(
                f"{store.path} has {len(store)} episodes and observes {keys} in numbers; quality needs some of both."
            )
        wanted = [*keys, ACTION, *([REWARD] if REWARD in store.header.extra else [])]
        parts = [store.read(i, wanted).data for i in range(len(store))]
        states = np.concatenate([np.concatenate([_flat(p[k]) for k in keys], 1) for p in parts])
        spread = states.std(0)
        states = (states - states.mean(0)) / np.where(spread > 1e-9, spread, 1.0)
        centre, half = store.header.spaces.action_scaling()
        actions = (np.concatenate([_flat(p[ACTION]) for p in parts]) - centre) / np.where(half > 0, half, 1.0)
        returns = np.array([p[REWARD].sum() for p in parts]) if REWARD in wanted else store.successes.astype(float)
        return cls(states, actions, np.repeat(np.arange(len(store)), store.lengths), returns)


def _flat(array: Array) -> Array:
    return array.reshape(len(array), -1).astype(np.float64)


def measure(
    store: EpisodeStore, *, neighbours: int = 8, duplicate_distance: float = 0.01, reference: int | None = None
) -> StoreQuality:
    """Measure every episode of a store and the whole.

    Args:
        store: where from.
        neighbours: k of the kNN estimates.
        duplicate_distance: episodes nearer than this (root mean square, in standard deviations) are near-duplicates.
        reference: distinct state-action pairs of the set that SACo compares with; the number of steps where None.
    """
    streams = Streams.of(store)
    keep = np.arange(0, len(streams.states), max(1, -(-len(streams.states) // MAX_STEPS)))
    states, actions, owner = streams.states[keep], streams.actions[keep], streams.episode[keep]
    divergence = action_divergence(states, actions, owner, neighbours=neighbours)
    inner = np.flatnonzero(np.diff(streams.episode, append=-1) == 0)
    inner = inner[:: max(1, -(-len(inner) // MAX_STEPS))]
    diversity = transition_diversity(
        streams.states[inner], streams.actions[inner], streams.states[inner + 1], neighbours=neighbours
    )
    n = len(store)
    ends = np.cumsum(store.lengths)
    pieces = [slice(int(e - m), int(e)) for e, m in zip(ends, store.lengths, strict=True)]
    signatures = np.stack([signature(streams.states[p], streams.actions[p]) for p in pieces])
    other, distance = episode_distances(signatures)
    per_divergence, per_diversity = _means(divergence, owner, n), _means(diversity, streams.episode[inner], n)
    rows = tuple(
        EpisodeQuality(
            i,
            int(store.lengths[i]),
            bool(store.successes[i]),
            float(per_divergence[i]),
            float(per_diversity[i]),
            jerk(streams.actions[p]),
            idle_fraction(streams.states[p]),
            int(other[i]),
            float(distance[i]) if np.isfinite(distance[i]) else -1.0,
        )
        for i, p in enumerate(pieces)
    )
    close = {(min(i, int(j)), max(i, int(j))) for i, j in enumerate(other) if j >= 0 and distance[i] < duplicate_distance}
    pairs = state_action_pairs(streams.states, streams.actions)
    saco = pairs / (reference or len(streams.states))
    return StoreQuality(trajectory_quality(streams.returns), pairs, saco, tuple(sorted(close)), rows)


def _means(values: Array, owner: Array, n: int) -> Array:
    count = np.bincount(owner, minlength=n)
    return np.bincount(owner, values, minlength=n) / np.maximum(count, 1)


def audit_sample(quality: StoreQuality, size: int) -> list[int]:
    """Return the episodes whose outcome label a person should look at first.

    Half are successes that diverge most from the others, half failures that diverge least: where labels are wrong most likely.
    """
    by = {kind: [e for e in quality.episodes if e.success is kind] for kind in (True, False)}
    successes = sorted(by[True], key=lambda e: -e.action_divergence)
    failures = sorted(by[False], key=lambda e: e.action_divergence)
    half = min(size // 2, len(failures))
    chosen: Sequence[EpisodeQuality] = [*successes[: size - half], *failures[:half]]
    return [e.episode for e in chosen]
