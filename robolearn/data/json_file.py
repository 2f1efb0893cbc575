"""JSON that strangers wrote: of bounded length, an object, and each name in it once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from robolearn.core.errors import RefusedError

MAX_JSON_BYTES = 1 << 26
"""A description longer than this is an attack or damage, not a description."""


def parse_json(text: str | bytes, *, where: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        RefusedError: too long, not JSON, not an object, or an object in it has a name twice.
    """
    if len(text) > MAX_JSON_BYTES:
        raise RefusedError(f"{where} is {len(text)} bytes long; at most {MAX_JSON_BYTES} are read.")
    try:
        body = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise RefusedError(f"{where} is damaged: {error}.") from error
    if not isinstance(body, dict):
        raise RefusedError(f"{where} is damaged: an object was expected, not {type(body).__name__}.")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two values for one name; which of them was meant is not for us to guess."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it says {next(n for n in names if names.count(n) > 1)!r} twice")
    return found


def read_bounded(path: Path) -> bytes:
    """Return the bytes of a description.

    Raises:
        RefusedError: it is too long.
        OSError: it is missing or unreadable.
    """
    size = path.stat().st_size
    if size > MAX_JSON_BYTES:
        raise RefusedError(f"{path} is {size} bytes long; at most {MAX_JSON_BYTES} are read.")
    return path.read_bytes()


def read_limited(path: Path) -> bytes:
    """Return the bytes of a description.

    Raises:
        RefusedError: it is missing, unreadable or too long.
    """
    try:
        return read_bounded(path)
    except OSError as error:
        raise RefusedError(f"{path} cannot be read: {error.strerror or error}.") from error
