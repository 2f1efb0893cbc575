"""The native lift scene with a conveyor belt across the table that carries the cube.

The belt is a long plate on a slide joint that a stiff velocity servo moves; friction does the rest. Its joint and its servo come
last, so that the compiled kernel of native lift steps this scene as it is.
"""

from __future__ import annotations

from functools import cache

import mujoco

from sim_envs.light_model import light_model
from sim_envs.native_model import SCENE_FILE, NativeScene, settled_scene
from sim_envs.native_visual import native_visual_spec
from sim_envs.render import CameraRenderer, shared_renderer

TABLE_TOP_M = 0.8
BELT_HALF_SIZE_M = (0.12, 1.0, 0.002)
"""Longer than what passes in an episode, so that its ends are never seen."""
BELT_MASS_KG = 20.0
BELT_SERVO_N_S_PER_M = 4000.0
"""Gain of the velocity servo: a hand that leans on the belt with 10 N of friction slows it by 2.5 mm/s."""
_STRIPES = 21


def add_belt(spec: mujoco.MjSpec, *, visible: bool = False) -> None:
    """Add the belt to the native lift scene ``spec``; ``visible`` draws it, with stripes that show how it moves."""
    size = BELT_HALF_SIZE_M
    box = mujoco.mjtGeom.mjGEOM_BOX
    body = spec.worldbody.add_body(name="belt", pos=[0, 0, TABLE_TOP_M + size[2]])
    body.add_joint(name="belt", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, 1, 0])
    body.add_geom(name="belt", type=box, size=size, mass=BELT_MASS_KG, contype=1, conaffinity=0)
    servo = spec.add_actuator(name="belt", trntype=mujoco.mjtTrn.mjTRN_JOINT, target="belt")
    servo.set_to_velocity(kv=BELT_SERVO_N_S_PER_M)
    home = spec.key("home")
    # The belt stands still at the origin, and the cube on top of it.
    qpos = [*home.qpos, 0.0]
    qpos[11] += 2 * size[2]
    home.qpos, home.ctrl = qpos, [*home.ctrl, 0.0]
    if visible:
        look = {"type": box, "contype": 0, "conaffinity": 0, "group": 1, "mass": 0.0}
        body.add_geom(size=size, rgba=[0.2, 0.21, 0.23, 1], **look)
        for i in range(_STRIPES):
            at = size[1] * (2 * i / (_STRIPES - 1) - 1) * 0.98
            body.add_geom(pos=[0, at, size[2]], size=[size[0], 0.006, 0.0004], rgba=[0.55, 0.56, 0.58, 1], **look)


@cache
def conveyor_scene() -> NativeScene:
    """Compile the scene and let the cube settle on the belt, once per process."""
    spec = mujoco.MjSpec.from_file(str(SCENE_FILE))
    add_belt(spec)
    return settled_scene(spec.compile(), support="belt")


def conveyor_renderer() -> CameraRenderer:
    """Return this process's renderer of the scene."""
    return shared_renderer("conveyor", _visual_model)


def _visual_model() -> mujoco.MjModel:
    spec = native_visual_spec()
    add_belt(spec, visible=True)
    return light_model(spec.compile())
