"""Which episodes are learnt from and which are held out; never a part of one."""

from __future__ import annotations

from robolearn.core.errors import RefusedError
from robolearn.core.seeding import generator
from robolearn.data.store import EpisodeStore


def select_episodes(store: EpisodeStore, *, successes_only: bool = True, limit: int | None = None) -> list[int]:
    """Return positions of episodes, in order.

    Args:
        store: where from.
        successes_only: leave failures and interrupted episodes out, as imitation wants it.
        limit: keep the first so many; all where None.

    Raises:
        RefusedError: nothing is left, or fewer than ``limit``.
    """
    chosen = [i for i, success in enumerate(store.successes) if success or not successes_only]
    kind = "successful episode" if successes_only else "episode"
    if not chosen:
        raise RefusedError(f"{store.path} holds no {kind} ({len(store)} in all).")
    if limit is not None and not 0 < limit <= len(chosen):
        raise RefusedError(f"{limit} episodes are wanted, {store.path} offers {len(chosen)} {kind}s ({len(store)} in all).")
    return chosen[:limit]


def split(n_episodes: int, validation_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split ``range(n_episodes)`` into sorted training and validation episodes, never within one.

    Args:
        n_episodes: how many there are.
        validation_fraction: in [0, 1); rounded to whole episodes, at least one for each side. 0 validates on nothing.
        seed: the same seed gives the same split.

    Raises:
        RefusedError: the fraction lies outside its range, or one side would be empty.
    """
    if not 0 <= validation_fraction < 1:
        raise RefusedError(f"{validation_fraction=} must lie in [0, 1).")
    if n_episodes < (1 if validation_fraction == 0 else 2):
        raise RefusedError(f"{n_episodes} episodes cannot be split with {validation_fraction=}; both sides need at least one.")
    if validation_fraction == 0:
        return list(range(n_episodes)), []
    n_validation = min(max(1, round(validation_fraction * n_episodes)), n_episodes - 1)
    order = generator(seed, "split").permutation(n_episodes).tolist()
    return sorted(order[n_validation:]), sorted(order[:n_validation])
