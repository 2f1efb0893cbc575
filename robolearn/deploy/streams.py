"""From sensor streams to observations: one resampler, live, from a recording and in training.

A *contract* says which streams there are and from which parts each observation key is put together. The resampler keeps the
newest samples of every stream and answers one question: what was known at time ``at_ns``? The answer depends only on which
samples were pushed before it was asked and on their stamps, so a recording that is replayed in its order of arrival gives the
same frames, bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from robolearn.core.errors import RefusedError, nearest
from robolearn.core.types import Array, Observation, Spaces, is_image
from robolearn.deploy.codecs import FIELDS, MESSAGE_TYPES, Sample

_AXES = ("x", "y", "z")
_MAX_FUTURE_NS = 50_000_000
"""A stamp this far ahead of its arrival is a clock fault, not a sample."""


@dataclass(frozen=True)
class Stream:
    """One topic that is listened to."""

    topic: str
    """Topic name, relative to the robot's namespace unless it begins with ``/``."""
    kind: str
    """Key of :data:`robolearn.deploy.codecs.MESSAGE_TYPES`."""
    names: tuple[str, ...] = ()
    """Joints that are read, in the order in which parts see them; joint states only."""
    max_age_s: float = 0.1
    """A frame is refused when the newest sample is older than this."""
    stamp: str = "header"
    """``header`` trusts the sender's stamp; ``receive`` takes the time of arrival (for drivers that send none)."""
    align: str = "latest"
    """``latest`` takes the newest sample that is not from the future; ``exact`` waits for the one with the clock's own stamp."""

    def __post_init__(self) -> None:
        if self.kind not in MESSAGE_TYPES:
            raise RefusedError(f"Stream {self.topic!r} is of kind {self.kind!r}. {nearest(self.kind, MESSAGE_TYPES)}")
        if self.stamp not in ("header", "receive") or self.align not in ("latest", "exact"):
            raise RefusedError(
                f"Stream {self.topic!r}: stamp={self.stamp!r} must be 'header' or 'receive', "
                f"align={self.align!r} 'latest' or 'exact'."
            )
        if not (np.isfinite(self.max_age_s) and self.max_age_s > 0):
            raise RefusedError(f"Stream {self.topic!r}: max_age_s={self.max_age_s} must be positive and finite.")
        if (self.kind == "joint_state") != bool(self.names):
            raise RefusedError(
                f"Stream {self.topic!r} of kind {self.kind!r}: joint names belong to joint states, and to each of them."
            )


@dataclass(frozen=True)
class Part:
    """Consecutive elements of one observation key."""

    stream: str
    """Name of the stream."""
    take: str
    """Field of its messages, see :data:`robolearn.deploy.codecs.FIELDS`."""
    prefix: str = ""
    """Begins the names of the elements: ``eef_pos`` gives ``eef_pos_x``; compared with the names that the policy reads.

    Joints without one are called as their driver calls them."""
    names: tuple[str, ...] = ()
    """Which of the stream's joints; all by default."""
    minus: str = ""
    """Stream whose same field is subtracted, for positions relative to the hand."""

    def element_names(self, stream: Stream) -> tuple[str, ...]:
        """Return the names of the elements that this part yields; empty for a picture."""
        if self.take == "image":
            return ()
        if stream.kind == "joint_state":
            joints = self.names or stream.names
            return tuple(f"{self.prefix}_{i}" for i in range(len(joints))) if self.prefix else joints
        if self.take == "rot6d":
            return tuple(f"{self.prefix}_{i}" for i in range(6))
        return tuple(f"{self.prefix}_{axis}" for axis in _AXES)


@dataclass(frozen=True)
class ObservationContract:
    """Streams, and how observation keys are made from them."""

    streams: Mapping[str, Stream]
    features: Mapping[str, tuple[Part, ...]]
    clock: str
    """Stream whose messages mark the control steps."""

    def __post_init__(self) -> None:
        if self.clock not in self.streams:
            raise RefusedError(f"clock={self.clock!r} names no stream. {nearest(self.clock, self.streams)}")
        for key, parts in self.features.items():
            for part in parts:
                for name in (part.stream, part.minus):
                    if name and name not in self.streams:
                        raise RefusedError(f"{key}: no stream {name!r}. {nearest(name, self.streams)}")
                stream = self.streams[part.stream]
                if part.take not in FIELDS[stream.kind]:
                    raise RefusedError(
                        f"{key}: {stream.kind} has no field {part.take!r}. {nearest(part.take, FIELDS[stream.kind])}"
                    )
                unknown = [n for n in part.names if n not in stream.names]
                if unknown:
                    raise RefusedError(f"{key}: stream {part.stream!r} does not read {unknown}; it reads {list(stream.names)}.")

    def require_fits(self, spaces: Spaces, *, what: str) -> None:
        """Refuse unless every observation key of ``spaces`` is made, with the same element names in the same order.

        Raises:
            RefusedError: names the key and the first difference.
        """
        for key, feature in spaces.observation.items():
            if key not in self.features:
                raise RefusedError(f"{what}: the streams make no {key!r}; they make {sorted(self.features)}.")
            made = tuple(n for part in self.features[key] for n in part.element_names(self.streams[part.stream]))
            if not is_image(key) and made != feature.names:
                at = next((i for i in range(len(made)) if made[i : i + 1] != feature.names[i : i + 1]), len(made))
                raise RefusedError(
                    f"{what}: {key!r} differs at element {at}: the policy reads {feature.names[at : at + 1]} "
                    f"({len(feature.names)} in all), the streams make {made[at : at + 1]} ({len(made)} in all)."
                )

    def used_streams(self, spaces: Spaces) -> list[str]:
        """Return the streams that a policy of these ``spaces`` needs, and the clock."""
        parts = [part for key in spaces.observation for part in self.features[key]]
        used = {self.clock} | {p.stream for p in parts} | {p.minus for p in parts if p.minus}
        return [name for name in self.streams if name in used]

    def to_json(self) -> dict[str, object]:
        """Return a JSON-serialisable form that :meth:`from_json` inverts."""
        return {
            "clock": self.clock,
            "streams": {name: asdict(stream) for name, stream in self.streams.items()},
            "features": {key: [asdict(part) for part in parts] for key, parts in self.features.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, where: str) -> ObservationContract:
        """Rebuild from :meth:`to_json`.

        Raises:
            RefusedError: a key is missing, unknown or malformed; the message begins with ``where``.
        """
        unknown = set(data) - {"clock", "streams", "features"} if isinstance(data, Mapping) else {"?"}
        if unknown or len(data) != 3:
            raise RefusedError(f"{where}: the contract needs exactly clock, streams and features; got {sorted(data)}.")
        try:
            streams = {str(n): _read(Stream, s, f"{where}: stream {n!r}") for n, s in data["streams"].items()}
            features = {
                str(k): tuple(_read(Part, p, f"{where}: {k!r} part {i}") for i, p in enumerate(parts))
                for k, parts in data["features"].items()
            }
        except (AttributeError, TypeError) as error:
            raise RefusedError(f"{where}: the contract's streams and features must be mappings: {error}.") from error
        return cls(streams, features, str(data["clock"]))


@dataclass(frozen=True)
class Frame:
    """What was known at one moment."""

    observation: Observation
    """Key -> array without batch axis, in the dtypes that the policy was trained on."""
    at_ns: int
    """The moment."""
    stamps_ns: Mapping[str, int]
    """Key -> stamp of the oldest sample in it."""

    @property
    def oldest_ns(self) -> int:
        """Return the stamp of the oldest sample of all."""
        return min(self.stamps_ns.values())


class StreamsNotReadyError(RefusedError):
    """A frame was asked for while a stream had no sample, or none that was young enough."""


class Resampler:
    """Ring buffers of samples, and frames made from them. Not thread-safe: the caller holds a lock."""

    def __init__(self, contract: ObservationContract, spaces: Spaces, *, keep_s: float = 2.0) -> None:
        contract.require_fits(spaces, what="resampler")
        self._contract, self._spaces = contract, spaces
        self._keep_ns = int(keep_s * 1e9)
        self._samples: dict[str, deque[tuple[int, Sample]]] = {n: deque() for n in contract.used_streams(spaces)}
        self._exact = [name for name in self._samples if contract.streams[name].align == "exact"]
        self.dropped: dict[str, int] = dict.fromkeys(self._samples, 0)
        """Stream -> samples that were refused: not newer than the last one, or stamped in the future."""
        self.received: dict[str, int] = dict.fromkeys(self._samples, 0)
        """Stream -> samples that were kept."""
        self._taken_ns = -1

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams that frames are made from."""
        return tuple(self._samples)

    def reset(self) -> None:
        """Forget every sample: a new episode begins."""
        for samples in self._samples.values():
            samples.clear()
        self._taken_ns = -1

    def push(self, stream: str, sample: Sample, *, stamp_ns: int, received_ns: int) -> bool:
        """Keep a sample; return False if it was refused for its stamp."""
        samples = self._samples[stream]
        if self._contract.streams[stream].stamp == "receive":
            stamp_ns = received_ns
        if (samples and stamp_ns <= samples[-1][0]) or stamp_ns > received_ns + _MAX_FUTURE_NS:
            self.dropped[stream] += 1
            return False
        samples.append((stamp_ns, sample))
        self.received[stream] += 1
        while len(samples) > 1 and samples[0][0] < stamp_ns - self._keep_ns:
            samples.popleft()
        return True

    def newest_ns(self, stream: str) -> int | None:
        """Return the stamp of a stream's newest sample."""
        samples = self._samples[stream]
        return samples[-1][0] if samples else None

    def ages_s(self, at_ns: int) -> dict[str, float]:
        """Return the age of each stream's newest sample; infinite where there is none."""
        return {n: (at_ns - s[-1][0]) / 1e9 if s else float("inf") for n, s in self._samples.items()}

    def take(self, *, newest: bool = False) -> Frame | None:
        """Return the frame at the newest step of the clock that is complete, once; None while there is none.

        Samples come in any order: a step whose last one arrives after the clock's next still gives its frame. Whoever decides
        now asks for the ``newest``: a step that is followed by any sample of the next is left out.

        Raises:
            StreamsNotReadyError: see :meth:`frame`.
        """
        for stamp, _ in reversed(self._samples[self._contract.clock]):
            if stamp <= self._taken_ns or (newest and any((self.newest_ns(name) or 0) > stamp for name in self._exact)):
                return None
            if all(self._has(name, stamp) for name in self._exact):
                self._taken_ns = stamp
                return self.frame(stamp)
            if newest:
                return None
        return None

    def _has(self, stream: str, stamp_ns: int) -> bool:
        return next((s for s, _ in reversed(self._samples[stream]) if s <= stamp_ns), None) == stamp_ns

    def frame(self, at_ns: int) -> Frame:
        """Return the newest samples that are not stamped after ``at_ns``, put together as observations.

        Raises:
            StreamsNotReadyError: a stream has no such sample, or it is older than the stream's ``max_age_s``; all are named.
        """
        chosen: dict[str, tuple[int, Sample]] = {}
        faults = []
        for name, samples in self._samples.items():
            found = next(((stamp, s) for stamp, s in reversed(samples) if stamp <= at_ns), None)
            limit = self._contract.streams[name].max_age_s
            if found is None:
                faults.append(f"{name!r} has no sample")
            elif at_ns - found[0] > limit * 1e9:
                faults.append(f"{name!r} is {(at_ns - found[0]) / 1e9:.3f} s old (limit {limit} s)")
            else:
                chosen[name] = found
        if faults:
            raise StreamsNotReadyError(f"No observation: {'; '.join(faults)}.")
        values = {name: sample for name, (_, sample) in chosen.items()}
        observation = {key: self._feature(key, values) for key in self._spaces.observation}
        stamps = {key: min(chosen[n][0] for n in self._sources(key)) for key in observation}
        return Frame(observation, at_ns, stamps)

    def _sources(self, key: str) -> set[str]:
        parts = self._contract.features[key]
        return {p.stream for p in parts} | {p.minus for p in parts if p.minus}

    def _feature(self, key: str, samples: Mapping[str, Sample]) -> Array:
        feature = self._spaces.observation[key]
        parts = self._contract.features[key]
        if is_image(key):
            picture = _field(samples, parts[0].stream, "image", key)
            return _resize(picture, feature.shape)
        values = [self._values(part, samples, key) for part in parts]
        return np.concatenate(values).astype(feature.dtype)

    def _values(self, part: Part, samples: Mapping[str, Sample], key: str) -> Array:
        value = _field(samples, part.stream, part.take, key)
        if part.minus:
            value = value - _field(samples, part.minus, part.take, key)
        if part.names:
            joints = self._contract.streams[part.stream].names
            value = value[[joints.index(n) for n in part.names]]
        return value


def replay(
    contract: ObservationContract,
    spaces: Spaces,
    arrivals: Iterable[tuple[int, str, int, Sample]],
) -> Iterator[Frame]:
    """Yield the frames that a live node makes from the same messages.

    Args:
        contract: streams and parts.
        spaces: of the policy.
        arrivals: (received_ns, stream, stamp_ns, sample) in order of arrival; streams that are not used are ignored.
    """
    resampler = Resampler(contract, spaces)
    used = set(contract.used_streams(spaces))
    for received_ns, stream, stamp_ns, sample in arrivals:
        if stream not in used:
            continue
        resampler.push(stream, sample, stamp_ns=stamp_ns, received_ns=received_ns)
        try:
            frame = resampler.take()
        except StreamsNotReadyError:
            continue
        if frame is not None:
            yield frame


def _field(samples: Mapping[str, Sample], stream: str, field: str, key: str) -> Array:
    if field not in samples[stream]:
        raise RefusedError(f"{key}: the messages of stream {stream!r} carry no {field}; they carry {sorted(samples[stream])}.")
    return np.asarray(samples[stream][field])


def _resize(picture: Array, shape: tuple[int, ...]) -> Array:
    """Return the centre square (or wanted aspect) of ``picture`` (h, w, 3), averaged down or up to ``shape``."""
    height, width = shape[0], shape[1]
    if picture.shape == tuple(shape):
        return picture
    from PIL import Image

    scale = min(picture.shape[0] / height, picture.shape[1] / width)
    crop_h, crop_w = round(height * scale), round(width * scale)
    top, left = (picture.shape[0] - crop_h) // 2, (picture.shape[1] - crop_w) // 2
    image = Image.fromarray(np.ascontiguousarray(picture[top : top + crop_h, left : left + crop_w]))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def _read[S](cls: type[S], data: Mapping[str, Any], where: str) -> S:
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise RefusedError(f"{where}: unknown key {key!r}. {nearest(str(key), known)}")
    try:
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})
    except TypeError as error:
        raise RefusedError(f"{where}: {error}.") from error
    except RefusedError as error:
        raise RefusedError(f"{where}: {error}") from error
