"""What every episode of a store has in common: spaces, task, fidelity and streams, kept in ``store.json``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import ACTION, FeatureSpec, Spaces

FORMAT = "robolearn-episodes"
VERSION = 1

ACTION_SENT = "action.sent"
"""The action that the environment or robot executed; ``action`` is the one that was intended."""
T_WALL = "t_wall"
"""Unix time [s] at which the observation of the step was taken."""
REWARD = "reward"
"""Reward of the step."""
INTERVENTION = "intervention"
"""1 where a person was in control of the step, 0 where a policy was."""
STAMPS_WALL = "stamps.wall"
"""Unix time [s] of each stream's sample, in the order of the feature's names."""
STAMPS_MONOTONIC = "stamps.monotonic"
"""The same instants on the recorder's monotonic clock [s], which nobody sets."""


def standard_extra(spaces: Spaces, *, reward: bool = False) -> dict[str, FeatureSpec]:
    """Return the streams kept beside observations and ``action``: ``action.sent``, ``t_wall`` and perhaps ``reward``."""
    extra = {ACTION_SENT: spaces.action, T_WALL: FeatureSpec((), dtype="float64")}
    return extra | {REWARD: FeatureSpec(())} if reward else extra


def live_extra(spaces: Spaces) -> dict[str, FeatureSpec]:
    """Return what is kept beside observations and ``action`` of episodes that a person records, on a robot or in simulation."""
    stamped = FeatureSpec((len(spaces.observation) + 1,), dtype="float64", names=(*spaces.observation, ACTION_SENT))
    person = {INTERVENTION: FeatureSpec((1,), names=(INTERVENTION,))}
    return standard_extra(spaces) | person | {STAMPS_WALL: stamped, STAMPS_MONOTONIC: stamped}


@dataclass(frozen=True)
class StoreHeader:
    """Everything that two episodes must share to lie in one store."""

    spaces: Spaces
    task: str
    fidelity: str
    """``reference``, ``exact``, ``turbo``, ``native``, or ``real`` for a robot."""
    extra: Mapping[str, FeatureSpec]
    """Streams beside the observations and ``action``; a shape of () is one number per step."""
    provenance: Mapping[str, object] = field(default_factory=dict)
    """JSON facts about how the store was made; not compared."""

    def __post_init__(self) -> None:
        taken = {ACTION, *self.spaces.observation} & set(self.extra)
        if taken:
            raise RefusedError(f"Extra streams {sorted(taken)} carry the name of an observation or of the action.")
        for key, feature in self.streams.items():
            if not key or "/" in key or "\\" in key or key.startswith((".", "__")):
                raise RefusedError(f"{key!r} cannot name a stream: no slash, no leading dot or double underscore is allowed.")
            if np.dtype(feature.dtype).kind not in "biuf":
                raise RefusedError(f"Stream {key!r} has dtype {feature.dtype!r}; allowed are booleans, integers and floats.")

    @property
    def streams(self) -> dict[str, FeatureSpec]:
        """Every stream that each episode holds, observations first."""
        return {**self.spaces.observation, ACTION: self.spaces.action, **self.extra}

    def to_json(self) -> dict[str, object]:
        """Return a JSON form that :meth:`from_json` inverts."""
        extra = {k: {"shape": list(f.shape), "dtype": f.dtype, "names": list(f.names)} for k, f in self.extra.items()}
        return {
            "spaces": self.spaces.to_json(),
            "task": self.task,
            "fidelity": self.fidelity,
            "extra": extra,
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> StoreHeader:
        """Rebuild a header from :meth:`to_json`.

        Raises:
            RefusedError: a field is missing or malformed.
        """
        try:
            extra = {
                key: FeatureSpec(shape=tuple(f["shape"]), dtype=f["dtype"], names=tuple(f["names"]))
                for key, f in data["extra"].items()  # type: ignore[attr-defined]
            }
            spaces = Spaces.from_json(data["spaces"])  # type: ignore[arg-type]
            return cls(spaces, str(data["task"]), str(data["fidelity"]), extra, dict(data["provenance"]))  # type: ignore[call-overload]
        except (KeyError, TypeError, AttributeError) as error:
            raise RefusedError(f"Malformed description of an episode store: {error!r}.") from error

    def require_same(self, other: StoreHeader, *, what: str) -> None:
        """Refuse to join episodes described by ``other`` to this header.

        Raises:
            RefusedError: names ``what``, the first difference and both values.
        """
        for name in ("task", "fidelity"):
            if getattr(self, name) != getattr(other, name):
                raise RefusedError(f"{what} holds {name} {getattr(self, name)!r}, but {getattr(other, name)!r} is offered.")
        for entry in dataclasses.fields(Spaces):
            mine, theirs = getattr(self.spaces, entry.name), getattr(other.spaces, entry.name)
            if mine != theirs:
                raise RefusedError(f"{what} holds spaces with {entry.name} {mine}, but {theirs} is offered.")
        if dict(self.extra) != dict(other.extra):
            raise RefusedError(f"{what} keeps the extra streams {dict(self.extra)}, but {dict(other.extra)} is offered.")


def seal(header: StoreHeader) -> bytes:
    """Return the bytes of ``store.json``: readable JSON that carries its own SHA-256."""
    body = {"format": FORMAT, "version": VERSION, **header.to_json()}
    return _dump({**body, "sha256": hashlib.sha256(_dump(body)).hexdigest()})


def unseal(content: bytes, *, where: Path) -> StoreHeader:
    """Read what :func:`seal` wrote and check every byte of it.

    Raises:
        RefusedError: not a store, a newer version, or any byte differs from what was written.
    """
    try:
        body = json.loads(content)
        digest = body.pop("sha256")
        form, version = body["format"], body["version"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RefusedError(f"{where} is damaged or not an episode store: {error!r}.") from error
    if form != FORMAT or version != VERSION:
        raise RefusedError(f"{where} says format {form!r} version {version!r}; this program reads {FORMAT!r} version {VERSION}.")
    try:
        intact = hashlib.sha256(_dump(body)).hexdigest() == digest and _dump({**body, "sha256": digest}) == content
    except ValueError:  # a number that is not finite, which we never write
        intact = False
    if not intact:
        raise RefusedError(f"{where} is damaged: it does not match its own checksum.")
    return StoreHeader.from_json(body)


def _dump(data: Mapping[str, object]) -> bytes:
    return (json.dumps(data, indent=2, allow_nan=False) + "\n").encode("ascii")
