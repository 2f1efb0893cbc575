"""The folder that is deployed: a policy, how its chunks are executed, which streams it reads, and for which robot it was made.

``bundle.json`` describes it and holds the SHA-256 of every other file; ``policy/`` is a checkpoint folder (averaged weights
only), ``novelty/`` what the out-of-distribution score needs.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from robolearn.core.config import from_mapping
from robolearn.core.errors import RefusedError
from robolearn.core.run import create_run_dir, read_json, write_json
from robolearn.core.types import Spaces
from robolearn.deploy.executor import ExecutorConfig
from robolearn.deploy.novelty import ObservationNovelty
from robolearn.deploy.streams import ObservationContract

BUNDLE_FILE = "bundle.json"
POLICY_FOLDER, NOVELTY_FOLDER = "policy", "novelty"
_FORMAT = "robolearn.bundle/1"
_POLICY_FILES = ("config.json", "ema.safetensors")
_FIELDS = ("format", "name", "task", "robot", "spaces", "executor", "policy_seed", "contract", "files")


@dataclass(frozen=True)
class BundleParts:
    """What a bundle is made from."""

    policy: Path
    """Checkpoint folder with averaged weights."""
    contract: ObservationContract
    """Where its observations come from on the robot."""
    executor: ExecutorConfig
    """How its chunks are executed."""
    task: str
    """Name of the task, for people and for the simulated twin."""
    policy_seed: int = 0
    """Seed of the policy's own randomness."""
    novelty: ObservationNovelty | None = None
    """Fitted out-of-distribution score; None watches nothing."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle; its files have been checked against their checksums."""

    folder: Path
    name: str
    task: str
    spaces: Spaces
    executor: ExecutorConfig
    policy_seed: int
    contract: ObservationContract
    novelty: ObservationNovelty | None

    @property
    def policy(self) -> Path:
        """Checkpoint folder of the policy."""
        return self.folder / POLICY_FOLDER

    def require_robot(self, robot: str, *, joints: tuple[str, ...] = ()) -> None:
        """Refuse a bundle that was made for another robot, or that reads joints which this one does not have.

        Args:
            robot: name of the robot at hand.
            joints: every joint that its driver reports; not checked if empty.

        Raises:
            RefusedError: names both robots, or the joints.
        """
        if robot != self.spaces.robot:
            raise RefusedError(f"Bundle {self.folder} was made for robot {self.spaces.robot!r}, not for {robot!r}.")
        for name, stream in self.contract.streams.items():
            unknown = [joint for joint in stream.names if joints and joint not in joints]
            if unknown:
                raise RefusedError(f"Bundle {self.folder}: stream {name!r} reads {unknown}; {robot} has {list(joints)}.")


def write_bundle(folder: Path, parts: BundleParts) -> Bundle:
    """Copy ``parts`` into ``folder`` and return the bundle.

    Raises:
        RefusedError: ``folder`` holds something already, a part is missing, the streams do not make what the policy reads, or the
            out-of-distribution score was fitted to other observations.
    """
    spaces = _spaces(parts.policy)
    parts.contract.require_fits(spaces, what=f"bundle {folder.name}")
    if parts.novelty is not None:
        parts.novelty.require_fits(spaces, what=f"bundle {folder.name}")
    create_run_dir(folder)
    _copy_policy(parts.policy, folder / POLICY_FOLDER)
    if parts.novelty is not None:
        parts.novelty.save(folder / NOVELTY_FOLDER)
    card = {
        "format": _FORMAT,
        "name": folder.name,
        "task": parts.task,
        "robot": spaces.robot,
        "spaces": spaces.to_json(),
        "executor": asdict(parts.executor),
        "policy_seed": parts.policy_seed,
        "contract": parts.contract.to_json(),
        "files": _checksums(folder),
    }
    write_json(folder / BUNDLE_FILE, card)
    return open_bundle(folder)


def open_bundle(folder: Path) -> Bundle:
    """Read a bundle and check every file of it.

    Raises:
        RefusedError: it is not a bundle, a field is missing or unknown, a file is missing, added or changed, or its parts do not
            fit each other; the message names what.
    """
    where = str(folder / BUNDLE_FILE)
    card = read_json(folder / BUNDLE_FILE, what="bundle description")
    if card.get("format") != _FORMAT:
        raise RefusedError(f"{where}: format {card.get('format')!r} is not {_FORMAT!r}.")
    if sorted(card) != sorted(_FIELDS):
        raise RefusedError(f"{where}: lacks {sorted(set(_FIELDS) - set(card))}, has unknown {sorted(set(card) - set(_FIELDS))}.")
    _require_files(folder, card["files"], where)
    spaces = Spaces.from_json(card["spaces"])  # type: ignore[arg-type]
    if spaces != _spaces(folder / POLICY_FOLDER) or card["robot"] != spaces.robot:
        raise RefusedError(f"{where}: its spaces or robot {card['robot']!r} are not those of {folder / POLICY_FOLDER}.")
    contract = ObservationContract.from_json(card["contract"], where=where)  # type: ignore[arg-type]
    contract.require_fits(spaces, what=where)
    novelty = None
    if (folder / NOVELTY_FOLDER).is_dir():
        novelty = ObservationNovelty.load(folder / NOVELTY_FOLDER)
        novelty.require_fits(spaces, what=where)
    seed = card["policy_seed"]
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise RefusedError(f"{where}: policy_seed={seed!r} must be an integer that is not negative.")
    return Bundle(
        folder=folder,
        name=str(card["name"]),
        task=str(card["task"]),
        spaces=spaces,
        executor=from_mapping(ExecutorConfig, card["executor"], where=f"{where}: executor"),
        policy_seed=seed,
        contract=contract,
        novelty=novelty,
    )


def _spaces(checkpoint: Path) -> Spaces:
    card = read_json(checkpoint / "config.json", what="policy checkpoint's description")
    if "spaces" not in card:
        raise RefusedError(f"{checkpoint / 'config.json'} lacks the field 'spaces'.")
    return Spaces.from_json(card["spaces"])  # type: ignore[arg-type]


def _copy_policy(source: Path, target: Path) -> None:
    target.mkdir()
    for name in _POLICY_FILES:
        if not (source / name).is_file():
            raise RefusedError(f"Policy checkpoint {source} lacks {name}.")
        shutil.copyfile(source / name, target / name)


def _checksums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / BUNDLE_FILE)
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def _require_files(folder: Path, expected: object, where: str) -> None:
    if not isinstance(expected, Mapping):
        raise RefusedError(f"{where}: 'files' must map paths to checksums.")
    found = _checksums(folder)
    for name in sorted(set(expected) | set(found)):
        if name not in found:
            raise RefusedError(f"{where}: the file {name} is missing.")
        if name not in expected:
            raise RefusedError(f"{where}: the file {name} does not belong to the bundle.")
        if found[name] != expected[name]:
            raise RefusedError(f"{where}: the file {name} was changed after the bundle was made (SHA-256 differs).")
