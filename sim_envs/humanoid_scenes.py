"""Models of the humanoids' scenes: the installed model of the robot, and what its hands can touch."""

from __future__ import annotations

import mujoco
import numpy as np

from robolearn.core.robot import RobotSpec
from sim_envs.twin import Scene

BOX_JOINT = "box_joint"
BOX_HALF_M = (0.06, 0.12, 0.08)
"""Half of the box's depth, width and height."""
BOX_MASS_KG = 0.5
TABLE_TOP_M = 0.05
"""Height of the table above the robot's base frame."""
_PAD = {"size": [0.03, 0.04, 0.0], "friction": [1.5, 0.02, 0.0001], "condim": 4}
"""A hand in contact: a capsule along the fingers, 30 mm thick and 80 mm long, with the friction of rubber. Chosen."""


def bare_scene(spec: RobotSpec) -> Scene:
    """Return the robot alone; nothing touches anything."""
    assert spec.model is not None
    model = mujoco.MjModel.from_xml_path(str(spec.model.locate()))
    model.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_CONTACT
    return Scene(model)


def box_on_table(spec: RobotSpec) -> Scene:
    """Return the upper body behind a table with a box; its hands are padded, and only pads, box and table touch each other."""
    assert spec.model is not None
    scene = mujoco.MjSpec.from_file(str(spec.model.locate()))
    scene.delete(scene.body("lower_body"))
    for geom in scene.geoms:
        geom.contype = geom.conaffinity = 0
    for body in spec.model.tcp_bodies:
        scene.body(body).add_geom(type=mujoco.mjtGeom.mjGEOM_CAPSULE, contype=1, conaffinity=1, **_PAD)
    depth = 0.25
    scene.worldbody.add_geom(
        name="table",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[0.15 + depth, 0.0, TABLE_TOP_M - 0.02],
        size=[depth, 0.5, 0.02],
        contype=1,
        conaffinity=1,
    )
    box = scene.worldbody.add_body(name="box", pos=[0.26, 0.0, TABLE_TOP_M + BOX_HALF_M[2]])
    box.add_freejoint(name=BOX_JOINT)
    box.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=list(BOX_HALF_M),
        mass=BOX_MASS_KG,
        contype=1,
        conaffinity=1,
        condim=4,
        friction=_PAD["friction"],
    )
    return Scene(scene.compile(), (BOX_JOINT,))


def yaw_matrix(yaw: float) -> np.ndarray:
    """Return the rotation (3, 3) about z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])
