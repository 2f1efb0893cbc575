"""The contract that follows from the names of a one-armed task's observations; the simulated twin publishes by it.

``eef_*`` is the pose of the hand, ``gripper_qpos_*`` the fingers' joints, ``joint_position_*`` or joints' own names the arm's,
``<object>_pos_*``, ``<object>_rot6d_*`` and ``<object>_to_eef_*`` the pose of an object as a tracker (or the simulator)
reports it. A real robot whose
cameras and trackers use other topics has its own contract file; the element names stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from robolearn.core.errors import RefusedError
from robolearn.core.types import IMAGES_PREFIX, Spaces, is_image
from robolearn.deploy.streams import ObservationContract, Part, Stream

_GROUP = re.compile(r"(?P<prefix>.+)_(x|y|z|\d+)$")
HAND, JOINTS = "eef", "joints"
ARM = ""
"""In place of a prefix: the joints of the arm under the names of their driver."""
MAX_AGE_S = 0.15
"""Three control steps at 20 Hz: a stream that was silent for longer stops the policy."""


def contract_from_names(spaces: Spaces, *, arm_joints: Sequence[str], finger_joints: Sequence[str]) -> ObservationContract:
    """Return the contract of a task with one arm.

    Args:
        spaces: element names as in the robosuite tasks of this project.
        arm_joints: the driver's names of ``joint_position_*``.
        finger_joints: the driver's names of ``gripper_qpos_*``.

    Raises:
        RefusedError: an element name follows no rule above.
    """
    streams = {
        JOINTS: Stream("joint_states", "joint_state", (*arm_joints, *finger_joints), MAX_AGE_S),
        HAND: Stream("eef_pose", "pose", (), MAX_AGE_S, align="exact"),
    }
    features: dict[str, tuple[Part, ...]] = {}
    for key, feature in spaces.observation.items():
        if is_image(key):
            camera = key.removeprefix(IMAGES_PREFIX)
            streams[camera] = Stream(f"{camera}/image_raw", "image", (), MAX_AGE_S)
            features[key] = (Part(camera, "image"),)
            continue
        parts = []
        for prefix in _prefixes(feature.names, tuple(arm_joints)):
            part = _part(prefix, tuple(arm_joints), tuple(finger_joints))
            streams.setdefault(part.stream, Stream(f"objects/{part.stream}", "pose", (), MAX_AGE_S, align="exact"))
            parts.append(part)
        features[key] = tuple(parts)
    contract = ObservationContract(streams, features, clock=JOINTS)
    contract.require_fits(spaces, what="contract from names")
    return contract


def _prefixes(names: Sequence[str], arm: tuple[str, ...]) -> Iterator[str]:
    if tuple(names[: len(arm)]) == arm:
        yield ARM
        names = names[len(arm) :]
    previous = ""
    for name in names:
        match = _GROUP.match(name)
        if match is None:
            raise RefusedError(f"No stream is known for the observation element {name!r}; write a contract for it.")
        if match["prefix"] != previous:
            previous = match["prefix"]
            yield previous


def _part(prefix: str, arm: tuple[str, ...], fingers: tuple[str, ...]) -> Part:
    if prefix == ARM:
        return Part(JOINTS, "position", "", arm)
    if prefix == "joint_position":
        return Part(JOINTS, "position", prefix, arm)
    if prefix == "gripper_qpos":
        return Part(JOINTS, "position", prefix, fingers)
    for suffix, take, minus in (("_pos", "position", ""), ("_rot6d", "rot6d", ""), ("_to_eef", "position", HAND)):
        if prefix.endswith(suffix):
            return Part(prefix.removesuffix(suffix), take, prefix, minus=minus)
    raise RefusedError(f"No stream is known for the observation elements {prefix!r}_*; write a contract for them.")
