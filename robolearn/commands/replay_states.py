"""Simulated states into observations: what ``robolearn data convert --replay`` does for robosuite's files.

The recorded model XML of each episode is compiled as it is; only the places of its meshes and textures, absolute on the
machine that
recorded it, are put to this machine's robosuite. Each recorded state is set and the observation of robolearn's task is
read from it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.rotations import rotation_6d_from_matrix
from robolearn.core.types import ACTION, ENVIRONMENT_STATE, STATE, Array, Episode, FeatureSpec
from robolearn.data.formats.exchange import EpisodeSource
from robolearn.data.formats.robomimic import MODEL_FILE, SIM_STATE
from robolearn.data.header import StoreHeader
from sim_envs.robosuite_task import ARM_JOINTS, JOINT_POSITION, RobosuiteTask
from sim_envs.task import get_task, task_names

MAX_XML_BYTES = 1 << 24


def replayed(source: EpisodeSource) -> EpisodeSource:
    """Return the same episodes with observations made from their ``sim.state``.

    Raises:
        RefusedError: there are no states, or the environment is none that robolearn has a task for.
    """
    header = source.header
    if SIM_STATE not in header.extra:
        raise RefusedError(f"--replay needs recorded simulator states; the streams are {sorted(header.streams)}.")
    task = _task(header.task)
    if task.num_arms != 1:
        raise RefusedError(f"--replay serves tasks with one arm; {task.name} has {task.num_arms}.")
    spaces = dataclasses.replace(
        task.spaces((), 84),
        action=FeatureSpec(header.spaces.action.shape, header.spaces.action.dtype, task.spaces((), 84).action.names),
        control_rate_hz=header.spaces.control_rate_hz,
    )
    if header.spaces.action.shape != (len(spaces.action_low),):
        raise RefusedError(
            f"The actions have shape {header.spaces.action.shape}, task {task.name} takes {len(spaces.action_low)}."
        )
    new = StoreHeader(spaces, task.name, header.fidelity, header.extra, {**header.provenance, "replayed": header.task})
    return _Replayed(source, new, task)


def _task(name: str) -> RobosuiteTask:
    """Return robolearn's task of a robosuite environment, by its own or robosuite's name."""
    import importlib

    offered = {}
    for own in task_names():
        get_task(own)
        found = getattr(importlib.import_module(f"sim_envs.tasks.{own}"), "ROBOSUITE", None)
        if found is not None:
            offered[found.robosuite_name] = offered[own] = found
    if name not in offered:
        raise RefusedError(f"--replay knows no task {name!r}. Allowed: {', '.join(sorted(offered))}.")
    return offered[name]


class _Replayed:
    def __init__(self, source: EpisodeSource, header: StoreHeader, task: RobosuiteTask) -> None:
        self._source, self.header, self._task = source, header, task
        self.notes: tuple[str, ...] = (
            *source.notes,
            "observations were made from the recorded states; the file's own are left out",
        )
        self._models: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self._source)

    def episode(self, index: int) -> Episode:
        """Return an episode with observations of robolearn's task."""
        episode = self._source.episode(index)
        xml = episode.metadata.get(MODEL_FILE)
        if not isinstance(xml, str):
            raise RefusedError(f"Episode {index} has no {MODEL_FILE}; its states cannot be understood.")
        if xml not in self._models:
            self._models = {xml: _compile(xml, f"Episode {index}")}
        states = np.asarray(episode.data[SIM_STATE][slice(0, len(episode))], np.float64)
        data: dict[str, Array] = _observe(self._models[xml], self._task, states, f"Episode {index}")
        data[ACTION] = episode.data[ACTION]
        data |= {key: episode.data[key] for key in self.header.extra}
        metadata = {k: v for k, v in episode.metadata.items() if k != "task"}
        return dataclasses.replace(episode, data=data, metadata=metadata)

    def close(self) -> None:
        self._source.close()


def _compile(xml: str, where: str) -> Any:
    """Compile a recorded model with this machine's meshes.

    Raises:
        RefusedError: no model, or it wants files outside of robosuite.
    """
    import mujoco
    import robosuite

    if len(xml) > MAX_XML_BYTES or "<!DOCTYPE" in xml or "<!ENTITY" in xml or "<include" in xml:
        raise RefusedError(f"{where}: the model file is {len(xml)} characters long, or declares entities or includes; not read.")
    try:
        root = ElementTree.fromstring(xml)
    except ElementTree.ParseError as error:
        raise RefusedError(f"{where}: the model file is damaged: {error}.") from error
    home = Path(robosuite.__file__).parent.resolve()
    for element in root.iter():
        for name in ("file", "fileright", "fileleft", "fileup", "filedown", "filefront", "fileback"):
            if element.get(name):
                element.set(name, str(_local(str(element.get(name)), home, where)))
    for name in ("meshdir", "texturedir", "assetdir"):
        for compiler in root.iter("compiler"):
            compiler.attrib.pop(name, None)
    try:
        return mujoco.MjModel.from_xml_string(ElementTree.tostring(root, encoding="unicode"))
    except (ValueError, RuntimeError) as error:
        raise RefusedError(f"{where}: MuJoCo cannot compile the model file: {str(error).splitlines()[0]}.") from error


def _local(path: str, home: Path, where: str) -> Path:
    parts = re.split(r"[\\/]", path)
    if "models" in parts and "assets" in parts and ".." not in parts:
        local = home.joinpath(*parts[len(parts) - 1 - parts[::-1].index("models") :])
        if local.is_file() and local.resolve().is_relative_to(home):
            return local
    raise RefusedError(f"{where}: the model wants {path!r}, which this robosuite does not have; other files are not read.")


def _observe(model: Any, task: RobosuiteTask, states: Array, where: str) -> dict[str, Array]:
    """Return the observation streams of (t, 1 + nq + nv) states."""
    import mujoco

    nq, nv = model.nq, model.nv
    if states.shape[1] != 1 + nq + nv:
        raise RefusedError(f"{where}: states have {states.shape[1]} numbers, the model has 1 + {nq} + {nv}.")
    data = mujoco.MjData(model)
    site = _element(model, mujoco.mjtObj.mjOBJ_SITE, "gripper0_right_grip_site", "gripper0_grip_site", where=where)
    joints = [_element(model, mujoco.mjtObj.mjOBJ_JOINT, f"robot0_joint{i + 1}", where=where) for i in range(ARM_JOINTS)]
    fingers = [
        _element(model, mujoco.mjtObj.mjOBJ_JOINT, f"gripper0_right_finger_joint{i}", f"gripper0_finger_joint{i}", where=where)
        for i in (1, 2)
    ]
    kinds = {"body": mujoco.mjtObj.mjOBJ_BODY, "site": mujoco.mjtObj.mjOBJ_SITE}
    frames = [
        (kind, _element(model, kinds[kind], name, where=where)) for kind, name in ((f.kind, f.element) for f in task.frames)
    ]
    angles = [_element(model, mujoco.mjtObj.mjOBJ_JOINT, joint, where=where) for _, joint in task.angles]
    out: dict[str, list[Array]] = {STATE: [], JOINT_POSITION: [], ENVIRONMENT_STATE: []}
    for row in states:
        data.qpos[:], data.qvel[:] = row[1 : 1 + nq], row[1 + nq :]
        mujoco.mj_kinematics(model, data)
        eef = data.site_xpos[site].copy()
        turn = rotation_6d_from_matrix(data.site_xmat[site].reshape(3, 3))
        out[STATE].append(np.concatenate([eef, turn, data.qpos[model.jnt_qposadr[fingers]]]))
        out[JOINT_POSITION].append(data.qpos[model.jnt_qposadr[joints]].copy())
        parts = []
        for kind, number in frames:
            position, matrix = (data.xpos, data.xmat) if kind == "body" else (data.site_xpos, data.site_xmat)
            p = position[number].copy()
            parts += [p, rotation_6d_from_matrix(matrix[number].reshape(3, 3)), p - eef]
        parts.append(data.qpos[model.jnt_qposadr[angles]].copy())
        out[ENVIRONMENT_STATE].append(np.concatenate(parts))
    return {key: np.stack(rows).astype(np.float32) for key, rows in out.items()}


def _element(model: Any, kind: Any, *names: str, where: str) -> int:
    import mujoco

    for name in names:
        number = mujoco.mj_name2id(model, kind, name)
        if number >= 0:
            return int(number)
    raise RefusedError(f"{where}: the model has no {' or '.join(names)}; it is of another task or robot.")
