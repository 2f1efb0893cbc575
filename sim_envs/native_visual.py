"""The native lift scene for pictures: the room of ``panda_lift_visual.xml`` with the Panda's meshes from robosuite."""

from __future__ import annotations

import importlib.util
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path

import mujoco
import numpy as np

from robolearn.core.errors import RefusedError
from robolearn.core.types import Array
from sim_envs.light_model import light_model
from sim_envs.native_model import SCENE_FILE
from sim_envs.render import CameraRenderer, shared_renderer

VISUAL_FILE = SCENE_FILE.with_name("panda_lift_visual.xml")
ROBOT_FILES = ("robots/panda/robot.xml", "grippers/panda_gripper.xml")
"""Where robosuite describes the arm and the hand, under its ``models/assets``."""
_FRAMES: Mapping[str, tuple[str, tuple[float, float, float, float]]] = {
    **{f"link{i}": (f"link{i}", (1.0, 0.0, 0.0, 0.0)) for i in range(8)},
    "right_gripper": ("hand", (1.0, 0.0, 0.0, 0.0)),
    # robosuite turns the finger frames by 90 degrees about z; ours are not turned.
    "leftfinger": ("finger1", (0.5**0.5, 0.0, 0.0, 0.5**0.5)),
    "rightfinger": ("finger2", (0.5**0.5, 0.0, 0.0, 0.5**0.5)),
}
"""Body in robosuite's files -> (our body, the quaternion wxyz of robosuite's frame in ours)."""
_HAND_RGBA = "0.93 0.93 0.94 1"
"""robosuite's hand is pure white, which shows no shape; slightly darker does."""


def native_renderer() -> CameraRenderer:
    """Return this process's renderer of the native lift scene."""
    return shared_renderer("native_lift", native_visual_model)


def native_visual_model() -> mujoco.MjModel:
    """Compile the visual model; its positions are those of the physics model.

    Raises:
        RefusedError: robosuite, whose meshes are drawn, is not installed.
    """
    return light_model(native_visual_spec().compile())


def native_visual_spec() -> mujoco.MjSpec:
    """Return the visual model before it is compiled, for tasks that add to it.

    Raises:
        RefusedError: robosuite, whose meshes are drawn, is not installed.
    """
    spec = mujoco.MjSpec.from_file(str(VISUAL_FILE))
    cube = spec.geom("cube")
    cube.group, cube.material = 1, "cube"
    for file in ROBOT_FILES:
        _add_visuals(spec, _robosuite_assets() / file)
    return spec


def _robosuite_assets() -> Path:
    # Found without importing robosuite, which takes seconds.
    package = importlib.util.find_spec("robosuite")
    if package is None or package.origin is None:
        raise RefusedError("The native scene draws the Panda's meshes from the robosuite package, which is not installed.")
    return Path(package.origin).parent / "models" / "assets"


def _add_visuals(spec: mujoco.MjSpec, file: Path) -> None:
    """Hang the visual geoms of one of robosuite's robot files on the bodies of ``spec``."""
    root = ElementTree.parse(file).getroot()
    files = {m.get("name"): file.parent / str(m.get("file")) for m in root.iter("mesh") if m.get("file")}
    colours = {m.get("name"): str(m.get("rgba")) for m in root.iter("material")}
    for body, geom in _visual_geoms(root):
        target, frame = _FRAMES[body]
        mesh = str(geom.get("mesh"))
        if spec.mesh(mesh) is None:
            added = spec.add_mesh(name=mesh, file=str(files[mesh]))
            added.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
        rgba = colours[geom.get("material")] if geom.get("material") else str(geom.get("rgba"))
        if mesh == "hand_vis":
            rgba = _HAND_RGBA
        spec.body(target).add_geom(
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=mesh,
            quat=_product(frame, _numbers(geom.get("quat", "1 0 0 0"))),
            rgba=_numbers(rgba),
            contype=0,
            conaffinity=0,
            group=1,
            mass=0,
        )


def _visual_geoms(root: ElementTree.Element) -> Iterator[tuple[str, ElementTree.Element]]:
    """Yield (body, geom) for every geom that is drawn: group 1 with a mesh."""
    for body in root.iter("body"):
        for geom in body.findall("geom"):
            if geom.get("group") == "1" and geom.get("mesh"):
                yield str(body.get("name")), geom


def _numbers(text: str | None) -> Array:
    return np.array([float(x) for x in str(text).split()])


def _product(first: tuple[float, float, float, float], second: Array) -> Array:
    result = np.empty(4)
    mujoco.mju_mulQuat(result, np.array(first), second)
    return result
